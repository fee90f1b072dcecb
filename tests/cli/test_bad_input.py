"""Whatever is wrong with what a user gives: one clear message, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import RUN, Cli, snapshot
from PIL import Image

SEEDED = np.random.default_rng(0)


def weights() -> dict[str, Any]:
    state: dict[str, Any] = torch.load("digits.pt", weights_only=True)
    return state


class Code:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def truncated(path: Path) -> None:
    path.write_bytes(Path("digits.pt").read_bytes()[:-5000])


def truncated_safetensors(path: Path) -> None:
    path.write_bytes((RUN / "model.safetensors").read_bytes()[:-5000])


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("Here the weights should be.\n")


def with_code(path: Path) -> None:
    torch.save({"state_dict": weights(), "extra": Code()}, path)


def with_code_the_old_way(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": Code()}))


def with_nan(path: Path) -> None:
    state = weights()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


def other_shapes(path: Path) -> None:
    state = weights()
    state["layer2.0.conv1.weight"] = torch.zeros(32, 16, 5, 5)
    torch.save(state, path)


def without_tensors(path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, path)


def zip_of_something(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights")


@pytest.mark.parametrize(
    ("make", "words", "told"),
    [
        (truncated, [], ["bad.pth is damaged or cut short", "download the checkpoint again"]),
        (truncated_safetensors, [], ["bad.pth"]),
        (empty, [], ["bad.pth is empty (0 bytes)"]),
        (text, [], ["bad.pth is a text file", "torch.save"]),
        (with_code, [], ["bad.pth holds more than tensors", "nothing of it was executed", "--trust-pickle"]),
        (with_code_the_old_way, [], ["nothing of it was executed", "--trust-pickle"]),
        (with_nan, [], ["layer2.0.conv1.weight", "NaN"]),
        (other_shapes, ["--arch", "adaptify:digits_resnet"], ["layer2.0.conv1.weight", "32x16x5x5"]),
        (without_tensors, [], ["bad.pth"]),
        (zip_of_something, [], ["bad.pth is a zip archive without PyTorch weights"]),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "retrofit", "evaluate"])
def test_a_bad_checkpoint(
    command: str, make: Callable[[Path], None], words: list[str], told: list[str], home: Path, cli: Cli
) -> None:
    make(Path("bad.pth"))
    before = snapshot(home)
    data = [] if command == "inspect" else ["--data", "digits"]
    said = cli(command, "bad.pth", *words, *data)
    assert said.code == 4, said.err
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert 2 <= len(said.err.splitlines()) <= 5
    for part in told:
        assert part in said.err
    assert not Path("executed").exists()
    assert snapshot(home) == before


def test_what_fits_no_architecture_is_told_with_the_nearest(home: Path, cli: Cli) -> None:
    state = weights()
    del state["conv1.weight"]
    torch.save(state, "bad.pth")
    said = cli("inspect", "bad.pth")
    assert said.code == 4
    assert "no known architecture has the names and shapes of the 43 tensors in bad.pth" in said.err
    assert "adaptify:digits_resnet: 1 missing (conv1.weight)" in said.err
    assert "--arch" in said.err


def test_code_in_a_pickle_runs_only_when_it_is_trusted(home: Path, cli: Cli) -> None:
    with_code(Path("bad.pth"))
    said = cli("inspect", "bad.pth", "--trust-pickle")
    assert said.code == 0
    assert Path("executed").exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["missing.pth"], 2, "'missing.pth'"),
        (["digit.pt"], 2, "did you mean 'digits.pt'?"),
        (["digits.pt", "--arch", "resnet5"], 2, "did you mean"),
        (["digits.pt", "--arch", "torchvision:resnet18"], 4, "torchvision:resnet18"),
        (["digits.pt", "--arch", "no.such:thing"], 2, "'no.such'"),
        (["digits.pt", "--arch-kwargs", "[1]"], 2, "--arch-kwargs '[1]' is no JSON object"),
        (["digits.pt", "--depth", "-1"], 2, "--depth"),
    ],
)
def test_a_wrong_name(words: list[str], code: int, told: str, home: Path, cli: Cli) -> None:
    said = cli("inspect", *words)
    assert said.code == code, said.err
    assert told in said.err
    assert said.out == ""


def folder_of_images(root: Path, classes: int = 10, images: int = 4) -> Path:
    for part in ("train", "val"):
        for label in range(classes):
            (root / part / str(label)).mkdir(parents=True)
            for index in range(images):
                pixels = SEEDED.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / str(label) / f"{index}.png")
    return root


def no_images(root: Path) -> None:
    root.mkdir()


def unreadable_image(root: Path) -> None:
    folder_of_images(root)
    (root / "train/3/2.png").write_bytes(b"no image at all")


def cut_image(root: Path) -> None:
    folder_of_images(root)
    image = root / "val/3/2.png"
    image.write_bytes(image.read_bytes()[:60])


def too_few_classes(root: Path) -> None:
    folder_of_images(root, classes=7)


def without_val(root: Path) -> None:
    folder_of_images(root)
    (root / "val").rename(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (no_images, ["images has no images in class folders", "Expected FOLDER/train/CLASS"]),
        (unreadable_image, ["images/train/3/2.png", "--skip-corrupt"]),
        (cut_image, ["images/val/3/2.png", "--skip-corrupt"]),
        (too_few_classes, ["has 7 classes, the network has 10 outputs"]),
        (without_val, ["has train/ but no val/"]),
    ],
)
def test_bad_data(make: Callable[[Path], None], told: list[str], home: Path, cli: Cli) -> None:
    make(Path("images"))
    before = snapshot(home)
    said = cli("retrofit", "digits.pt", "--data", "images")
    assert said.code == 2, said.err
    assert said.out == ""
    for part in told:
        assert part in said.err
    assert snapshot(home) == before


@pytest.mark.parametrize("make", [unreadable_image, cut_image])
def test_an_unreadable_image_can_be_left_out(make: Callable[[Path], None], home: Path, cli: Cli) -> None:
    make(Path("images"))
    said = cli("retrofit", "digits.pt", "--data", "images", "--skip-corrupt", "--json", "train.epochs=1")
    assert said.code == 0
    data = said.json["data"]
    assert data["train"] + data["holdout"] + data["test"] == 79
    assert "left out 1 of 40 images" in data["notes"][0]


def test_a_dry_run_finds_missing_data(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "digits.pt", "--data", "imagse", "--dry-run")
    assert said.code == 2
    assert "'imagse' is neither a folder nor a known data set" in said.err
    assert cli("retrofit", "digits.pt", "--data", "dgits", "--dry-run").err.startswith(
        "error: 'dgits' is neither a folder nor a known data set; did you mean 'digits'?"
    )


def test_a_network_without_places_for_exits(home: Path, cli: Cli) -> None:
    Path("mine.py").write_text(
        "from torch import nn\ndef flat(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    torch.save({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, "flat.pth")
    before = snapshot(home)
    said = cli(
        *("retrofit", "flat.pth", "--arch", "mine:flat", "--data", "digits"),
        *("--input-size", "8", "--mean", "0.3", "--std", "0.4"),
    )
    assert said.code == 4, said.err
    assert "Sequential" in said.err
    assert {name for name in snapshot(home) if "__pycache__" not in name} == set(before)
