"""Frozen = masked, and cost = counted, over every family; what disappears; plans that are replayed."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
import torch
from channel_nets import Net, analyse, check_removal, conv, kept, random_keep, run, scramble, sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptify.errors import ModelError
from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.masking import mask_channels
from adaptify.graph.network import GraphNetwork
from adaptify.graph.removal_plan import keep_from_json, keep_to_json
from adaptify.graph.sites import find_blocks, find_exits
from adaptify.graph.surgery import remove_blocks, remove_channels
from adaptify.graph.trace import trace
from adaptify.models.cifar_resnet import CifarResNet


def test_families_compute_the_same_without_closed_channels(family):
    channels = find_channels(trace(scramble(copy.deepcopy(family.model)), family.input_shape))
    small = check_removal(channels, random_keep(channels, 0.5))
    # Samples can leave at as many places as before; a shuffle that became a selection adds some.
    before, after = (find_exits(traced, CostModel(traced)) for traced in (channels.traced, small))
    assert len(after) >= len(before)


@pytest.mark.slow
def test_families_bear_extreme_removals(family):
    channels = find_channels(trace(scramble(copy.deepcopy(family.model)), family.input_shape))
    for seed, rate in enumerate((0.97, 0.2, 0.0)):
        check_removal(channels, random_keep(channels, rate, seed))


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("rate", [0.8, 0.4, 0.0])
def test_cifar_networks_compute_the_same_without_closed_channels(shortcut, rate):
    torch.manual_seed(0)
    channels = analyse(CifarResNet(blocks=2, shortcut=shortcut), (3, 32, 32))
    check_removal(channels, random_keep(channels, rate))


def test_option_a_joins_the_stream_of_all_stages():
    channels = analyse(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32))
    stream = {name: size for name, size in sizes(channels).items() if ".conv1" not in name}
    # 16 channels run through; stages two and three bring 16 and 32 of their own.
    assert stream == {"conv1": 16, "layer2.0.conv2": 16, "layer3.0.conv2": 32}


def _residual(**layers: nn.Module) -> Net:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        x = torch.relu(x + m.out_norm(m.out(torch.relu(m.norm(m.inner(x))))))
        return m.head(x.mean((2, 3)))

    return Net(
        forward,
        stem=conv(3, 4),
        inner=conv(4, 6),
        norm=nn.BatchNorm2d(6),
        out=conv(6, 4),
        out_norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, 2),
    )


def test_a_branch_without_channels_leaves_a_constant():
    channels = analyse(_residual())
    small = check_removal(channels, {"inner": kept(6), "stem": kept(4, 0, 2, 3)})
    assert {name for name, _ in small.root.named_children()} == {"stem", "head", "constants"}
    (offset,) = small.root.constants.parameters()
    assert tuple(offset.shape) == (1, 3, 1, 1)


def test_a_block_is_removed_as_a_whole():
    net = scramble(_residual())
    traced = trace(net, (3, 8, 8))
    cost = CostModel(traced)
    blocks = find_blocks(traced, cost)
    small = remove_blocks(traced, blocks)
    assert {name for name, _ in small.root.named_children()} == {"stem", "head"}
    images = torch.randn(2, 3, 8, 8)
    expected = net.head(torch.relu(torch.relu(net.stem(images))).mean((2, 3)))
    assert torch.allclose(run(small, images), expected)
    assert CostModel(small).total == cost.total - sum(block.macs for block in blocks)


def test_all_blocks_of_a_network_can_go(build_family):
    family = build_family("resnet18")
    blocks = find_blocks(family.traced, family.cost)
    small = remove_blocks(family.traced, blocks)
    assert CostModel(small).total == family.cost.total - sum(block.macs for block in blocks)


def test_a_longer_branch_disappears_with_all_its_layers():
    def forward(m: Net, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        y = m.c(torch.relu(m.b_norm(m.b(torch.relu(m.a(x))))))
        return m.head((x + y).mean((2, 3)))

    net = Net(
        forward,
        stem=conv(3, 4),
        a=conv(4, 5),
        b=conv(5, 6),
        b_norm=nn.BatchNorm2d(6),
        c=conv(6, 4),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    # Empty at its end: what led there is dead. Empty at its beginning: what follows is constant.
    for name, size in {"b": 6, "a": 5}.items():
        small = check_removal(channels, {name: kept(size)})
        assert {child for child, _ in small.root.named_children()} == {"stem", "head", "constants"}


def test_an_empty_squeeze_excitation_scales_by_constants():
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.first(x)
        scale = torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3), keepdim=True)))))
        return m.head((x * scale).mean((2, 3)))

    net = Net(forward, first=conv(3, 4), down=conv(4, 2, 1), up=conv(2, 4, 1), head=nn.Linear(4, 2))
    small = check_removal(analyse(net), {"down": kept(2), "first": kept(4, 1, 2)})
    assert not hasattr(small.root, "up")


def test_an_empty_part_of_a_concatenation_is_left_out():
    net = Net(
        lambda m, x: m.head(m.norm(torch.cat([m.a(x), m.c(m.b(x))], 1)).mean((2, 3))),
        a=conv(3, 4),
        b=conv(3, 5),
        c=conv(5, 3),
        norm=nn.BatchNorm2d(7),
        head=nn.Linear(7, 2),
    )
    channels = analyse(net)
    small = check_removal(channels, {"c": kept(3), "a": kept(4, 0, 1)})
    assert not hasattr(small.root, "b")
    # A part whose layers read nothing is constant, and keeps its place.
    small = check_removal(channels, {"b": kept(5), "a": kept(4, 0, 1)})
    assert not hasattr(small.root, "c")


def test_an_empty_stream_leaves_only_what_is_padded():
    channels = analyse(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32))
    with pytest.raises(ModelError, match="nothing connects"):
        check_removal(
            channels, {"conv1": kept(16)} | {n: kept(s) for n, s in sizes(channels).items() if n != "conv1"}
        )


def test_a_chain_cannot_lose_all_channels_of_a_layer():
    net = Net(lambda m, x: m.head(m.a(x).mean((2, 3))), a=conv(3, 4), head=nn.Linear(4, 2))
    with pytest.raises(ModelError, match="nothing connects the output"):
        remove_channels(analyse(net), {"a": kept(4)})


def test_the_given_network_is_left_alone():
    net = scramble(_residual())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    channels = find_channels(trace(net, (3, 8, 8)))
    small = remove_channels(channels, {"inner": kept(6, 0)})
    with torch.no_grad():
        for parameter in small.root.parameters():
            parameter.zero_()
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_result_trains_copies_and_traces_again():
    channels = analyse(_residual())
    small = remove_channels(channels, {"inner": kept(6, 0, 4), "stem": kept(4, 0, 3)})
    images = torch.randn(4, 3, 8, 8)
    assert isinstance(small.root, GraphNetwork)
    twin = copy.deepcopy(small.root).train()
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.1)
    loss = twin(images).square().mean()
    loss.backward()
    optimiser.step()
    assert float(twin(images).square().mean().detach()) < float(loss.detach())
    again = trace(small.root.eval(), (3, 8, 8))
    assert torch.equal(run(again, images), run(small, images))
    # What is left can lose channels again.
    check_removal(find_channels(again), {"inner": kept(2, 1)})
    check_removal(find_channels(small), {"inner": kept(2, 1)})


def test_a_selection_and_a_constant_can_be_pruned_again():
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.shuffle(m.first(x))
        return m.head((x + m.back(m.inner(x))).mean((2, 3)))

    net = Net(
        forward,
        first=conv(3, 8),
        shuffle=nn.ChannelShuffle(2),
        inner=conv(8, 3),
        back=conv(3, 8),
        head=nn.Linear(8, 2),
    )
    once = check_removal(analyse(net), {"first": kept(8, 0, 1, 2, 5, 6), "inner": kept(3)})
    channels = find_channels(once)
    assert sizes(channels) == {"first": 5}
    check_removal(channels, {"first": kept(5, 1, 2, 4)})


def test_a_plan_is_replayed_on_a_new_network():
    channels = analyse(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32))
    keep = random_keep(channels, 0.5)
    small = remove_channels(channels, keep)
    plan = json.loads(json.dumps(keep_to_json(channels, keep)))
    fresh = find_channels(trace(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32)))
    again = remove_channels(fresh, keep_from_json(fresh, plan))
    again.root.load_state_dict(small.root.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(run(again, images), run(small, images))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "is an object"),
        ({"inner": [0, 1]}, "for channel group 'inner'"),
        ({"inner": {"size": 6, "kept": [6]}}, "for channel group 'inner'"),
        ({"inner": {"size": 6, "kept": [1, 0]}}, "for channel group 'inner'"),
        ({"iner": {"size": 6, "kept": [0]}}, "no channel group 'iner'; did you mean 'inner'"),
        ({"inner": {"size": 5, "kept": [0]}}, "has 6 channels"),
        ({"head": {"size": 2, "kept": [0]}}, "cannot be removed: head is the output"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan, message):
    with pytest.raises(ModelError, match=message):
        keep_from_json(analyse(_residual()), plan)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_masks_of_a_small_network_are_exact(data):
    channels = _SMALL
    keep = {
        group.name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=group.size, max_size=group.size)))
        for group in channels.removable
    }
    # Without a stream there is no network; without a branch there is.
    refused = (
        contextlib.nullcontext()
        if keep["stem"].any()
        else pytest.raises(ModelError, match="nothing connects")
    )
    with refused:
        check_removal(channels, keep)


_SMALL = analyse(_residual())


def test_soft_cost_agrees_and_has_a_gradient():
    channels = analyse(_residual())
    cost = ChannelCost(channels)
    keep = random_keep(channels, 0.5)
    soft = {name: mask.double().requires_grad_() for name, mask in keep.items()}
    macs = cost.of_counts(cost.counts(soft))
    assert int(macs.item()) == cost.macs(keep)
    macs.backward()
    # A channel of the inner layer costs a 3x3 filter over each kept stream channel, there and back.
    stream = int(keep["stem"].sum())
    assert soft["inner"].grad is not None
    assert soft["inner"].grad.tolist() == [64 * 9 * 2 * stream] * 6


def test_masking_shares_tensors_and_leaves_the_graph_alone():
    channels = analyse(_residual())
    nodes = [node.name for node in channels.traced.graph.nodes]
    masked = mask_channels(channels, {"inner": kept(6, 0)})
    assert [node.name for node in channels.traced.graph.nodes] == nodes
    assert masked.root.stem.weight is channels.traced.root.stem.weight
