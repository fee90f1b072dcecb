"""A small trained network, a finished run of it, and the command line in this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from command_line import RUN, Cli, Said

from adaptify.cli.main import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `digits.pt` and one finished run; only to be copied."""
    home = tmp_path_factory.mktemp("home")
    _train(home / "digits.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        words = ["retrofit", "digits.pt", "--data", "digits", "--max-drop", "1", "train.epochs=10", "-q"]
        assert main(words) == 0
    assert (home / RUN).is_dir()
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished` of one's own, and the working directory."""
    own = tmp_path / "home"
    shutil.copytree(finished, own)
    monkeypatch.chdir(own)
    return own


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process: `cli("inspect", "digits.pt").out`."""

    def run(*words: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Said(code, shown.out, shown.err)

    return run


def _train(path: Path) -> None:
    from adaptify.data import open_data
    from adaptify.models.registry import resolve

    architecture = resolve("adaptify:digits_resnet")
    data = open_data("digits", input=architecture.input)
    torch.manual_seed(0)
    model = architecture.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for epoch in range(3):
        for images, labels in data.train.batches(64, shuffle=True, seed=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    torch.save(model.state_dict(), path)
