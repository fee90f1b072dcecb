"""Networks in pieces: one after the other they are the network, and a block can do without its branch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from channel_nets import Net, conv, run
from families import Family, scramble
from torch import Tensor, nn

from adaptify.graph.adapters import ChannelGather
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.pieces import (
    Piece,
    cut_at_blocks,
    end_of,
    end_of_first_layer,
    head_of,
    tail_of,
    without_branch,
)
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import BlockSite, find_blocks, find_exits, first_layer
from adaptify.graph.surgery import remove_blocks, remove_channels
from adaptify.graph.trace import Traced, trace
from adaptify.models.cifar_resnet import CifarResNet


def run_in_row(parts: Sequence[Traced], images: Tensor) -> Tensor:
    for part in parts:
        images = run(part, images)
    return images


def names_of(pieces: Sequence[Piece]) -> list[str | None]:
    return [piece.block.name if piece.block is not None else None for piece in pieces]


def resnet(shortcut: str = "B") -> Traced:
    torch.manual_seed(0)
    return trace(scramble(CifarResNet(blocks=2, shortcut=shortcut)), (3, 16, 16))


def images(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_pieces_in_a_row_are_the_network(family: Family) -> None:
    blocks = find_blocks(family.traced, family.cost)
    pieces = cut_at_blocks(family.traced, blocks)
    assert [name for name in names_of(pieces) if name is not None] == [block.name for block in blocks]
    assert torch.equal(run_in_row([piece.traced for piece in pieces], family.images), family.logits)


def test_pieces_take_batches_of_any_size() -> None:
    traced = resnet()
    pieces = cut_at_blocks(traced, find_blocks(traced, CostModel(traced)))
    for rows in (1, 5):
        found = run_in_row([piece.traced for piece in pieces], images(rows))
        assert torch.equal(found, run(traced, images(rows)))


def test_each_piece_takes_what_the_one_before_it_yields() -> None:
    traced = resnet()
    value = images()
    for piece in cut_at_blocks(traced, find_blocks(traced, CostModel(traced))):
        assert tuple(value.shape[1:]) == piece.traced.input_shape
        value = run(piece.traced, value)


def test_pieces_share_the_tensors_of_the_network() -> None:
    traced = resnet()
    state = traced.root.state_dict()
    seen = set()
    for piece in cut_at_blocks(traced, find_blocks(traced, CostModel(traced))):
        for name, tensor in piece.traced.root.state_dict().items():
            assert tensor.data_ptr() == state[name].data_ptr()
            seen.add(name)
    assert seen == set(state)


def test_blocks_that_are_not_asked_for_join_what_is_around_them() -> None:
    traced = resnet()
    blocks = find_blocks(traced, CostModel(traced))
    assert len(blocks) == 6
    pieces = cut_at_blocks(traced, [blocks[1], blocks[2], blocks[4]])
    assert names_of(pieces) == [None, "layer1.1", "layer2.0", None, "layer3.0", None]
    assert torch.equal(run_in_row([piece.traced for piece in pieces], images()), run(traced, images()))
    assert names_of(cut_at_blocks(traced, [])) == [None]


def test_other_nodes_can_be_cut_after_too(build_family) -> None:
    family = build_family("mobilenet_v3_small")
    blocks = find_blocks(family.traced, family.cost)
    ends = {end_of(family.traced, block).name for block in blocks}
    known = ends | {block.source for block in blocks}
    also = [site.node for site in find_exits(family.traced, family.cost) if site.node not in known]
    # Exits lie outside of blocks; the sources of blocks are cut after anyway.
    assert len(also) > 5
    pieces = cut_at_blocks(family.traced, blocks, [*also, blocks[0].source])
    assert len(pieces) > len(cut_at_blocks(family.traced, blocks)) + 5
    assert torch.equal(run_in_row([piece.traced for piece in pieces], family.images), family.logits)


def test_a_node_that_ends_a_block_leaves_it_a_block() -> None:
    traced = resnet()
    blocks = find_blocks(traced, CostModel(traced))
    plain = cut_at_blocks(traced, blocks)
    assert names_of(cut_at_blocks(traced, blocks, [block.source for block in blocks])) == names_of(plain)


def test_without_their_branches_blocks_are_what_removing_them_leaves(family: Family) -> None:
    blocks = find_blocks(family.traced, family.cost)
    if not blocks:
        pytest.skip("no residual blocks")
    gone = {block.name for block in (*blocks[::3], blocks[-1])}
    parts = [
        without_branch(piece.traced, piece.block)
        if piece.block is not None and piece.block.name in gone
        else piece.traced
        for piece in cut_at_blocks(family.traced, blocks)
    ]
    removed = remove_blocks(family.traced, [block for block in blocks if block.name in gone])
    wanted = run(removed, family.images)
    torch.testing.assert_close(run_in_row(parts, family.images), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_what_is_left_of_a_block_is_its_shortcut_and_the_relu_behind_it(shortcut: str) -> None:
    traced = resnet(shortcut)
    pieces = cut_at_blocks(traced, find_blocks(traced, CostModel(traced)))
    (plain,) = (piece for piece in pieces if piece.block is not None and piece.block.name == "layer2.1")
    (wider,) = (piece for piece in pieces if piece.block is not None and piece.block.name == "layer2.0")
    for piece in (plain, wider):
        assert piece.block is not None
        x = torch.randn(2, *piece.traced.input_shape, generator=torch.Generator().manual_seed(0))
        rest = without_branch(piece.traced, piece.block)
        block = traced.root.get_submodule(piece.block.name)
        with torch.no_grad():
            assert torch.equal(run(rest, x), F.relu(block.shortcut(x)))
        names = {str(node.target) for node in rest.graph.nodes if node.op == "call_module"}
        assert not any("conv1" in name or "conv2" in name for name in names)
        # The piece itself is whole.
        assert float((run(piece.traced, x) - run(rest, x)).abs().max()) > 0.1


def test_the_first_layer_and_the_rest_of_a_block_are_the_block(family: Family) -> None:
    blocks = find_blocks(family.traced, family.cost)
    if not blocks:
        pytest.skip("no residual blocks")
    some = {block.name for block in (*blocks[:4], *blocks[4::6])}
    for piece in cut_at_blocks(family.traced, blocks):
        if piece.block is None or piece.block.name not in some:
            continue
        first = first_layer(family.traced, piece.block, family.cost).name
        end = end_of_first_layer(piece.traced, first)
        assert end is not None
        head, tail = head_of(piece.traced, end), tail_of(piece.traced, end)
        x = torch.randn(2, *piece.traced.input_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            value = run(head, x)
            found = compile_graph(tail.graph)(tail.root, x, value)
        assert torch.equal(found, run(piece.traced, x))
        # Of what costs anything, the first layer alone runs ahead, and it does not run again.
        inside = [node.name for node in head.graph.nodes if node.op not in ("placeholder", "output")]
        assert [name for name in inside if family.cost.macs[name]] == [first]
        assert first not in {node.name for node in tail.graph.nodes}


def test_what_follows_the_first_layer_can_select_its_channels() -> None:
    traced = resnet()
    piece = cut_at_blocks(traced, find_blocks(traced, CostModel(traced)))[1]
    assert piece.block is not None
    end = end_of_first_layer(piece.traced, "layer1_0_conv1")
    assert end is not None
    assert end.op != "call_module" or str(end.target) != "layer1.0.conv1"
    channels = find_channels(piece.traced)
    keep = torch.arange(16) % 3 == 0
    small = remove_channels(channels, {"layer1.0.conv1": keep})
    tail = tail_of(small, end, ChannelGather(16, 1, keep.nonzero().flatten().tolist()))
    x = torch.randn(2, *piece.traced.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        value = run(head_of(piece.traced, end), x)
        assert value.shape[1] == 16
        found = compile_graph(tail.graph)(tail.root, x, value)
        torch.testing.assert_close(found, run(small, x), rtol=1e-5, atol=1e-6)


def test_what_changes_a_tensor_in_place_unread_runs_with_the_first_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner, self.outer = nn.BatchNorm2d(4), conv(4, 6), conv(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            y.relu_()
            z = self.inner(y)
            z.relu_()
            return x + self.outer(z)

    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    traced = trace(nn.Sequential(conv(3, 4), Block(), head).eval(), (3, 8, 8))
    cost = CostModel(traced)
    (block,) = find_blocks(traced, cost)
    piece = cut_at_blocks(traced, [block])[1].traced
    end = end_of_first_layer(piece, first_layer(traced, block, cost).name)
    assert end is not None
    head_part, tail = head_of(piece, end), tail_of(piece, end)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        value = run(head_part, x)
        assert torch.equal(compile_graph(tail.graph)(tail.root, x, value), run(piece, x))


def test_a_block_can_begin_at_the_images() -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net = Net(lambda net, x: net.head(x + net.inner(x).sigmoid()), inner=conv(4, 4), head=head)
    traced = trace(net.eval(), (4, 8, 8))
    source, inner, branch, add = (node.name for node in list(traced.graph.nodes)[:4])
    blocks = [BlockSite("", source, branch, source, add, macs=1, shortcut_macs=0)]
    assert inner == "inner"
    batch = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    before = batch.clone()
    pieces = cut_at_blocks(traced, blocks)
    assert [piece.block for piece in pieces] == [*blocks, None]
    assert torch.equal(run_in_row([piece.traced for piece in pieces], batch), run(traced, batch))
    assert torch.equal(batch, before)
