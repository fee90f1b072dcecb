"""The data sets that have a short name, and the parsing of specs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaptify.data import check_labels, open_data
from adaptify.data.augment import Augmentation
from adaptify.data.cifar import read_batch
from adaptify.data.source import convert_channels
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec

GREY8 = InputSpec(1, 8, 8, mean=(0.5,), std=(0.5,))
RGB32 = InputSpec(3, 32, 32)


# digits


def test_digits() -> None:
    data = open_data("digits", input=GREY8)
    assert data.classes == tuple("0123456789")
    sizes = [len(split) for split in (data.train, data.holdout, data.test)]
    assert sizes == [1294, 144, 359]
    positions = torch.cat([split.indices for split in (data.train, data.holdout, data.test)])
    assert positions.sort().values.tolist() == list(range(1797))
    images = torch.cat([next(split.batches(2000))[0] for split in (data.train, data.holdout, data.test)])
    assert (images.min(), images.max()) == (-1.0, 1.0)  # 0 and 16 become 0 and 255
    first = (positions == 0).nonzero().item()
    # The first image is a zero, whose top row is 0 0 5 13 9 1 0 0.
    expected = [(2 * round(v * 255 / 16) / 255 - 1) for v in (0, 0, 5, 13, 9, 1, 0, 0)]
    assert images[first, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    labels = torch.cat([split.labels for split in (data.train, data.holdout, data.test)])
    assert labels[first] == 0
    counts = torch.bincount(data.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_digits_are_shifted_but_never_mirrored() -> None:
    pixels = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    for flip, kinds in ((False, 9), (True, 18)):
        changed = Augmentation(flip)(pixels, torch.Generator().manual_seed(0))
        assert len(changed.unique(dim=0)) == kinds
    data = open_data("digits", input=GREY8)
    one = data.train.image(0).float()
    shifts = torch.nn.functional.pad(one, (1, 1, 1, 1)).unfold(1, 8, 1).unfold(2, 8, 1).reshape(9, 8, 8)
    for seed in range(8):
        x, _ = next(data.train.batches(1, augment=True, seed=seed))
        assert any(torch.allclose((x[0, 0] + 1) * 127.5, shift, atol=1e-3) for shift in shifts)


def test_augmentation_by_hand() -> None:
    pixels = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8)
    generator = torch.Generator().manual_seed(3)
    top, left = (torch.randint(3, (2,), generator=generator) for _ in range(2))
    mirrored = torch.rand(2, generator=generator) < 0.5
    changed = Augmentation(flip=True)(pixels, torch.Generator().manual_seed(3))
    for i in range(2):
        padded = np.pad(pixels[i, 0].numpy(), 1)
        crop = padded[top[i] : top[i] + 8, left[i] : left[i] + 8]
        assert np.array_equal(changed[i, 0].numpy(), crop[:, ::-1] if mirrored[i] else crop)


def test_digits_for_a_larger_colour_network() -> None:
    data = open_data("digits", input=InputSpec(3, 16, 24, resize=20))
    x, _ = next(data.test.batches(4))
    assert x.shape == (4, 3, 16, 24)
    assert x.is_contiguous()
    assert data.test.image(0).shape == (3, 8, 8)


def test_digits_need_no_torchvision_and_no_network() -> None:
    code = (
        "import sys; from adaptify.data import open_data; from adaptify.input_spec import InputSpec;"
        "d = open_data('digits', input=InputSpec(1, 8, 8, (0.5,), (0.5,)));"
        "print(len(list(d.train.batches(647, augment=True))), 'torchvision' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["2", "False"]


def test_all_work_on_a_batch_is_done_on_its_device() -> None:
    # The meta device refuses to be mixed with another one, so it stands for every accelerator.
    data = open_data("digits", input=InputSpec(3, 16, 16))
    x, y = next(data.train.batches(8, augment=True, shuffle=True, device="meta"))
    assert (x.shape, x.device.type) == ((8, 3, 16, 16), "meta")
    assert y.device.type == "meta"
    pixels = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device="meta")
    assert Augmentation(flip=True)(pixels, torch.Generator()).device.type == "meta"


# CIFAR


def fake_cifar(root: Path, classes: int, protocol: int = 2) -> np.ndarray:
    """Write a small data set in the layout of the python batches; returns the training rows."""
    ten = classes == 10
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    rows = np.random.RandomState(0).randint(0, 256, (60, 3072), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    key = b"labels" if ten else b"fine_labels"
    for name, part in zip(names, np.split(rows, len(names)), strict=True):
        content = {b"data": part, key: [i % classes for i in range(len(part))], b"filenames": [b"x.png"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    test = {b"data": rows[:20] // 2, key: list(range(10)) * 2}
    (folder / ("test_batch" if ten else "test")).write_bytes(pickle.dumps(test, protocol=protocol))
    meta = {b"label_names" if ten else b"fine_label_names": [f"class {i}".encode() for i in range(classes)]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta, protocol=protocol))
    return rows


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_batches(tmp_path: Path, classes: int, protocol: int) -> None:
    rows = fake_cifar(tmp_path, classes, protocol)
    data = open_data(f"cifar{classes}:{tmp_path}", input=RGB32)
    check_labels(data, classes)
    assert data.classes[:2] == ("class 0", "class 1")
    assert (len(data.train), len(data.holdout), len(data.test)) == (54, 6, 20)
    for split in (data.train, data.holdout):
        for i, position in enumerate(split.indices.tolist()):
            assert torch.equal(split.image(i).flatten(), torch.from_numpy(rows[position]))
            assert split.labels[i] == position % (12 if classes == 10 else 60) % classes
    # A row is the red plane, then green, then blue.
    x, _ = next(data.test.batches(1))
    assert x[0, 1, 0, 0].item() == pytest.approx((rows[0, 1024] // 2 / 255 - 0.456) / 0.224, abs=1e-5)
    inside = tmp_path / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    assert len(open_data(f"cifar{classes}:{inside}", input=RGB32).test) == 20


def test_cifar_at_224_pixels(tmp_path: Path) -> None:
    fake_cifar(tmp_path, 10)
    data = open_data(f"cifar10:{tmp_path}", input=InputSpec(3, 224, 224, resize=256))
    x, _ = next(data.test.batches(2, augment=True))
    assert x.shape == (2, 3, 224, 224)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fake_cifar(tmp_path, 10)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    for value in (Bomb(), {b"data": Bomb()}, np.array([Bomb()], dtype=object)):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(UsageError, match=r"data_batch_3 as a CIFAR batch: it asks for \w+\.system"):
            open_data(f"cifar10:{tmp_path}", input=RGB32)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"cnumpy.core.multiarray\nscalar\n.",
    ],
)
def test_only_the_objects_of_arrays_are_admitted(tmp_path: Path, attack: bytes) -> None:
    path = tmp_path / "batch"
    path.write_bytes(attack)
    with pytest.raises(UsageError, match="which is not data"):
        read_batch(path)


def test_damaged_cifar_files_are_named(tmp_path: Path) -> None:
    fake_cifar(tmp_path, 10)
    folder = tmp_path / "cifar-10-batches-py"
    whole = (folder / "data_batch_2").read_bytes()
    label_11 = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 11]})
    narrow = pickle.dumps({b"data": np.zeros((2, 100), np.uint8), b"labels": [1, 1]})
    for content in (b"", b"text", whole[:2000], pickle.dumps([1]), pickle.dumps({}), label_11, narrow):
        (folder / "data_batch_2").write_bytes(content)
        with pytest.raises(UsageError, match="data_batch_2") as caught:
            open_data(f"cifar10:{tmp_path}", input=RGB32)
        assert caught.value.hint
    (folder / "data_batch_2").unlink()
    with pytest.raises(UsageError, match=r"lacks data_batch_2\n") as caught:
        open_data(f"cifar10:{tmp_path}", input=RGB32)
    assert "cifar-10-python.tar.gz" in caught.value.hint


def test_grey_is_what_pillow_makes_of_rgb() -> None:
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (2, 3, 9, 9), dtype=np.uint8))
    grey = convert_channels(pixels, 1)
    for i in range(2):
        expected = np.asarray(Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).convert("L"))
        assert np.array_equal(grey[i, 0].numpy(), expected)


# fake


def test_fake_data_follow_the_input_and_can_be_learned() -> None:
    data = open_data("fake:200:4", input=InputSpec(3, 16, 12))
    assert (len(data.train) + len(data.holdout), len(data.test)) == (200, 40)
    assert len(data.classes) == 4
    x, y = next(data.train.batches(500))
    assert x.shape[1:] == (3, 16, 12)
    centres = torch.stack([x[y == label].mean(0) for label in range(4)]).flatten(1)
    x, y = next(data.test.batches(500))
    assert torch.equal(torch.cdist(x.flatten(1), centres).argmin(1), y)
    again = next(open_data("fake:200:4", input=InputSpec(3, 16, 12)).test.batches(500))[0]
    assert torch.equal(x, again)


def test_fake_data_of_many_classes() -> None:
    data = open_data("fake:64:1000", input=RGB32)
    check_labels(data, 1000)
    assert (len(data.train), len(data.holdout), len(data.test)) == (58, 6, 12)


@pytest.mark.parametrize(
    "spec", ["fake:x", "fake:1", "fake:64:1", "fake:64:2:3", "fake:-5", "fake:1000000000"]
)
def test_fake_specs_that_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=spec) as caught:
        open_data(spec, input=RGB32)
    assert caught.value.hint


# specs and options


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("cifr10:/tmp", "did you mean 'cifar10'"),
        ("/no/such/folder", "'/no/such/folder' is neither a folder nor a known data set"),
        ("", "neither a folder"),
        ("cifar10", "cifar10 needs something after its name"),
        ("fake:", "fake needs something after its name"),
        ("digits:3", "digits takes nothing after its name"),
        ("cifar100:/no/such/folder", "/no/such/folder lacks train, test, meta"),
        (__file__, "is a file, not a folder"),
    ],
)
def test_unknown_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_data(spec, input=RGB32)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (InputSpec(4, 8, 8), "images of 4 channels"),
        (InputSpec(1, 8, 8), r"mean has 3 value\(s\), the input has 1 channel"),
        (InputSpec(3, 8, 8, std=(0.1,)), r"std has 1 value\(s\)"),
        (InputSpec(3, 8, 8, std=(0.1, 0.1, 0.0)), "std has a value of 0"),
        (InputSpec(3, 0, 8), "0x8 pixels"),
    ],
)
def test_inputs_that_images_cannot_have(spec: InputSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_data("digits", input=spec)


def test_shares_workers_and_batch_sizes_are_checked() -> None:
    with pytest.raises(UsageError, match=r"2\.0"):
        open_data("digits", input=GREY8, holdout=2.0)
    with pytest.raises(UsageError, match="-1 workers"):
        open_data("digits", input=GREY8, workers=-1)
    with pytest.raises(UsageError, match="batch of 0"):
        next(open_data("digits", input=GREY8).test.batches(0))


def test_batches_do_not_share_memory_with_the_split() -> None:
    split = open_data("digits", input=GREY8).test
    before = split.image(0).clone()
    for x, y in split.batches(64):
        x.zero_()
        y.zero_()
    split.image(0).zero_()
    assert torch.equal(split.image(0), before)
    assert split.labels.sum() > 0
