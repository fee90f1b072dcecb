"""A method in a package of one's own: the example of the documentation, installed and run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from digits_network import learned_digits

import adaptify
from adaptify.cli.main import main
from adaptify.data import open_data
from adaptify.errors import UsageError
from adaptify.methods import base, find_method, method_names
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import GATE

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "random_exit"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example as pip installs it."""
    source = tmp_path_factory.mktemp("source") / "random_exit"
    shutil.copytree(EXAMPLE, source)
    target = tmp_path_factory.mktemp("site")
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True)
    return target


@pytest.fixture
def known(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example can be imported; afterwards it is forgotten."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    monkeypatch.delitem(sys.modules, "random_exit", raising=False)


@pytest.mark.usefixtures("known")
def test_the_example_runs_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = open_data("digits", input=resolve("adaptify:digits_resnet").input)
    torch.save(learned_digits(data, epochs=2).state_dict(), "digits.pt")
    words = ["digits.pt", "--data", "digits", "--max-drop", "20", "train.epochs=1", "gates.spread=2"]
    assert main(["retrofit", *words, "--method", "random_exit", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert Path(report["run"]).name == "digits_resnet-random_exit-001"
    assert [row["name"] for row in report["exits"]] == ["layer1", "layer2", "output"]
    model = adaptify.load(report["run"])
    assert isinstance(model, AdaptiveModel)
    assert model.policy.score == GATE
    # The gates are as they were drawn, and not alike: they were not trained.
    drawn = [item.head.gate.linear.weight for item in model.exits]
    assert all(abs(float(weight.std()) - 2) < 0.5 for weight in drawn)
    assert main(["calibrate", "--budget", "0.9", "-q"]) == 0


@pytest.mark.usefixtures("known")
def test_an_installed_method_is_known_by_its_name() -> None:
    assert "random_exit" in method_names()
    assert find_method("random_exit").summary == "early exits that images take at random: a baseline"
    with pytest.raises(UsageError, match=r"unknown method 'random_exti'; did you mean 'random_exit'\?"):
        find_method("random_exti")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("nowhere:Method", "cannot be imported from nowhere:Method: ModuleNotFoundError"),
        ("json:JSONDecoder", "json:JSONDecoder, which is installed as the method 'mine', is no method"),
        ("adaptify.methods.dgate:DGate", "is no method of that name"),
    ],
)
def test_what_is_installed_as_a_method_has_to_be_one(
    value: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[adaptify.methods]\nmine = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=re.escape(told)):
        find_method("mine")


def test_the_example_is_short() -> None:
    lines = (EXAMPLE / "random_exit.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 65
