"""Whether a convolution is faster with packed weights: measured on this machine, once for each kind.

Packed weights pay where there is much to compute. A convolution of a small map, one image at a time, is
faster without: to start the operation for packed weights takes longer than PyTorch's own small kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.runtime.machine import MachineTable, cost_key
from adaptify.runtime.timing import interleaved

MANY = 8
"""The batch that stands for all batches of more than one image."""

_CLEAR_S = 5e-4  # above this starting an operation takes nothing, and packing has always paid
_REPEATS = 7

Way = Callable[..., Tensor]


@dataclass(frozen=True)
class Packing:
    """For which batches weights are packed.

    Attributes:
        single: For one image.
        many: For more.
    """

    single: bool = True
    many: bool = True


ALWAYS = Packing()


class PackingTable(MachineTable[Packing]):
    """For which batches to pack the weights of a convolution, by what it is."""

    file = "packing.json"

    @staticmethod
    def parse(value: Mapping[str, Any]) -> Packing:
        """Make a choice of its JSON."""
        return Packing(bool(value["single"]), bool(value["many"]))

    def of(
        self, conv: nn.Conv2d, shape: tuple[int, ...], ends: tuple[bool, bool], packed: Way, plain: Way
    ) -> Packing:
        """What is the fastest for a convolution.

        Args:
            conv: The convolution.
            shape: Shape (N, C, H, W) of its input, for any N.
            ends: Whether a second tensor is added, and whether a ReLU follows.
            packed: The convolution with packed weights and what follows: (input, what is added) -> output.
            plain: The same without.
        """
        layer = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        text = f"{layer} {conv.dilation} {conv.groups} {conv.bias is not None} {shape[1:]} {ends}"
        return self.look_up(
            cost_key(text, torch.device("cpu")), partial(_measure, shape, ends[0], packed, plain)
        )


@torch.inference_mode()
def _measure(shape: tuple[int, ...], add: bool, packed: Way, plain: Way) -> Packing:
    """Run both ways in turns; the fastest run of each counts: whatever else is going on only adds to it."""
    pays: list[bool] = []
    for count in (1, MANY):
        x = torch.rand(count, *shape[1:]).contiguous(memory_format=torch.channels_last)
        other = plain(x, None) if add else None
        theirs, ours = interleaved([partial(plain, x, other), partial(packed, x, other)], 2, 1)
        if min(theirs) > _CLEAR_S:
            return Packing(*pays, *[True] * (2 - len(pays)))
        more = interleaved([partial(plain, x, other), partial(packed, x, other)], _REPEATS, 0)
        pays.append(min(*ours, *more[1]) < min(*theirs, *more[0]))
    return Packing(*pays)
