"""Scores worked out by hand, and the choice of channels for a given part of the MACs."""

from __future__ import annotations

import pytest
import torch
from channel_nets import Net, analyse, check_removal, conv, sizes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from adaptify.errors import TargetError, UsageError
from adaptify.graph.channel_cost import ChannelCost
from adaptify.graph.channels import find_channels
from adaptify.graph.importance import CRITERIA, STREAM_WEIGHT, score_channels
from adaptify.graph.selection import TOLERANCE, select_channels
from adaptify.graph.trace import trace
from adaptify.models.cifar_resnet import CifarResNet


def _chain() -> Net:
    net = Net(
        lambda m, x: m.head(torch.relu(m.norm(m.first(x))).mean((2, 3))),
        first=nn.Conv2d(1, 3, 1, bias=False),
        norm=nn.BatchNorm2d(3),
        head=nn.Linear(3, 2, bias=False),
    )
    with torch.no_grad():
        net.first.weight.copy_(torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1, 1))
        net.head.weight.copy_(torch.tensor([[3.0, 0.0, 3.0], [4.0, 0.0, 4.0]]))
        net.norm.weight.copy_(torch.tensor([1.0, -4.0, 1.0]))
    return net.eval()


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        # Filters 1, 2, 6 have mean 3; columns of the head 7, 0, 7 have mean 14 / 3.
        ("l1", [(1 / 3 + 1.5) / 2, (2 / 3 + 0) / 2, (2 + 1.5) / 2]),
        # Squares 1, 4, 36 have mean 41 / 3, those of the columns 25, 0, 25 mean 50 / 3.
        ("l2", [(3 / 41 + 1.5) / 2, (12 / 41 + 0) / 2, (108 / 41 + 1.5) / 2]),
        ("bn_scale", [0.5, 2.0, 0.5]),
        # Distances 1 + 5, 1 + 4, 5 + 4 have mean 20 / 3.
        ("fpgm", [0.9, 0.75, 1.35]),
    ],
)
def test_scores_by_hand(criterion, expected):
    channels = find_channels(trace(_chain(), (1, 4, 4)))
    scores = score_channels(channels, criterion)["first"]
    assert scores.tolist() == pytest.approx(expected)


def test_groups_without_batch_norm_are_scored_by_their_filters():
    net = Net(lambda m, x: m.head(m.a(x).mean((2, 3))), a=conv(3, 4), head=nn.Linear(4, 2))
    channels = analyse(net)
    assert torch.equal(score_channels(channels, "bn_scale")["a"], score_channels(channels, "l2")["a"])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_of_every_group_have_the_same_mean_but_for_streams(criterion, build_family):
    channels = find_channels(build_family("mobilenet_v3_small").traced)
    # Depthwise convolutions and squeeze-and-excitation write channels again, but add nothing to them.
    streams = {"features.2.block.2.0", "features.4.block.3.0", "features.7.block.3.0", "features.9.block.3.0"}
    for name, scores in score_channels(channels, criterion).items():
        assert scores.shape == (channels.group(name).size,)
        assert float(scores.mean()) == pytest.approx(STREAM_WEIGHT if name in streams else 1, abs=1e-4)


def test_a_bias_makes_no_stream():
    net = Net(
        lambda m, x: m.head((m.a(x) + m.bias).mean((2, 3)) + m.b(x).mean((2, 3))),
        a=conv(3, 4),
        b=conv(3, 4),
        head=nn.Linear(4, 2),
    )
    net.bias = nn.Parameter(torch.randn(1, 4, 1, 1))
    assert analyse(net).streams == {"a"}
    net.function = lambda m, x: m.head((m.a(x) + m.bias).mean((2, 3)))
    assert analyse(net).streams == frozenset()


def test_an_unknown_criterion_is_named():
    with pytest.raises(UsageError, match="unknown importance criterion 'bn_scales'; did you mean 'bn_scale'"):
        score_channels(find_channels(trace(_chain(), (1, 4, 4))), "bn_scales")


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_the_cost_of_a_selection_fits_the_target(target, build_family):
    channels = find_channels(build_family("resnet50").traced)
    cost = ChannelCost(channels)
    selection = select_channels(cost, score_channels(channels), target)
    assert abs(selection.macs - target * cost.total) <= TOLERANCE * target * cost.total
    assert selection.round_to == 16
    for name, mask in selection.keep.items():
        assert int(mask.sum()) % 16 == 0
        assert mask.any(), name


