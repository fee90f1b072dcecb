"""Decoupled blocks: the same function, channels of their own, and what surgery makes of them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from channel_nets import Net, analyse, check_removal, conv, kept, random_keep, run, scramble, sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adaptify.errors import ModelError
from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.copying import meta_copy
from adaptify.graph.cost import CostModel
from adaptify.graph.decouple import decouple, find_adapters, find_block_groups
from adaptify.graph.importance import score_channels
from adaptify.graph.masking import mask_channels
from adaptify.graph.sites import ADDITIONS, find_blocks, find_exits
from adaptify.graph.surgery import remove_channels
from adaptify.graph.trace import Traced, trace
from adaptify.models.cifar_resnet import CifarResNet


def decoupled(model: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> Channels:
    """Channels of `model` with all its blocks decoupled."""
    return find_channels(decouple(trace(scramble(model), shape)))


def flops(traced: Traced) -> int:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            meta_copy(traced.root).eval()(torch.empty(1, *traced.input_shape))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops()


def test_families_compute_the_same_with_blocks_of_their_own(family):
    traced = trace(scramble(copy.deepcopy(family.model)), family.input_shape)
    apart = decouple(traced)
    blocks = find_adapters(apart)
    assert len(blocks) == len(find_blocks(traced, CostModel(traced)))
    if not blocks:
        assert apart.graph.python_code("self").src == traced.graph.python_code("self").src
        return
    assert torch.equal(run(apart, family.images), run(traced, family.images))
    assert apart.root.state_dict().keys() == family.model.state_dict().keys()
    before, after = ({s.name for s in find_exits(t, CostModel(t))} for t in (traced, apart))
    assert before == after
    channels = find_channels(apart)
    groups = find_block_groups(channels)
    # Blocks add channels of their own. What they read may be normalised over, what they add not be known.
    outputs = [name for ends in groups.values() for name in ends.output]
    assert len(outputs) == len(set(outputs)) >= len(blocks) // 2
    small = check_removal(channels, random_keep(channels, 0.5))
    assert flops(small) == 2 * CostModel(small).total


def test_ptflops_counts_the_same(build_family):
    ptflops = pytest.importorskip("ptflops")
    family = build_family("resnet18")
    channels = find_channels(decouple(family.traced))
    small = remove_channels(channels, random_keep(channels, 0.4))
    macs, _ = ptflops.get_model_complexity_info(
        small.root,
        family.input_shape,
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        ost=io.StringIO(),
    )
    # ptflops counts one for each bias that is added: there is one, of the classifier.
    assert macs == CostModel(small).total + 1000


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_networks_decouple(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size = 224 if "vit" in name else 64
    traced = trace(scramble(timm.create_model(name)), (3, size, size))
    apart = decouple(traced)
    assert find_adapters(apart)
    images = torch.randn(2, *traced.input_shape)
    assert torch.equal(run(apart, images), run(traced, images))
    channels = find_channels(apart)
    check_removal(channels, random_keep(channels, 0.5))


class Block(nn.Module):
    """relu(f(x) + shortcut(x)), f two convolutions; in place where that is safe."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.norm = conv(inputs, 5), nn.BatchNorm2d(5)
        self.last, self.last_norm = conv(5, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.last_norm(self.last(self.relu(self.norm(self.first(x)))))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


def stages() -> Net:
    """Two stages of two blocks; the second begins with a projection."""
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.head(m.d(m.c(m.b(m.a(torch.relu(m.stem(x)))))).mean((2, 3))),
        stem=conv(3, 4),
        a=Block(4, 4),
        b=Block(4, 4),
        c=Block(4, 6),
        d=Block(6, 6),
        head=nn.Linear(6, 2),
    )


def test_every_block_has_groups_of_its_own():
    channels = decoupled(stages())
    groups = find_block_groups(channels)
    assert list(groups) == ["a", "b", "c", "d"]
    assert groups["a"].input == ("adapters.a.gather",)
    assert groups["a"].output == ("a.last",)
    assert groups["a"].shortcut_output == ()
    assert groups["c"].shortcut_input == ("adapters.c.shortcut_gather",)
    assert groups["c"].shortcut_output == ("c.shortcut.0",)
    inner = {f"{name}.first" for name in groups}
    ends = {name for block in groups.values() for end in vars(block).values() for name in end}
    # What is left are the streams, under the names of what writes them first.
    assert set(sizes(channels)) - inner - ends == {"stem", "adapters.c.scatter"}


