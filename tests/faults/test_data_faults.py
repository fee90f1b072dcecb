"""Images that are corrupt, vanish, or change: named, counted, and nothing that was trained is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli, read_report, snapshot
from PIL import Image

from adaptify.data import folder as image_folder
from adaptify.data import open_data
from adaptify.data.decode import decode
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec
from adaptify.training.state import States

GUMBEL = ("digits.pt", "--data", "images", "--method", "gumbel", "train.epochs=2", "train.batch_size=32")
LEFT = "runs/digits_resnet-gumbel-001.unfinished"


@pytest.fixture
def images(home: Path) -> Path:
    """A folder of 10 classes with 12 images each for training and 4 for testing."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label in range(10):
            folder = home / "images" / part / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = chance.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return home / "images"


def spoil(images: Path, *names: str) -> None:
    for name in names:
        path = images / name
        path.write_bytes(path.read_bytes()[:40])


def after_epochs(monkeypatch: pytest.MonkeyPatch, count: int, act: Any) -> None:
    """Do something when so many states of training have been written."""
    save = States.save
    seen = 0

    def counted(states: States, state: Any) -> None:
        nonlocal seen
        save(states, state)
        seen += 1
        if seen == count:
            act()

    monkeypatch.setattr(States, "save", counted)


def test_corrupt_images_are_counted_and_named(images: Path, cli: Cli) -> None:
    spoil(images, *(f"train/{label}/03.png" for label in range(5)))
    before = snapshot(images.parent)
    said = cli("retrofit", *GUMBEL, "-q")
    assert said.code == 2
    first, *more = said.err.splitlines()
    # The training images; one of the five may be held out.
    assert re.fullmatch(r"error: cannot read [45] of \d+ images", first)
    assert "03.png" in more[0]
    assert re.search(r"\n  and [12] more\n", said.err)
    assert "--skip-corrupt" in more[-1]
    assert snapshot(images.parent) == before


def test_a_corrupt_image_among_many_is_found(tmp_path: Path) -> None:
    spec = InputSpec(3, 8, 8, mean=(0.5,) * 3, std=(0.5,) * 3)
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / label / "0.png")
        for index in range(1, 2000):
            (tmp_path / label / f"{index}.png").hardlink_to(tmp_path / label / "0.png")
    bad = tmp_path / "b/1234.png"
    bad.unlink()
    bad.write_bytes(b"\x89PNG")
    with pytest.raises(UsageError, match=r"cannot read the image .*/b/1234\.png"):
        decode(image_folder._list(tmp_path).files, spec, 1, lambda count: None)
    data = open_data(str(tmp_path), input=spec, workers=1, skip_corrupt=True, parts=())
    assert len(data.train) + len(data.holdout) + len(data.test) == 3999
    assert data.notes == (f"left out 1 of 4,000 images of {tmp_path}, unreadable: b/1234.png",)


def test_what_is_left_out_is_in_the_report_and_a_run_goes_on_with_it(
    images: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(images, "train/1/03.png", "train/4/05.png", "val/2/01.png")
    whole = cli("retrofit", *GUMBEL, "--skip-corrupt", "-q", "-o", "whole")
    assert whole.code == 0, whole.err
    report = read_report(Path("whole"))
    told = [note for note in report["notes"] if note.startswith("left out")]
    assert told == [
        "left out 2 of 120 images of images/train, unreadable: 1/03.png, 4/05.png",
        "left out 1 of 40 images of images/val, unreadable: 2/01.png",
    ]
    assert "1/03.png" in Path("whole/report.html").read_text()
    # What was left out is left out again: the data set is the same one.
    after_epochs(monkeypatch, 1, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli("retrofit", *GUMBEL, "--skip-corrupt", "-q").code == 130
    monkeypatch.undo()
    monkeypatch.chdir(images.parent)
    assert cli("retrofit", "--resume", "-q").code == 0
    model = Path("runs/digits_resnet-gumbel-001/model.safetensors")
    assert model.read_bytes() == Path("whole/model.safetensors").read_bytes()
    measured = cli("evaluate", "whole", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["samples"] == 39


def test_a_data_set_that_is_mostly_broken_is_refused(images: Path, cli: Cli) -> None:
    spoil(images, *(f"train/{label}/{index:02}.png" for label in range(10) for index in range(2)))
    said = cli("retrofit", *GUMBEL, "--skip-corrupt", "-q")
    assert said.code == 2
    assert "20 of 120 images of images/train cannot be read, too many to leave out" in said.err
    assert "Up to 10%" in said.err


def test_images_that_vanish_while_they_are_trained_on(
    images: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "MEMORY_LIMIT", 0)
    whole = cli("retrofit", *GUMBEL, "--workers", "0", "-q", "-o", "whole")
    assert whole.code == 0, whole.err
    after_epochs(monkeypatch, 1, lambda: images.rename("away"))
    said = cli("retrofit", *GUMBEL, "--workers", "0")
    assert said.code == 1
    assert "has vanished" in said.err
    assert "images/train/" in said.err or "images/val/" in said.err
    assert f"adaptify retrofit --resume {LEFT}" in said.err
    # Still gone, then there again.
    gone = cli("retrofit", "--resume")
    assert (gone.code, "images" in gone.err) == (2, True)
    Path("away").rename("images")
    assert cli("retrofit", "--resume", "-q").code == 0
    model = Path("runs/digits_resnet-gumbel-001/model.safetensors")
    assert model.read_bytes() == Path("whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["stream", "memory"])
def test_images_that_changed_are_not_trained_on_further(
    limit: int, images: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "MEMORY_LIMIT", limit)
    after_epochs(monkeypatch, 1, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli("retrofit", *GUMBEL, "--workers", "0", "-q").code == 130
    kept = json.loads(Path(LEFT, "unfinished.json").read_text())
    assert set(kept["images"]) == {"train", "holdout"}
    original = images / "train/3/05.png"
    shutil.copy(original, "original.png")
    Image.new("L", (8, 8), 7).save(original)
    before = snapshot(Path(LEFT))
    said = cli("retrofit", "--resume")
    assert said.code == 2
    assert "the data set is not the one" in said.err
    assert "other images" in said.err
    assert snapshot(Path(LEFT)) == before
    shutil.copy("original.png", original)
    assert cli("retrofit", "--resume", "-q").code == 0


def test_all_images_are_decoded_before_any_is_complained_of(images: Path) -> None:
    spec = InputSpec(1, 8, 8, mean=(0.5,), std=(0.5,))
    spoil(images, "train/0/00.png", "train/9/11.png")
    listing = image_folder._list(images / "train")
    seen: list[int] = []
    with pytest.raises(UsageError, match="cannot read 2 of 120 images"):
        decode(listing.files, spec, 2, seen.append)
    assert sum(seen) == 120
