"""Packed where that is faster, plain where it is not, and the same result either way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adaptify.runtime import packing
from adaptify.runtime.fuse import PackedConv2d, can_fuse
from adaptify.runtime.packing import Packing, PackingTable

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this PyTorch lacks the operations")

SHAPE = (2, 8, 6, 6)
CHOICES = [Packing(single, many) for single in (False, True) for many in (False, True)]


class Chosen(PackingTable):
    """A table that knows already."""

    def __init__(self, packing: Packing) -> None:
        super().__init__(Path("is not read"))
        self.packing = packing

    def look_up(self, key: str, measure: Callable[[], Packing]) -> Packing:
        return self.packing


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_whatever_is_packed_computes_the_same(choice: Packing, groups: int, relu: bool, add: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, stride=1, padding=1, groups=groups).requires_grad_(False)
    packed = PackedConv2d(conv, SHAPE, relu=relu, add=add, table=Chosen(choice))
    for count in (1, 3):
        x = torch.randn(count, *SHAPE[1:]).contiguous(memory_format=torch.channels_last)
        other = torch.randn_like(x)
        wanted = conv(x) + other if add else conv(x)
        kept = x.clone()
        with torch.inference_mode():
            found = packed(x, other) if add else packed(x)
        assert torch.allclose(found, wanted.relu() if relu else wanted, atol=1e-5)
        assert torch.equal(x, kept)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[float, float]]:
    """What plain and packed take, by images in a batch: it is said here, not measured."""
    told: dict[int, tuple[float, float]] = {}

    def interleaved(functions: list[Callable[[], Tensor]], rounds: int, warmup: int) -> list[list[float]]:
        counts = {len(function()) for function in functions}
        return [[value] * rounds for value in told[counts.pop()]]

    monkeypatch.setattr(packing, "interleaved", interleaved)
    return told


@pytest.mark.parametrize(
    ("one", "many", "wanted"),
    [
        ((2e-5, 5e-5), (9e-5, 7e-5), Packing(single=False, many=True)),
        ((5e-5, 2e-5), (7e-5, 9e-5), Packing(single=True, many=False)),
        ((2e-5, 5e-5), (6e-5, 9e-5), Packing(single=False, many=False)),
        # Where there is much to compute, nothing more is measured.
        ((6e-4, 7e-4), (9e-3, 1e-2), Packing(single=True, many=True)),
        ((2e-5, 5e-5), (6e-4, 7e-4), Packing(single=False, many=True)),
    ],
)
def test_the_faster_way_is_taken(
    one: tuple[float, float],
    many: tuple[float, float],
    wanted: Packing,
    seconds: dict[int, tuple[float, float]],
    tmp_path: Path,
) -> None:
    seconds.update({1: one, packing.MANY: many})
    conv = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    with PackingTable(tmp_path / "packing.json") as table:
        packed = PackedConv2d(conv, SHAPE, relu=True, add=False, table=table)
    assert (packed.single is not None, packed.many is not None) == (wanted.single, wanted.many)
    assert (packed.weight is None) == (wanted == Packing())
    assert list(json.loads((tmp_path / "packing.json").read_text())["costs"].values()) == [
        {"single": wanted.single, "many": wanted.many}
    ]
    seconds.clear()  # what is known is not measured again
    with PackingTable(tmp_path / "packing.json") as table:
        again = PackedConv2d(conv, SHAPE, relu=True, add=False, table=table)
    assert (again.single is None, again.many is None) == (packed.single is None, packed.many is None)


def test_kinds_of_convolutions_are_told_apart(
    seconds: dict[int, tuple[float, float]], tmp_path: Path
) -> None:
    seconds.update({1: (1e-5, 2e-5), packing.MANY: (2e-5, 1e-5)})
    convs = [
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
    ]
    with PackingTable(tmp_path / "packing.json") as table:
        for conv in convs:
            for relu in (False, True):
                PackedConv2d(conv.requires_grad_(False), SHAPE, relu=relu, add=False, table=table)
        PackedConv2d(convs[0], (2, 8, 7, 7), relu=True, add=False, table=table)
        PackedConv2d(convs[0], (5, 8, 7, 7), relu=True, add=False, table=table)
    assert len(json.loads((tmp_path / "packing.json").read_text())["costs"]) == 9