def test_a_stream_keeps_what_any_block_reads():
    channels = decoupled(stages())
    keep = {"adapters.a.gather": kept(4, 0), "adapters.b.gather": kept(4, 0, 1)}
    assert channels.complete(keep).keys() == keep.keys()
    keep |= {"adapters.c.gather": kept(4, 1), "adapters.c.shortcut_gather": kept(4, 1)}
    completed = channels.complete(keep)
    # Channels 2 and 3 are read by nobody: no block adds to them any more.
    assert completed["stem"].tolist() == [True, True, False, False]
    assert completed["a.last"].tolist() == completed["b.last"].tolist() == [True, True, False, False]
    small = check_removal(channels, keep)
    assert small.root.stem.out_channels == 2
    assert small.root.a.first.in_channels == 1


def test_a_channel_closed_in_the_stream_is_closed_in_all_blocks():
    channels = decoupled(stages())
    completed = channels.complete({"stem": kept(4, 0, 1, 2)})
    ends = ["adapters.a.gather", "a.last", "adapters.b.gather", "b.last", "adapters.c.gather"]
    assert all(completed[name].tolist() == [True, True, True, False] for name in ends)
    check_removal(channels, {"stem": kept(4, 0, 1, 2)})


def test_completing_does_not_change_what_is_computed():
    channels = decoupled(stages())
    keep = random_keep(channels, 0.5)
    del keep["stem"], keep["adapters.c.scatter"]
    as_given = Channels(channels.traced, channels.propagation, channels.movements, channels.grouping)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    masked = run(mask_channels(channels, keep), images)
    assert torch.allclose(run(mask_channels(as_given, keep), images), masked, atol=1e-6)


@pytest.mark.parametrize("block", ["a", "b", "d"])
def test_a_dead_block_disappears(block):
    channels = decoupled(stages())
    size = 6 if block == "d" else 4
    small = check_removal(channels, {f"{block}.last": kept(size)})
    assert not hasattr(small.root, block)
    assert not hasattr(small.root, "adapters")
    assert not hasattr(small.root, "constants")
    additions = [node for node in small.graph.nodes if node.target in ADDITIONS]
    assert len(additions) == 3
    # The ReLU that would repeat the one before is gone, so that the network trains.
    small.root.train()(torch.randn(2, 3, 8, 8)).sum().backward()


def test_a_stage_of_dead_blocks_leaves_what_the_next_stage_reads():
    channels = decoupled(stages())
    keep = {"a.last": kept(4), "b.last": kept(4)}
    small = check_removal(channels, keep)
    assert {name for name, _ in small.root.named_children()} == {"stem", "c", "d", "head"}
    keep |= {"adapters.c.gather": kept(4, 3), "adapters.c.shortcut_gather": kept(4, 0)}
    small = check_removal(channels, keep)
    assert small.root.stem.out_channels == 2
    assert small.root.c.first.in_channels == 1


def test_a_projection_is_closed_by_itself():
    channels = decoupled(stages())
    small = check_removal(channels, {"c.shortcut.0": kept(6)})
    assert not hasattr(small.root.c, "shortcut")
    small = check_removal(channels, {"c.shortcut.0": kept(6, 1, 2), "c.last": kept(6, 0, 5)})
    assert small.root.c.shortcut[0].out_channels == small.root.c.last.out_channels == 2
    # Nothing is left of the stream when both are closed.
    with pytest.raises(ModelError, match="nothing connects"):
        remove_channels(channels, {"c.shortcut.0": kept(6), "c.last": kept(6)})


def test_a_block_that_reads_nothing_adds_a_constant():
    channels = decoupled(stages())
    small = check_removal(channels, {"adapters.b.gather": kept(4)})
    assert not list(small.root.b.parameters())
    (constant,) = small.root.constants.parameters()
    assert constant.shape[:2] == (1, 4)
    # The same in front of a projection, whose branch then brings the size.
    check_removal(channels, {"adapters.c.shortcut_gather": kept(4), "c.last": kept(6, 1)})
    check_removal(channels, {"adapters.c.gather": kept(4), "c.shortcut.0": kept(6, 1)})


def test_additions_join_their_scatters():
    small = check_removal(decoupled(stages()), {"a.last": kept(4, 1, 3)})
    (joined,) = (node for node in small.graph.nodes if str(node.target).startswith("adapters."))
    assert len(joined.args) == 2
    assert tuple(joined.args[0].meta["shape"]) == (2, 2, 8, 8)
    assert {block.block for block in find_adapters(small)} == {"a"}


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_masks_of_decoupled_blocks_are_exact(data):
    channels = _STAGES
    keep = {
        group.name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=group.size, max_size=group.size)))
        for group in channels.removable
    }
    small = check_or_refuse(channels, keep)
    if small is not None:
        again = find_channels(trace(small.root.eval(), (3, 8, 8)))
        check_or_refuse(again, random_keep(again, 0.7))


def check_or_refuse(channels: Channels, keep: dict[str, Tensor]) -> Traced | None:
    """Remove, if the output still depends on the input: streams may be empty, or constant."""
    masked = mask_channels(channels, keep)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    one, other = (run(masked, part) for part in images.chunk(2))
    if not torch.allclose(one, other, atol=1e-6):
        return check_removal(channels, keep)
    with pytest.raises(ModelError, match="nothing connects"):
        remove_channels(channels, keep)
    return None


