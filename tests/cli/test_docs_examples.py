"""Commands of the documentation that can run on digits are run, with ours for what is the reader's."""

from __future__ import annotations

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
}
# Pages whose commands belong together, and run elsewhere.
ELSEWHERE = ("README.md", "docs/tutorial.md", "docs/report.md", "docs/extending.md", "docs/resume.md")
# Checkpoints and data that do not come with adaptify.
FOREIGN = (
    "cifar10",
    "resnet56.th",
    "resnet20.th",
    "resnet32.th",
    "imagenet",
    "cifar100",
    "densenet",
    "FINE",
    "mf",
)


def can_run(shown: Shown) -> bool:
    text = " ".join(shown.words)
    return shown.page not in ELSEWHERE and not any(word in text for word in FOREIGN)


RUNNABLE = [shown for page in PAGES for shown in commands_of(page) if can_run(shown)]


def test_there_are_some() -> None:
    assert {shown.words[0] for shown in RUNNABLE} >= {"bench", "calibrate", "evaluate", "export"}


@pytest.mark.slow
@pytest.mark.parametrize("shown", RUNNABLE, ids=str)
def test_a_command_of_the_documentation_runs(
    shown: Shown, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    said = cli(*(OURS.get(word, word) for word in shown.words))
    assert said.code == 0, said.err
