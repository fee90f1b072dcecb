"""Which channels are the same channel, on networks small enough to work out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from channel_nets import Net, analyse, check_removal, conv, kept, random_keep, sizes
from torch import Tensor, nn

from adaptify.errors import ModelError


def positions(channels, group: str, kind: str, target: str) -> list[list[int]]:
    (member,) = [m for m in channels.group(group).of_kind(kind) if m.target == target]
    return member.positions.tolist()


def test_a_chain_has_a_group_for_each_layer_and_a_frozen_output():
    net = Net(
        lambda m, x: m.head(torch.relu(m.norm(m.first(x))).mean((2, 3))),
        first=conv(3, 4),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"first": 4}
    assert [(m.kind, m.target) for m in channels.group("first").members] == [
        ("write", "first"),
        ("carry", "norm"),
        ("read", "head"),
    ]
    assert channels.frozen_reasons == {"head is the output of the network": ("head",)}
    small = check_removal(channels, {"first": kept(4, 1, 3)})
    assert small.root.norm.running_mean.shape == (2,)
    assert small.root.first.out_channels == 2
    assert torch.equal(small.root.head.weight, net.head.weight[:, [1, 3]])


def test_addition_makes_channels_the_same():
    net = Net(
        lambda m, x: m.head((m.a(x) + m.b(x)).mean((2, 3))), a=conv(3, 4), b=conv(3, 4), head=nn.Linear(4, 2)
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 4}
    assert {m.target for m in channels.group("a").of_kind("write")} == {"a", "b"}
    check_removal(channels, {"a": kept(4, 2)})


def test_concatenation_keeps_channels_apart_and_moves_them():
    net = Net(
        lambda m, x: m.head(m.norm(torch.cat([m.a(x), m.b(x)], 1)).mean((2, 3))),
        a=conv(3, 4),
        b=conv(3, 2),
        norm=nn.BatchNorm2d(6),
        head=nn.Linear(6, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 4, "b": 2}
    assert positions(channels, "b", "read", "head") == [[4], [5]]
    check_removal(channels, {"a": kept(4, 0, 3), "b": kept(2, 1)})


@pytest.mark.parametrize("method", ["chunk", "split", "slices", "narrow"])
def test_pieces_of_a_tensor_lose_different_channels(method):
    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        if method == "chunk":
            return x.chunk(2, 1)
        if method == "split":
            return torch.split(x, 3, dim=1)
        if method == "narrow":
            return x.narrow(1, 0, 3), x.narrow(1, 3, 3)
        return x[:, :3], x[:, 3:]

    def forward(m: Net, x: Tensor) -> Tensor:
        left, right = halves(m.first(x))
        return m.head((m.a(left) + m.b(right)).mean((2, 3)))

    channels = analyse(Net(forward, first=conv(3, 6), a=conv(3, 4), b=conv(3, 4), head=nn.Linear(4, 2)))
    assert sizes(channels) == {"first": 3, "first#2": 3, "a": 4}
    assert positions(channels, "first#2", "write", "first") == [[3], [4], [5]]
    check_removal(channels, {"first": kept(3, 1), "first#2": kept(3, 0, 2)})


def test_every_second_channel_becomes_a_selection():
    net = Net(lambda m, x: m.head(m.first(x)[:, ::2].mean((2, 3))), first=conv(3, 6), head=nn.Linear(3, 2))
    channels = analyse(net)
    assert sizes(channels) == {"first": 3, "first#2": 3}
    check_removal(channels, {"first": kept(3, 0, 2), "first#2": kept(3, 0, 1, 2)})


def test_flattened_images_repeat_a_channel_for_each_position():
    net = Net(
        lambda m, x: m.head(F.max_pool2d(m.first(x), 4).view(-1, 16)), first=conv(3, 4), head=nn.Linear(16, 2)
    )
    channels = analyse(net)
    assert positions(channels, "first", "read", "head")[1] == [4, 5, 6, 7]
    check_removal(channels, {"first": kept(4, 1, 2)})


def test_depthwise_convolution_carries_channels_on():
    net = Net(
        lambda m, x: m.head(m.depth(m.first(x)).mean((2, 3))),
        first=conv(3, 4),
        depth=conv(4, 8, groups=4),
        head=nn.Linear(8, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"first": 4}
    assert positions(channels, "first", "write", "depth") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    small = check_removal(channels, {"first": kept(4, 0, 2, 3)})
    assert (small.root.depth.groups, small.root.depth.in_channels, small.root.depth.out_channels) == (3, 3, 6)


def test_grouped_convolution_loses_whole_groups():
    net = Net(
        lambda m, x: m.head(m.grouped(m.first(x)).mean((2, 3))),
        first=conv(3, 6),
        grouped=conv(6, 4, groups=2),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"first": 2}
    assert positions(channels, "first", "write", "first") == [[0, 1, 2], [3, 4, 5]]
    small = check_removal(channels, {"first": kept(2, 1)})
    assert tuple(small.root.grouped.weight.shape) == (2, 3, 3, 3)


def test_transposed_convolution_has_its_axes_the_other_way_round():
    net = Net(
        lambda m, x: m.head(m.up(m.first(x)).mean((2, 3))),
        first=conv(3, 4),
        up=nn.ConvTranspose2d(4, 6, 2, stride=2),
        head=nn.Linear(6, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"first": 4, "up": 6}
    small = check_removal(channels, {"first": kept(4, 0, 1, 3), "up": kept(6, 5)})
    assert tuple(small.root.up.weight.shape) == (3, 1, 2, 2)


def test_grouped_transposed_convolution():
    net = Net(
        lambda m, x: m.head(m.up(m.first(x)).mean((2, 3))),
        first=conv(3, 4),
        up=nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        head=nn.Linear(6, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"first": 2}
    check_removal(channels, {"first": kept(2, 1)})


def test_squeeze_excitation_scales_the_channels_it_looks_at():
    net = Net(
        lambda m, x: m.head(m.excite(m.first(x)).mean((2, 3))),
        first=conv(3, 6),
        excite=_Excite(6, 2),
        head=nn.Linear(6, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"first": 6, "excite.down": 2}
    assert {m.target for m in channels.group("first").of_kind("write")} == {"first", "excite.up"}
    check_removal(channels, {"first": kept(6, 0, 5), "excite.down": kept(2, 1)})


class _Excite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def _shuffle(x: Tensor, groups: int) -> Tensor:
    count, width, height, length = x.size()
    x = x.view(count, groups, width // groups, height, length)
    return x.transpose(1, 2).contiguous().view(count, -1, height, length)


@pytest.mark.parametrize("module", [False, True])
def test_channel_shuffle_becomes_a_selection(module):
    shuffle = nn.ChannelShuffle(2) if module else nn.Identity()

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.first(x)
        return m.head((m.shuffle(x) if module else _shuffle(x, 2)).mean((2, 3)))

    channels = analyse(Net(forward, first=conv(3, 6), shuffle=shuffle, head=nn.Linear(6, 2)))
    assert [p[0] for p in positions(channels, "first", "read", "head")] == [0, 2, 4, 1, 3, 5]
    small = check_removal(channels, {"first": kept(6, 0, 1, 4)})
    assert any(node.target is torch.index_select for node in small.graph.nodes)


def test_a_shuffle_that_fits_stays_as_it_is():
    net = Net(
        lambda m, x: m.head(_shuffle(m.first(x), 2).mean((2, 3))), first=conv(3, 4), head=nn.Linear(4, 2)
    )
    small = check_removal(analyse(net), {"first": kept(4, 0, 2)})
    assert not any(node.target is torch.index_select for node in small.graph.nodes)


def test_channels_padded_with_zeros_join_what_they_are_added_to():
    net = Net(
        lambda m, x: m.head((F.pad(m.a(x), (0, 0, 0, 0, 1, 1)) + m.b(x)).mean((2, 3))),
        a=conv(3, 2),
        b=conv(3, 4),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 2, "b": 2}
    assert positions(channels, "a", "write", "b") == [[1], [2]]
    check_removal(channels, {"a": kept(2, 1), "b": kept(2, 1)})


def test_spatial_padding_is_no_matter_of_channels():
    net = Net(
        lambda m, x: m.head(m.b(F.pad(m.a(x), (1, 2, 0, 1))).mean((2, 3))),
        a=conv(3, 4),
        b=conv(4, 4),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 4, "b": 4}
    check_removal(channels, {"a": kept(4, 3), "b": kept(4, 0, 1)})


@pytest.mark.parametrize("factor", [2, -2])
def test_pixel_shuffle_trades_channels_for_pixels(factor):
    inputs, outputs = (8, 2) if factor > 0 else (2, 8)
    shuffle = nn.PixelShuffle(2) if factor > 0 else nn.PixelUnshuffle(2)
    net = Net(
        lambda m, x: m.head(m.b(m.shuffle(m.a(x))).mean((2, 3))),
        a=conv(3, inputs),
        shuffle=shuffle,
        b=conv(outputs, 3),
        head=nn.Linear(3, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 2, "b": 3}
    check_removal(channels, {"a": kept(2, 1)})


def test_layer_norm_freezes_channels_and_says_so():
    net = Net(
        lambda m, x: m.head(m.b(m.norm(m.a(x.flatten(2).mean(1, keepdim=True))))[:, 0]),
        a=nn.Linear(64, 6),
        norm=nn.LayerNorm(6),
        b=nn.Linear(6, 4),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"b": 4}
    assert channels.group("a").frozen_reason == "norm: LayerNorm normalises over channels"
    with pytest.raises(ModelError, match="LayerNorm normalises over channels"):
        check_removal(channels, {"a": kept(6, 1)})


def test_layer_norm_over_positions_keeps_channels():
    net = Net(
        lambda m, x: m.head(m.norm(m.a(x).flatten(2)).mean(2)),
        a=conv(3, 4),
        norm=nn.LayerNorm(64),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 4}
    check_removal(channels, {"a": kept(4, 0, 2)})


def test_group_norm_loses_whole_groups():
    net = Net(
        lambda m, x: m.head(m.norm(m.a(x)).mean((2, 3))),
        a=conv(3, 6),
        norm=nn.GroupNorm(3, 6),
        head=nn.Linear(6, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 3}
    small = check_removal(channels, {"a": kept(3, 0, 2)})
    assert (small.root.norm.num_groups, small.root.norm.num_channels) == (2, 4)


class _Mystery(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumprod(x, 1)


def test_an_unknown_operation_freezes_what_enters_it_and_is_named():
    net = Net(
        lambda m, x: m.head(m.b(m.mystery(m.a(x))).mean((2, 3))),
        a=conv(3, 4),
        mystery=_Mystery(),
        b=conv(4, 3),
        head=nn.Linear(3, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"b": 3}
    assert channels.group("a").frozen_reason == "mystery.cumprod: cumprod is not known to keep channels apart"
    check_removal(channels, {"b": kept(3, 2)})


def test_softmax_over_channels_freezes_and_over_positions_does_not():
    def net(axis: int) -> Net:
        return Net(
            lambda m, x: m.head(m.b(m.a(x).flatten(2).softmax(axis)).mean(2)),
            a=conv(3, 4),
            b=nn.Conv1d(4, 3, 1),
            head=nn.Linear(3, 2),
        )

    assert sizes(analyse(net(1))) == {"b": 3}
    channels = analyse(net(2))
    assert sizes(channels) == {"a": 4, "b": 3}
    check_removal(channels, {"a": kept(4, 1, 3)})


def test_one_map_for_all_channels_is_not_a_channel_of_theirs():
    net = Net(
        lambda m, x: m.head((m.a(x) * torch.sigmoid(m.spot(x))).mean((2, 3))),
        a=conv(3, 4),
        spot=conv(3, 1),
        head=nn.Linear(4, 2),
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 4}
    assert channels.group("spot").frozen_reason is not None
    check_removal(channels, {"a": kept(4, 1)})


def test_a_parameter_of_the_graph_goes_with_its_channels():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = conv(3, 4), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.a(x) * self.scale).mean((2, 3)))

    channels = analyse(Scaled())
    assert [(m.kind, m.target) for m in channels.group("a").members][:2] == [
        ("write", "a"),
        ("attribute", "scale"),
    ]
    small = check_removal(channels, {"a": kept(4, 0, 3)})
    assert tuple(small.root.scale.shape) == (2, 1, 1)


def test_tokens_put_before_others_share_their_channels():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.b, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 5), nn.Linear(5, 2)
            self.token = nn.Parameter(torch.rand(1, 1, 4))
            self.place = nn.Parameter(torch.rand(1, 5, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
            return self.head(torch.relu(self.b(x))[:, 0])

    channels = analyse(Tokens())
    assert sizes(channels) == {"patch": 4, "b": 5}
    small = check_removal(channels, {"patch": kept(4, 1, 2), "b": kept(5, 0)})
    assert tuple(small.root.place.shape) == (1, 5, 2)


def test_a_scale_computed_from_the_number_of_channels_stays_what_it_was():
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.head((y * y.shape[1] ** -0.5).mean((2, 3)))

    channels = analyse(Net(forward, a=conv(3, 4), head=nn.Linear(4, 2)))
    check_removal(channels, {"a": kept(4, 0)})


def test_a_layer_called_twice_has_one_set_of_channels():
    net = Net(
        lambda m, x: m.head(m.b(m.b(m.a(x))).mean((2, 3))), a=conv(3, 4), b=conv(4, 4), head=nn.Linear(4, 2)
    )
    channels = analyse(net)
    assert sizes(channels) == {"a": 4}
    check_removal(channels, {"a": kept(4, 0, 2)})


def test_tied_weights_stay_tied():
    net = Net(
        lambda m, x: m.head((m.c(m.a(x)) + m.d(m.b(x))).mean((2, 3))),
        a=conv(3, 4),
        b=conv(3, 4),
        c=conv(4, 5),
        d=conv(4, 5),
        head=nn.Linear(5, 2),
    )
    net.d.weight = net.c.weight
    channels = analyse(net)
    assert sizes(channels) == {"a": 4, "c": 5}
    small = check_removal(channels, {"a": kept(4, 0, 3), "c": kept(5, 1, 2)})
    assert small.root.c.weight is small.root.d.weight


def test_gated_halves_meet_channel_by_channel():
    net = Net(lambda m, x: m.head(F.glu(m.a(x), 1).mean((2, 3))), a=conv(3, 8), head=nn.Linear(4, 2))
    channels = analyse(net)
    assert positions(channels, "a", "write", "a") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    check_removal(channels, {"a": kept(4, 3)})


def test_channels_that_a_view_lays_across_axes_are_frozen():
    net = Net(
        lambda m, x: m.head(m.b(m.a(x).view(-1, 2, 2, 64).flatten(0, 1)).mean(2).view(-1, 6)),
        a=conv(3, 4),
        b=nn.Conv1d(2, 3, 1),
        head=nn.Linear(6, 2),
    )
    channels = analyse(net)
    check_removal(channels, random_keep(channels, 0.5))


def test_names_and_groups_are_the_same_every_time():
    def build() -> Net:
        return Net(
            lambda m, x: m.head(torch.cat([m.a(x), m.b(x) + m.c(x)], 1).mean((2, 3))),
            a=conv(3, 4),
            b=conv(3, 3),
            c=conv(3, 3),
            head=nn.Linear(7, 2),
        )

    assert sizes(analyse(build())) == sizes(analyse(build())) == {"a": 4, "b": 3}