def test_the_best_channels_are_kept():
    channels = analyse(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32))
    scores = score_channels(channels)
    selection = select_channels(ChannelCost(channels), scores, 0.5, round_to=1)
    for name, mask in selection.keep.items():
        if not mask.all():
            assert float(scores[name][mask].min()) >= float(scores[name][~mask].max())


def test_streams_go_after_the_channels_inside_blocks():
    channels = analyse(CifarResNet(blocks=2, shortcut="A"), (3, 32, 32))
    scores = score_channels(channels)
    assert channels.streams == {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    keep = select_channels(ChannelCost(channels), scores, 0.5, round_to=1).keep
    for name, mask in keep.items():
        assert bool(mask.all()) == (name in channels.streams), name
    # Where what is inside of the blocks does not suffice, streams become narrower too.
    keep = select_channels(ChannelCost(channels), scores, 0.05, round_to=1).keep
    assert any(not bool(keep[name].all()) for name in channels.streams)
    assert all(bool(mask.any()) for mask in keep.values())


def test_a_selection_is_what_the_pruned_network_costs():
    channels = analyse(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32))
    selection = select_channels(ChannelCost(channels), score_channels(channels), 0.5)
    check_removal(channels, selection.keep)
    assert sizes(channels).keys() == selection.keep.keys()


def test_convolution_groups_count_as_many_channels():
    net = Net(
        lambda m, x: m.head(m.grouped(m.first(x)).mean((2, 3))),
        first=conv(3, 64),
        grouped=conv(64, 64, groups=16),
        head=nn.Linear(64, 2),
    )
    channels = analyse(net)
    selection = select_channels(ChannelCost(channels), score_channels(channels), 0.5)
    # Four channels in a convolution group: sixteen channels are four groups.
    assert int(selection.keep["first"].sum()) == 8


def test_everything_is_kept_at_a_target_of_one():
    channels = analyse(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32))
    selection = select_channels(ChannelCost(channels), score_channels(channels), 1.0)
    assert selection.fraction == 1
    assert all(bool(mask.all()) for mask in selection.keep.values())


def test_an_unreachable_target_names_the_least():
    net = Net(
        lambda m, x: m.tail(m.norm(m.head(m.a(x).mean((2, 3))))),
        a=conv(3, 4),
        head=nn.Linear(4, 64),
        norm=nn.LayerNorm(64),
        tail=nn.Linear(64, 640),
    )
    channels = analyse(net)
    cost = ChannelCost(channels)
    # One filter of `a` (64 * 27), one column of `head` (64), all of `tail` (40,960).
    with pytest.raises(TargetError, match=r"0\.1 of the MACs cannot be reached: the least is .* \(42,752\)"):
        select_channels(cost, score_channels(channels), 0.1)


@pytest.mark.parametrize(("target", "round_to"), [(0, 16), (1.5, 16), (0.5, 0)])
def test_senseless_requests_are_refused(target, round_to):
    channels = find_channels(trace(_chain(), (1, 4, 4)))
    with pytest.raises(UsageError):
        select_channels(ChannelCost(channels), score_channels(channels), target, round_to=round_to)


@settings(max_examples=25, deadline=None)
@given(target=st.floats(0.15, 1), round_to=st.sampled_from([1, 4, 8]), seed=st.integers(0, 1000))
# Where the channels of the lowest score are dear, others have to make room for them.
@example(target=0.98828125, round_to=1, seed=236)
@example(target=0.9653931582056972, round_to=1, seed=581)
def test_any_scores_meet_any_target(target, round_to, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(size, generator=generator) for name, size in sizes(_CIFAR.channels).items()}
    selection = select_channels(_CIFAR, scores, target, round_to=round_to)
    assert abs(selection.macs - target * _CIFAR.total) <= TOLERANCE * target * _CIFAR.total + 1
    assert selection.macs == _CIFAR.macs(selection.keep)


_CIFAR = ChannelCost(analyse(CifarResNet(blocks=1, shortcut="A"), (3, 32, 32)))
