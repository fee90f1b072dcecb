"""Of the ways to run a block, the one that costs least is taken."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from skipping_nets import CPU, cifar, forced, images_for, place, set_cost
from torch import Tensor

from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.costs import BlockCost
from adaptify.runtime.skipping.model import SkippingModel

MEASURED = BlockCost(fixed=1e-4, row=1e-3, move=1e-5)


def watch(fast: SkippingModel) -> list[list[int]]:
    """For each block, the rows of every batch that its whole branch will be run for."""
    seen: list[list[int]] = []
    for block in fast.blocks:
        own: list[int] = []
        seen.append(own)

        def run(x: Tensor, full=block.programs.full, own: list[int] = own) -> Tensor:  # type: ignore[no-untyped-def]
            own.append(len(x))
            return full(x)

        block.programs.full = run
    return seen


def rows_run(model: GatedModel, cost: BlockCost, gates: Tensor, batches: int = 1) -> list[list[int]]:
    """Rows that the whole branch of each block is run for, batch by batch."""
    fast = SkippingModel(model, CPU)
    set_cost(fast, cost)
    seen = watch(fast)
    with torch.inference_mode():
        for _ in range(batches):
            fast.decide(images_for(model, len(gates)), forced(model, gates))
    return seen


def opened(counts: Sequence[int], rows: int) -> Tensor:
    """Gates (rows, K): the first ones of each column are open."""
    return torch.stack([(torch.arange(rows) < count).float() for count in counts], 1)


@pytest.mark.parametrize(
    ("cost", "count", "ran"),
    [
        (MEASURED, 0, []),
        (MEASURED, 1, [1]),
        # Seven rows and moving them are less than eight rows.
        (MEASURED, 7, [7]),
        (MEASURED, 8, [8]),
        # Moving a row takes twice as long as running it: 5 * 3 ms are more than 8 + 3 * 2 ms, 4 * 3 are less.
        (BlockCost(0.0, 1e-3, 2e-3), 5, [8]),
        (BlockCost(0.0, 1e-3, 2e-3), 4, [4]),
        # The block takes no longer for more rows.
        (BlockCost(1e-3, 0.0, 0.0), 1, [8]),
        # One row costs less than starting the operations that move it.
        (BlockCost(0.0, 1e-6, 0.0), 7, [8]),
    ],
)
def test_rows_are_taken_out_where_that_is_cheaper(cost: BlockCost, count: int, ran: list[int]) -> None:
    model = place(cifar(), "layers")
    gates = torch.ones(8, 4)
    gates[:, 1] = opened([count], 8)[:, 0]
    assert rows_run(model, cost, gates) == [[8], ran, [8], [8]]


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_a_single_image_runs_or_skips(gate: float) -> None:
    model = place(cifar(), "layers")
    gates = torch.tensor([[1.0, gate, 1.0, gate]])
    assert rows_run(model, MEASURED, gates) == [[1], [1] * int(gate)] * 2


# Two sets of blocks: three images run the one, four the other.
TWO_GROUPS = torch.tensor([[1, 1, 0, 1, 0]] * 3 + [[1, 0, 1, 0, 1]] * 4).float()


def test_images_that_run_the_same_blocks_go_through_them_together() -> None:
    model = place(cifar(blocks=2), "masks")
    assert rows_run(model, MEASURED, TWO_GROUPS) == [[4, 3], [3], [4], [3], [4]]


def test_they_go_through_each_block_together_where_groups_start_too_often() -> None:
    model = place(cifar(blocks=2), "masks")
    assert rows_run(model, BlockCost(1.0, 1e-3, 1e-5), TWO_GROUPS) == [[7], [3], [4], [3], [4]]


def test_all_with_the_same_mask_are_not_moved() -> None:
    model = place(cifar(blocks=2), "masks")
    expensive = BlockCost(0.0, 1e-3, 1.0)
    assert rows_run(model, expensive, TWO_GROUPS[:3]) == [[3], [3], [], [3], []]


def half_open(model: GatedModel, rows: int) -> Tensor:
    """Gates (rows, K), every other one open."""
    return (torch.arange(sum(site.gates for site in model.sites)) % 2 == 0).float().expand(rows, -1)


def test_programs_for_some_channels_are_built_where_they_pay() -> None:
    model = place(cifar(), "channels")
    gates = half_open(model, 3)
    # Rows that take nothing lose nothing: the whole block serves under masks, batch after batch.
    cheap, dear = SkippingModel(model, CPU), SkippingModel(model, CPU)
    set_cost(cheap, BlockCost(0.0, 1e-9, 0.0))
    set_cost(dear, BlockCost(0.0, 1e3, 0.0))
    with torch.inference_mode():
        for _ in range(5):
            for fast in (cheap, dear):
                fast.decide(images_for(model, 3), forced(model, gates))
    assert [len(block.book) for block in cheap.blocks] == [0] * 4
    assert [len(block.book) for block in dear.blocks] == [1] * 4


def test_a_program_that_was_built_is_run_instead_of_the_whole() -> None:
    model = place(cifar(), "channels")
    gates = half_open(model, 3)
    fast = SkippingModel(model, CPU)
    set_cost(fast, BlockCost(0.0, 1e3, 0.0))
    images = images_for(model, 3)
    whole: list[int] = []
    with torch.inference_mode():
        wanted = fast.decide(images, forced(model, gates)).logits
        for index, block in enumerate(fast.blocks):

            def run_all(*values: Tensor, index: int = index) -> Tensor:
                whole.append(index)
                return values[0]

            block.programs.full = run_all
            vars(block.programs)["masked"] = run_all
        found = fast.decide(images, forced(model, gates)).logits
    assert whole == []
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_warming_up_builds_what_saves_anything_and_only_then() -> None:
    model = place(cifar(), "channels")
    fast = SkippingModel(model, CPU)
    set_cost(fast, BlockCost(0.0, 1e-9, 0.0))
    gates, other = half_open(model, 3), 1 - half_open(model, 3)
    with torch.inference_mode():
        fast.warm_up(images_for(model, 3), forced(model, gates))
        assert [len(block.book) for block in fast.blocks] == [1] * 4
        fast.decide(images_for(model, 3), forced(model, other))
    assert [len(block.book) for block in fast.blocks] == [1] * 4
