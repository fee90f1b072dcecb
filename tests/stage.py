"""A folder with everything that commands in help texts and on pages name; what it holds are digits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import RUN
from PIL import Image

from adaptify.cli.main import main
from adaptify.data import open_data
from adaptify.models.registry import resolve


@pytest.fixture(scope="session")
def stage(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    folder = tmp_path_factory.mktemp("stage")
    shutil.copy(finished / "digits.pt", folder / "digits.pt")  # the run's recipe names it so
    shutil.copy(finished / "digits.pt", folder / "model.pth")
    for name in ("resnet56-dgate-001", "boosted", "plain"):
        shutil.copytree(finished / RUN, folder / "runs" / name)
    _write_digits(folder / "images")
    return folder


@pytest.fixture(scope="session")
def trained(stage: Path) -> Path:
    """The stage with runs of the methods that take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stage)
        learned = [
            "--method",
            "gumbel",
            "train.epochs=2",
            "train.target=0.8",
            "-o",
            "runs/resnet56-gumbel-001",
        ]
        assert main(["retrofit", "model.pth", "--data", "images", *learned, "-q"]) == 0
        judged = ["--target", "0.7", "--importance", "l2", "-o", "runs/resnet56-importance-001", "-q"]
        assert main(["prune", "model.pth", "--data", "images", *judged]) == 0
    return stage


def _write_digits(folder: Path) -> None:
    """Write some digits as a folder of images."""
    data = open_data("digits", input=resolve("adaptify:digits_resnet").input)
    for part, split, count in (("train", data.train, 300), ("val", data.test, 100)):
        images, labels = next(split.batches(count))
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = folder / part / str(int(label)) / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = (image[0] * 0.376 + 0.3053).clamp(0, 1) * 255
            Image.fromarray(pixels.round().byte().numpy()).save(file)
