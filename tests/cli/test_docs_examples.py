"""Commands of the documentation that can run on digits are run, with ours for what is the reader's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import Cli
from documents import PAGES, Shown, commands_of

# What stands in the pages for something of the reader's.
OURS = {
    "RUN": "runs/resnet56-dgate-001",
    "ANOTHER_RUN": "runs/plain",
    "FOLDER": "images",
    "CKPT": "model.pth",
    "runs/digits_resnet-gumbel-001": "runs/resnet56-dgate-001",
    "adaptify-demo/digits_resnet.pt": "model.pth",
    "0.3,0.4,0.5,0.6,0.7": "0.5,0.6,0.7",  # of the MACs: exits of so small a network cannot do with less
    "0.95": "0.5",  # the promise that so few held-out images can be asked for
}
# These hold layers and nothing that decides: RUN is a pruned one.
STATIC_FORMATS = ("python", "safetensors")
# Pages whose commands belong together, and runs that were stopped: these run elsewhere.
STOPPED = ("--resume",)
ELSEWHERE = ("README.md", "docs/tutorial.md", "docs/report.md", "docs/extending.md", "docs/resume.md")
# Checkpoints and data that do not come with adaptify.
FOREIGN = (
    "cifar10",
    "resnet56.th",
    "resnet20.th",
    "resnet32.th",
    "imagenet",
    "cifar100",
    "cifar_resnet32",
    "densenet",
    "FINE",
    "mf",
)


def can_run(shown: Shown) -> bool:
    text = " ".join(shown.words)
    return shown.page not in ELSEWHERE and not any(word in text for word in FOREIGN + STOPPED)


RUNNABLE = [shown for page in PAGES for shown in commands_of(page) if can_run(shown)]


def test_there_are_some() -> None:
    assert {shown.words[0] for shown in RUNNABLE} >= {"bench", "calibrate", "evaluate", "export"}


@pytest.mark.slow
@pytest.mark.parametrize("shown", RUNNABLE, ids=str)
def test_a_command_of_the_documentation_runs(
    shown: Shown, trained: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "home")  # what one makes is not another's newest run
    monkeypatch.chdir(tmp_path / "home")
    Path("runs/resnet56-dgate-001/report.json").touch()
    static = any(name in shown.words for name in STATIC_FORMATS)
    ours = {**OURS, "RUN": "runs/resnet56-importance-001"} if static else OURS
    said = cli(*(ours.get(word, word) for word in shown.words))
    assert said.code == 0, said.err
