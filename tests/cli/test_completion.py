"""What TAB offers, asked for as a shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adaptify.cli import completion
from adaptify.data import open_data
from adaptify.errors import UsageError
from adaptify.methods import find_method, method_names
from adaptify.models.registry import names, resolve
from adaptify.recipe_library import recipe_names

_MAIN = "import sys; from adaptify.cli.main import main; "


def offered(words: str, shell: str = "bash") -> list[str]:
    """What the shell is told for a line that ends where TAB was pressed, in a process of its own."""
    typed = words.split(" ")
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(typed) - 1), "_TYPER_COMPLETE_ARGS": words}
    script = (
        f"{_MAIN}import atexit; "
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); sys.exit(main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "_ADAPTIFY_COMPLETE": f"complete_{shell}", **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "False\n", "completion has to be quick"
    return done.stdout.splitlines()


def test_a_shell_is_told_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "resnet56-dgate-001").mkdir(parents=True)
    (tmp_path / "runs" / "resnet56-dgate-001" / "report.json").touch()
    (tmp_path / "runs" / "resnet56-dgate-002").mkdir()  # not finished
    assert offered("adaptify re") == ["retrofit", "report", "recipes"]
    assert offered("adaptify report r") == ["runs/resnet56-dgate-001", "resnet56-dgate-001"]
    assert offered("adaptify retrofit model.pth --method gu") == ["gumbel", "gumbel_exits"]
    assert offered("adaptify recipes show sg") == [n for n in recipe_names() if n.startswith("sg")]
    zsh = "\n".join(offered("adaptify retrofit x --method d", "zsh"))
    assert '"dgate":"early exits with hinge loss on a frozen backbone"' in zsh


def test_it_offers_every_method_and_recipe() -> None:
    assert dict(completion.methods("")) == {name: find_method(name).summary for name in method_names()}
    assert completion.recipes("") == list(recipe_names())


def test_it_offers_networks_that_there_are() -> None:
    assert completion.architectures("") == ["adaptify:", "torchvision:", "timm:"]
    known = set(names())
    for prefix in ("adaptify:", "torchvision:"):
        found = set(completion.architectures(prefix))
        assert found <= known
        assert len(found) > 0.9 * sum(name.startswith(prefix) for name in known)
    assert completion.architectures("torchvision:resnet1") == [
        f"torchvision:resnet{n}" for n in (18, 101, 152)
    ]
    assert "timm:convnext_atto" in completion.architectures("timm:conv")
    assert [resolve(name).name for name in completion.architectures("resnet5")] == ["torchvision:resnet50"]


def test_data_are_completed_to_what_can_be_opened(tmp_path: Path) -> None:
    assert completion.data("") == []  # the shell offers folders
    assert completion.data("d") == ["digits"]
    with pytest.raises(UsageError) as caught:
        open_data(completion.data("cifar10:")[0] + str(tmp_path), input=resolve("cifar_resnet20").input)
    assert "neither a folder nor a known data set" not in str(caught.value)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_can_be_shown_for_each_shell(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{_MAIN}sys.exit(main(['--show-completion', '{shell}']))"],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_ADAPTIFY_COMPLETE=complete_{shell}" in done.stdout
