from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from adaptify.data import Data, MemorySplit, StreamSplit, check_labels, folder, open_data
from adaptify.data.decode import read_image
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec
from adaptify.progress import Stage

RGB8 = InputSpec(3, 8, 8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
GREY8 = InputSpec(1, 8, 8, mean=(0.5,), std=(0.5,))


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, channels), dtype=np.uint8)


def write(path: Path, array: np.ndarray, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze()).convert(mode).save(path)
    return path


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """train/ and val/ with 3 classes of 10 and 4 images, 8x8 PNG."""
    for part, count in (("train", 10), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                write(
                    tmp_path / part / name / f"{i:02}.png", pixels(100 * label + i + 1000 * (part == "val"))
                )
    return tmp_path


@pytest.fixture
def streamed(divided: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 0)
    return divided


def opened(path: Path, **options: object) -> Data:
    return open_data(str(path), **{"input": RGB8, "workers": 0, **options})  # type: ignore[arg-type]


def every(split: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(split.batches(7, **options))  # type: ignore[attr-defined]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def test_three_splits_with_labels_and_provenance(divided: Path) -> None:
    data = opened(divided, holdout=0.2)
    assert data.classes == ("ant", "bee", "cat")
    assert (len(data.train), len(data.holdout), len(data.test)) == (24, 6, 12)
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.indices.tolist() == list(range(12))
    assert sorted([*data.train.indices.tolist(), *data.holdout.indices.tolist()]) == list(range(30))
    for split in (data.train, data.holdout):
        for i, position in enumerate(split.indices.tolist()):
            label, number = divmod(position, 10)
            assert split.labels[i] == label
            expected = torch.from_numpy(pixels(100 * label + number)).permute(2, 0, 1)
            assert torch.equal(split.image(i), expected)
    assert data.describe() == {
        "name": str(divided),
        "classes": ["ant", "bee", "cat"],
        "train": 24,
        "holdout": 6,
        "test": 12,
        "notes": [],
    }


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_batches_are_normalised_and_in_order(
    divided: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MEMORY_LIMIT", limit)
    data = opened(divided)
    assert isinstance(data.test, MemorySplit if limit else StreamSplit)
    batches = list(data.test.batches(5))
    assert [x.shape for x, _ in batches] == [(5, 3, 8, 8), (5, 3, 8, 8), (2, 3, 8, 8)]
    x, y = every(data.test)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert torch.equal(y, data.test.labels)
    value = pixels(1000 + 100 + 2)[3, 4, 2] / 255  # val/bee/02.png, row 3, column 4, blue
    assert x[6, 2, 3, 4].item() == pytest.approx((value - 0.3) / 0.5, abs=1e-6)
    assert [len(y) for _, y in data.test.batches(5, drop_last=True)] == [5, 5]


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_order_and_augmentation_depend_on_the_seed_alone(
    divided: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MEMORY_LIMIT", limit)
    split = opened(divided).train
    state = torch.get_rng_state()
    x1, y1 = every(split, shuffle=True, augment=True, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the global random state was touched"
    torch.manual_seed(99)
    x2, y2 = every(split, shuffle=True, augment=True, seed=1)
    assert torch.equal(x1, x2)
    assert torch.equal(y1, y2)
    x3, _ = every(split, shuffle=True, augment=True, seed=2)
    assert not torch.equal(x1, x3)
    plain, labels = every(split, shuffle=True, seed=1)
    assert torch.equal(labels, y1)
    assert not torch.equal(plain, x1)
    assert torch.equal(labels.sort().values, split.labels.sort().values)


def test_stream_and_memory_agree(divided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = opened(divided)
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 0)
    read = opened(divided)
    for options in ({}, {"shuffle": True, "seed": 5}):
        for one, other in zip(every(kept.train, **options), every(read.train, **options), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(kept.holdout.image(2), read.holdout.image(2))


def test_worker_processes_change_nothing(streamed: Path) -> None:
    alone = every(opened(streamed, workers=0).train, shuffle=True, augment=True, seed=4)
    helped = every(opened(streamed, workers=2).train, shuffle=True, augment=True, seed=4)
    assert torch.equal(alone[0], helped[0])
    assert torch.equal(alone[1], helped[1])


def test_a_pass_may_be_left_early(streamed: Path) -> None:
    split = opened(streamed, workers=2).train
    first = [next(iter(split.batches(4, shuffle=True, seed=seed)))[0] for seed in (1, 1)]
    assert torch.equal(*first)


def test_threads_change_nothing(divided: Path) -> None:
    assert torch.equal(every(opened(divided, workers=3).train)[0], every(opened(divided).train)[0])


def test_the_seed_chooses_the_holdout_but_not_the_test_images(divided: Path) -> None:
    one, two = opened(divided / "train", seed=1), opened(divided / "train", seed=2)
    assert (len(one.train), len(one.holdout), len(one.test)) == (22, 2, 6)
    assert torch.equal(one.test.indices, two.test.indices)
    assert not torch.equal(one.holdout.indices, two.holdout.indices)
    parts = [set(split.indices.tolist()) for split in (one.train, one.holdout, one.test)]
    assert set.union(*parts) == set(range(30))
    assert sum(map(len, parts)) == 30
    assert torch.bincount(one.test.labels).tolist() == [2, 2, 2]


def test_val_split_is_the_share_of_one_folder(divided: Path) -> None:
    assert len(opened(divided / "train", val_split=0.5).test) == 15
    with pytest.raises(UsageError, match="its own test images"):
        opened(divided, val_split=0.5)


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_other_names_of_the_test_folder(divided: Path, name: str) -> None:
    (divided / "val").rename(divided / name)
    assert len(opened(divided).test) == 12


def test_val_goes_before_test_and_that_is_noted(divided: Path) -> None:
    shutil.copytree(divided / "train", divided / "test")
    data = opened(divided)
    assert len(data.test) == 12
    assert data.notes == ("test/ is not used; the test images are val/",)


def test_train_may_be_a_class(tmp_path: Path) -> None:
    for name in ("car", "train"):
        for i in range(5):
            write(tmp_path / name / f"{i}.png", pixels(i))
    assert opened(tmp_path).classes == ("car", "train")


def test_numbered_classes_keep_the_order_of_text_and_that_is_noted(tmp_path: Path) -> None:
    for label in range(11):
        for i in range(2):
            write(tmp_path / str(label) / f"{i}.png", pixels(2 * label + i))
    data = opened(tmp_path)
    assert data.classes[:4] == ("0", "1", "10", "2")
    assert "in the order of text: 0, 1, 10" in data.notes[0]


def test_files_that_are_no_images_and_hidden_folders_are_passed_over(divided: Path) -> None:
    (divided / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
    (divided / "train" / "ant" / "._00.png").write_bytes(b"x")
    (divided / "train" / ".cache").mkdir()
    write(divided / "train" / "bee" / "nested" / "99.PNG", pixels(5))
    data = opened(divided)
    assert len(data.train) + len(data.holdout) == 31


# Images at the input size, and others


@pytest.mark.parametrize("resize", [None, 8, 10])
def test_images_of_the_input_size_are_not_resampled(divided: Path, resize: int | None) -> None:
    spec = InputSpec(3, 8, 8, RGB8.mean, RGB8.std, resize)
    image = opened(divided, input=spec).test.image(0)
    assert torch.equal(image, torch.from_numpy(pixels(1000)).permute(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(50, 70), (70, 50), (41, 300), (24, 20)])
def test_resizing_is_that_of_torchvision(tmp_path: Path, height: int, width: int) -> None:
    path = write(tmp_path / "x.png", pixels(0, height, width))
    spec = InputSpec(3, 28, 28, resize=32)
    expected = v2.CenterCrop(28)(v2.Resize(32)(Image.open(path)))
    assert np.array_equal(read_image(str(path), spec), np.asarray(expected).transpose(2, 0, 1))
    straight = v2.Resize((28, 28))(Image.open(path))
    assert np.array_equal(
        read_image(str(path), InputSpec(3, 28, 28)), np.asarray(straight).transpose(2, 0, 1)
    )


def test_an_image_is_scaled_until_it_covers_a_wide_input(tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", np.full((20, 20, 3), 200, np.uint8))
    image = read_image(str(path), InputSpec(3, 16, 40, resize=24))
    assert image.shape == (3, 16, 40)
    assert (image == 200).all()


def test_large_jpegs_are_decoded_coarsely_with_almost_the_same_result(tmp_path: Path) -> None:
    y, x = np.mgrid[0:640, 0:800]
    smooth = np.stack([x / 800 * 255, y / 640 * 255, 127 + 100 * np.sin(x / 60)], 2).astype(np.uint8)
    path = tmp_path / "x.jpg"
    Image.fromarray(smooth).save(path, quality=95)
    spec = InputSpec(3, 56, 56, resize=64)
    expected = np.asarray(v2.CenterCrop(56)(v2.Resize(64)(Image.open(path)))).transpose(2, 0, 1)
    assert np.abs(read_image(str(path), spec).astype(int) - expected).max() <= 4


# Modes


def grey_of(array: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(array).convert("L"))


def test_grey_images_become_rgb_and_rgb_images_grey(tmp_path: Path) -> None:
    grey = pixels(3, channels=1)
    path = write(tmp_path / "grey.png", grey, "L")
    assert np.array_equal(read_image(str(path), RGB8), np.repeat(grey.transpose(2, 0, 1), 3, 0))
    path = write(tmp_path / "rgb.png", pixels(4))
    assert np.array_equal(read_image(str(path), GREY8), grey_of(pixels(4))[None])


def test_alpha_and_palette_are_converted(tmp_path: Path) -> None:
    with_alpha = pixels(5, channels=4)
    Image.fromarray(with_alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(
        read_image(str(tmp_path / "alpha.png"), RGB8), with_alpha[:, :, :3].transpose(2, 0, 1)
    )
    two = np.zeros((8, 8), np.uint8)
    two[:4] = 1
    palette = Image.fromarray(two).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\xff")
    image = read_image(str(tmp_path / "palette.png"), RGB8)
    assert image[:, 0, 0].tolist() == [40, 50, 60]
    assert image[:, 7, 7].tolist() == [10, 20, 30]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(str(tmp_path / "deep.png"), GREY8)[0], values >> 8)


# Unreadable images


def test_a_truncated_image_is_named(divided: Path) -> None:
    bad = divided / "val" / "bee" / "01.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"cannot read the image .*val/bee/01\.png") as caught:
        opened(divided, workers=2)
    assert "--skip-corrupt" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"just text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_image_is_named(divided: Path, content: bytes) -> None:
    (divided / "train" / "ant" / "zz.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"train/ant/zz\.png: \S"):
        opened(divided)


def test_parts_that_are_not_wanted_are_not_decoded(divided: Path) -> None:
    (divided / "train" / "ant" / "zz.png").write_bytes(b"")
    data = opened(divided, parts=("test",))
    assert len(every(data.test)[1]) == 12
    with pytest.raises(UsageError, match=r"zz\.png"):
        every(data.train), every(data.holdout)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_unreadable_images_can_be_left_out(
    divided: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MEMORY_LIMIT", limit)
    (divided / "train" / "ant" / "03.png").write_bytes(b"")
    (divided / "val" / "cat" / "00.png").write_bytes(b"nothing")
    data = opened(divided, skip_corrupt=True)
    assert len(data.train) + len(data.holdout) == 29
    assert 3 not in {*data.train.indices.tolist(), *data.holdout.indices.tolist()}
    assert data.test.indices.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert torch.equal(every(data.test)[1], data.test.labels)
    assert len(data.notes) == 2
    assert "left out 1 of 30 images" in data.notes[0]
    assert "ant/03.png" in data.notes[0]


def test_an_unreadable_image_in_a_stream_is_named_without_a_traceback(streamed: Path) -> None:
    (streamed / "val" / "cat" / "00.png").write_bytes(b"nothing")
    for workers in (0, 2):
        with pytest.raises(UsageError) as caught:
            every(opened(streamed, workers=workers).test)
        assert caught.value.message.endswith("val/cat/00.png: it is not an image of a known format")
        assert caught.value.hint


def test_a_folder_of_nothing_readable_is_refused(divided: Path) -> None:
    for path in (divided / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="12 of 12 images"):
        opened(divided, skip_corrupt=True)


# Folders that cannot be used


def empty(root: Path) -> None:
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")


def one_class(root: Path) -> None:
    for part in ("train", "val"):
        for name in ("bee", "cat"):
            shutil.rmtree(root / part / name)


def empty_class(root: Path) -> None:
    (root / "train" / "dog").mkdir()
    write(root / "val" / "dog" / "0.png", pixels(0))


def flat(root: Path) -> None:
    for part in ("train", "val"):
        for i, path in enumerate(sorted((root / part).rglob("*.png"))):
            path.rename(root / part / f"{i}.png")
        for name in ("ant", "bee", "cat"):
            (root / part / name).rmdir()


def no_images(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.unlink()


def without(part: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / part)


def different(root: Path) -> None:
    (root / "val" / "cat").rename(root / "val" / "dog")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, "has no images in class folders"),
        (one_class, "has only one class, ant"),
        (empty_class, "train/dog has no images"),
        (flat, "train has no images in class folders"),
        (no_images, "train has no images in class folders"),
        (without("val"), r"has train/ but no val/, valid/ or test/"),
        (without("train"), r"has val/ but no train/"),
        (different, r"differ: only train/ has cat; only val/ has dog"),
    ],
)
def test_folders_that_cannot_be_used(divided: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(divided)
    with pytest.raises(UsageError, match=message) as caught:
        opened(divided)
    assert caught.value.hint


def test_labels_must_match_the_head(divided: Path) -> None:
    data = opened(divided)
    check_labels(data, 3)
    with pytest.raises(UsageError, match="has 3 classes, the network has 1000 outputs") as caught:
        check_labels(data, 1000)
    assert "fake:64:1000" in caught.value.hint


class Recorder:
    """A progress that keeps the total and the count of every stage."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int | None]] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        self.name = name
        self.stages[name] = [total, 0]
        yield self

    def advance(self, n: int = 1, **figures: float) -> None:
        self.stages[self.name][1] += n  # type: ignore[operator]

    def note(self, message: str) -> None:
        raise AssertionError(message)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_progress_counts_every_image_once(divided: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MEMORY_LIMIT", limit)
    progress = Recorder()
    opened(divided, progress=progress, skip_corrupt=True)
    assert progress.stages == {
        f"check {divided / 'train'}": [30, 30],
        f"check {divided / 'val'}": [12, 12],
        "load images": [42, 42],
    }


def test_a_shared_archive_reads_as_a_folder(shared_folder: Path, tmp_path: Path) -> None:
    import tarfile

    archive = shared_folder / "data" / "cifar10-jpeg-val.tar.xz"
    if not archive.exists():
        pytest.skip("the archive of real images is not here")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (root,) = [path.parent for path in tmp_path.rglob("airplane")]
    data = open_data(str(root), input=InputSpec(3, 32, 32))
    assert data.classes[0] == "airplane"
    assert len(data.classes) == 10
    assert len(data.train) + len(data.holdout) + len(data.test) == 5000
    assert torch.bincount(data.test.labels).tolist() == [100] * 10
    x, _ = next(data.test.batches(500))
    assert x.mean().abs() < 0.5
    assert 0.5 < x.std() < 2
