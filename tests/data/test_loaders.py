from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from adaptify.data import Split
from adaptify.data.loaders import Batches, LoaderSource
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec

INPUT = InputSpec(1, 2, 2, mean=(0.0,), std=(1.0,))
IMAGES = torch.arange(40.0).view(10, 1, 2, 2)
LABELS = torch.arange(10) % 3
WHOLE = TensorDataset(IMAGES, LABELS)


class Noisy(Dataset[Any]):
    """Adds noise, as augmentation does; the labels are known as torchvision has it."""

    targets = LABELS.tolist()

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return IMAGES[index] + torch.rand(1, 2, 2), int(LABELS[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(IMAGES, LABELS, strict=True)


def split_of(given: Batches) -> Split:
    source = LoaderSource(given)
    return source.take(torch.arange(len(source.labels)), INPUT)


def read(split: Split, **options: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*split.batches(3, **options), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize(
    "given",
    [
        DataLoader(WHOLE, 4),
        DataLoader(WHOLE, 4, shuffle=True, drop_last=True),
        WHOLE,
        [(IMAGES[:7], LABELS[:7]), (IMAGES[7:], LABELS[7:])],
        DataLoader(Stream(), 4),
        DataLoader(WHOLE, 4, num_workers=2),
    ],
)
def test_all_images_come_in_their_order_whatever_holds_them(given: Batches) -> None:
    split = split_of(given)
    images, labels = read(split)
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)
    assert torch.equal(split.labels, LABELS)
    shuffled, their_labels = read(split, shuffle=True, seed=5)
    assert not torch.equal(shuffled, IMAGES)
    assert torch.equal(shuffled[their_labels.argsort(stable=True)].sort(0).values, IMAGES)
    assert torch.equal(read(split, shuffle=True, seed=5)[0], shuffled)


def test_a_sampler_says_which_images_there_are() -> None:
    chosen = DataLoader(WHOLE, 2, sampler=SubsetRandomSampler([7, 1, 4]))
    assert split_of(chosen).indices.tolist() == [1, 4, 7]
    inner = split_of(DataLoader(Subset(WHOLE, [8, 2]), 2))
    assert torch.equal(read(inner)[0], IMAGES[[8, 2]])
    assert inner.labels.tolist() == LABELS[[8, 2]].tolist()


def test_random_transforms_draw_from_the_seed_alone() -> None:
    split = split_of(DataLoader(Noisy(), 4))
    torch.manual_seed(1)
    first, _ = read(split, seed=3)
    after = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(read(split, seed=3)[0], first)
    assert not torch.equal(read(split, seed=4)[0], first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)


def test_equal_images_are_known_by_their_values() -> None:
    ours, others = split_of(WHOLE), split_of(Subset(WHOLE, [3, 3, 5]))
    assert [ours.identities().index(key) for key in others.identities()] == [3, 3, 5]
    assert ours.image(0).tolist() == [[[0, 85], [170, 255]]]


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({"image": IMAGES}, "yields dict, not images and labels"),
        ((IMAGES.to(torch.uint8), LABELS), "the images of a loader are torch.uint8"),
        ((IMAGES[0], LABELS[:1]), r"are torch.float32 \(1, 2, 2\)"),
        ((IMAGES, LABELS.float()), "the labels of a loader are torch.float32"),
        ((IMAGES, LABELS[:3]), "for 10 images"),
    ],
)
def test_what_is_no_batch_is_refused(batch: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        LoaderSource([batch])


def test_no_images_and_labels_that_change_are_refused() -> None:
    with pytest.raises(UsageError, match="holds no images"):
        LoaderSource([])
    with pytest.raises(UsageError, match="int is no data"):
        LoaderSource(3)  # type: ignore[arg-type]

    class Lying(Noisy):
        targets = ((LABELS + 1) % 3).tolist()

    with pytest.raises(UsageError, match="not the same in every pass"):
        read(split_of(DataLoader(Lying(), 4)))
    larger = LoaderSource(WHOLE).take(torch.arange(2), InputSpec(1, 4, 4, (0.0,), (1.0,)))
    with pytest.raises(UsageError, match=r"\(1, 2, 2\), and not \(1, 4, 4\)"):
        next(larger.batches(2))
