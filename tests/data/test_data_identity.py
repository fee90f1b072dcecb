from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptify.data import Data, folder, open_data
from adaptify.data.identity import fingerprint
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec

RGB8 = InputSpec(3, 8, 8)
GREY8 = InputSpec(1, 8, 8, mean=(0.5,), std=(0.5,))


@pytest.fixture(params=["in memory", "streamed"])
def images(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """train/ with two classes of 20 images; val/ is to be made."""
    random = np.random.RandomState(0)
    for name in ("ant", "bee"):
        place = tmp_path / "data/train" / name
        place.mkdir(parents=True)
        for i in range(20):
            Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{i:02}.png")
    if request.param == "streamed":
        monkeypatch.setattr(folder, "MEMORY_LIMIT", 0)
    return tmp_path / "data"


def opened(path: Path, **options: object) -> Data:
    return open_data(str(path), **{"input": RGB8, "workers": 0, "holdout": 0.5, **options})  # type: ignore[arg-type]


def test_test_images_that_are_the_training_images_are_refused(images: Path) -> None:
    (images / "val").symlink_to(images / "train", target_is_directory=True)
    with pytest.raises(UsageError, match="20 of 20 held-out images are test images"):
        opened(images)
    opened(images, parts=("train", "test"))  # nothing is held out: it is not asked


def test_copies_are_found_where_images_are_in_memory(images: Path) -> None:
    shutil.copytree(images / "train", images / "val")
    if folder.MEMORY_LIMIT:
        with pytest.raises(UsageError, match="20 of 20 held-out images are test images"):
            opened(images)


def test_a_few_test_images_among_the_held_out_ones_are_told(images: Path) -> None:
    random = np.random.RandomState(1)
    for name in ("ant", "bee"):
        (images / "val" / name).mkdir(parents=True)
        Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            images / "val" / name / "x.png"
        )
    held = opened(images).holdout.indices.tolist()
    shared = images / "train" / ("ant", "bee")[held[0] // 20] / f"{held[0] % 20:02}.png"
    (images / "val/ant/y.png").symlink_to(shared)
    assert opened(images).notes == ("1 of 20 held-out images are test images too",)


def test_a_fingerprint_is_of_the_images_and_nothing_else() -> None:
    one, same, other = (
        open_data("digits", input=GREY8, holdout=0.2, seed=seed, workers=0) for seed in (0, 0, 1)
    )
    assert one.notes == ()
    assert fingerprint(one.holdout) == fingerprint(same.holdout)
    assert fingerprint(one.holdout) != fingerprint(other.holdout)
    assert fingerprint(one.holdout) != fingerprint(one.test)
    assert fingerprint(one.test) == fingerprint(other.test)  # the test images do not depend on the seed