_STAGES = decoupled(stages())


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("rate", [0.8, 0.4])
def test_cifar_networks_lose_channels_block_by_block(shortcut, rate):
    torch.manual_seed(0)
    channels = decoupled(CifarResNet(blocks=2, shortcut=shortcut), (3, 32, 32))
    check_removal(channels, random_keep(channels, rate))


def test_the_result_trains_and_traces_again():
    channels = decoupled(stages())
    small = remove_channels(channels, random_keep(channels, 0.6))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    again = trace(small.root.eval(), (3, 8, 8))
    assert torch.equal(run(again, images), run(small, images))
    assert find_adapters(again) == find_adapters(small)
    network = small.root.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = network(images).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert losses[-1] < losses[0]


def test_tokens_are_decoupled_along_the_last_axis():
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.stem(x).flatten(2).transpose(1, 2)
        x = x + m.up(F.gelu(m.down(x)))
        return m.head(x.mean(1))

    net = Net(forward, stem=conv(3, 6), down=nn.Linear(6, 4), up=nn.Linear(4, 6), head=nn.Linear(6, 2))
    channels = decoupled(net)
    (ends,) = find_block_groups(channels).values()
    assert ends.output == ("up",)
    small = check_removal(channels, {ends.input[0]: kept(6, 1, 2), "up": kept(6, 0, 5)})
    assert small.root.down.in_features == small.root.up.out_features == 2


def test_a_block_that_writes_over_its_input_through_a_view_stays_coupled():
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head((x + m.last(m.relu(x.flatten(2)).unflatten(2, (8, 8)))).mean((2, 3)))

    net = Net(forward, stem=conv(3, 4), relu=nn.ReLU(inplace=True), last=conv(4, 4), head=nn.Linear(4, 2))
    apart = decouple(trace(scramble(net), (3, 8, 8)))
    assert not find_adapters(apart)
    assert "writes over its input" in apart.notes[-1]


def test_a_block_begins_after_what_is_written_over():
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head((x + m.last(m.relu(x))).mean((2, 3)))

    net = Net(forward, stem=conv(3, 4), relu=nn.ReLU(inplace=True), last=conv(4, 4), head=nn.Linear(4, 2))
    apart = decouple(trace(scramble(net), (3, 8, 8)))
    assert find_adapters(apart)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(run(apart, images), net(images))


def test_only_the_given_blocks_are_decoupled():
    traced = trace(scramble(stages()), (3, 8, 8))
    blocks = find_blocks(traced, CostModel(traced))
    apart = decouple(traced, blocks[1:2])
    assert [block.block for block in find_adapters(apart)] == ["b"]
    assert [node.name for node in traced.graph.nodes if "adapters" in str(node.target)] == []
    assert apart.root.stem.weight is traced.root.stem.weight
    with pytest.raises(ModelError, match="no block 'c'"):
        decouple(trace(scramble(Net(lambda m, x: m.a(x), a=conv(3, 4))), (3, 8, 8)), blocks[2:3])


def test_names_of_the_network_are_left_alone():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.adapters = Block(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.adapters(torch.relu(x)).mean((2, 3))

    traced = trace(scramble(Own()), (3, 8, 8))
    apart = decouple(traced)
    assert apart.root.state_dict().keys() == traced.root.state_dict().keys()
    assert find_adapters(apart)[0].gather == "adapters_.adapters.gather"


def test_a_stream_cannot_lose_what_a_block_needs_whole():
    def forward(m: Net, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        x = x + m.last(m.norm(x))
        return m.head(x.mean((2, 3)))

    net = Net(forward, stem=conv(3, 4), norm=nn.GroupNorm(1, 4), last=conv(4, 4), head=nn.Linear(4, 2))
    channels = decoupled(net)
    assert sizes(channels) == {"last": 4}
    assert "normalises over all channels" in str(channels.group("stem").frozen_reason)
    check_removal(channels, {"last": kept(4, 2)})


def test_adapters_have_no_say_in_importance():
    channels = decoupled(stages())
    scores = score_channels(channels)
    filters = channels.traced.root.a.first.weight.detach().square().sum((0, 2, 3))
    assert torch.allclose(scores["adapters.a.gather"], filters / filters.mean())
    assert all(torch.isfinite(score).all() for score in scores.values())
    assert set(scores) == set(sizes(channels))


def test_networks_without_blocks_complete_nothing():
    channels = analyse(Net(lambda m, x: m.b(m.a(x)).mean((2, 3)), a=conv(3, 4), b=conv(4, 2)))
    assert channels.complete({"a": kept(4, 1)}).keys() == {"a"}
