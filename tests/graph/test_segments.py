"""A network that is cut into segments computes what it computed whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from adaptify.errors import ModelError
from adaptify.graph.cost import CostModel
from adaptify.graph.cuts import find_cuts
from adaptify.graph.placement import default_exits
from adaptify.graph.program import compile_graph
from adaptify.graph.segments import Segment, cut
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import Traced, trace


def run(traced: Traced, segments: Sequence[Segment], images: Tensor) -> Tensor:
    state: tuple[Tensor, ...] = (images,)
    with torch.no_grad():
        for segment in segments:
            assert len(state) == len(segment.inputs)
            state = compile_graph(segment.graph)(traced.root, *state)
            assert len(state) == len(segment.outputs)
    (result,) = state
    return result


def cut_at(traced: Traced, *names: str) -> tuple[Segment, ...]:
    return cut(traced.graph, [node for node in traced.graph.nodes if node.meta["name"] in names])


def check_chain(segments: Sequence[Segment]) -> None:
    """What one segment gives is what the next takes, in the same order."""
    for earlier, later in itertools.pairwise(segments):
        assert earlier.outputs == later.inputs


def test_default_exits_cut_the_family_into_segments(family):
    traced = family.traced
    chosen = default_exits(traced, family.cost, find_exits(traced, family.cost))
    segments = cut(traced.graph, [traced.node(site.node) for site in chosen])
    check_chain(segments)
    assert [segment.outputs for segment in segments[:-1]] == [(site.node,) for site in chosen]
    traced.root.eval()
    assert torch.equal(run(traced, segments, family.images), family.logits)


def test_segments_take_any_number_of_samples(family):
    traced = family.traced
    chosen = default_exits(traced, family.cost, find_exits(traced, family.cost))
    segments = cut(traced.graph, [traced.node(site.node) for site in chosen])
    traced.root.eval()
    one = family.images[:1]
    with torch.no_grad():
        assert torch.equal(run(traced, segments, one), family.model(one))


def check_every_exit(family) -> None:
    traced = family.traced
    traced.root.eval()
    sites = find_exits(traced, family.cost)
    segments = cut(traced.graph, [traced.node(site.node) for site in sites])
    check_chain(segments)
    assert len(segments) == len(sites) + 1
    assert all(len(segment.inputs) == 1 for segment in segments)
    assert torch.equal(run(traced, segments, family.images), family.logits)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "swin_t"])
def test_every_exit_cuts_the_network(name, build_family):
    check_every_exit(build_family(name))


@pytest.mark.slow
def test_every_exit_cuts_the_family(family):
    check_every_exit(family)


@pytest.mark.slow
def test_every_exit_alone_cuts_the_family(family):
    traced = family.traced
    traced.root.eval()
    for site in find_exits(traced, family.cost)[::4]:
        segments = cut(traced.graph, [traced.node(site.node)])
        assert torch.equal(run(traced, segments, family.images), family.logits), site.name


class Net(nn.Module):
    """Three convolutions; the tests change what happens between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.third(self.second(self.first(x))).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def traced_net(model: nn.Module) -> Traced:
    torch.manual_seed(0)
    return trace(model.eval(), (3, 8, 8))


def exit_names(traced: Traced) -> list[str]:
    return [site.name for site in find_exits(traced, CostModel(traced))]


def expect_same(model: nn.Module, traced: Traced, segments: Sequence[Segment], images: Tensor) -> None:
    with torch.no_grad():
        expected = model(images.clone())
    assert torch.equal(run(traced, segments, images.clone()), expected)


def test_a_plain_network_by_hand(images):
    model = Net()
    traced = traced_net(model)
    segments = cut_at(traced, "first", "third")
    assert [(segment.inputs, segment.outputs) for segment in segments] == [
        (("images",), ("first",)),
        (("first",), ("third",)),
        (("third",), ("fc",)),
    ]
    expect_same(model, traced, segments, images)
    assert cut(traced.graph, [])[0].inputs == ("images",)


def test_the_whole_graph_is_not_changed(images):
    traced = traced_net(Net())
    before = str(traced.graph)
    cut_at(traced, "first", "second")
    assert str(traced.graph) == before


class Long(Net):
    """A long connection over two layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.third(functional.relu(self.second(x)))
        return self.fc((x + y).mean((2, 3)))


def test_several_tensors_may_cross_a_cut(images):
    model = Long()
    traced = traced_net(model)
    segments = cut_at(traced, "second")
    assert segments[1].inputs == segments[0].outputs == ("first", "second")
    expect_same(model, traced, segments, images)
    # It is no place for an exit by itself.
    assert "second" not in exit_names(traced)


class BatchSize(Net):
    """Takes the batch size from the images and uses it at the end."""

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.third(self.second(self.first(x)))
        return self.fc(x.mean((2, 3)).view(batch, -1))


def test_a_size_of_the_batch_does_not_cross_a_cut():
    traced = traced_net(BatchSize())
    with pytest.raises(ModelError, match="depends on the batch and is used after a cut") as caught:
        cut_at(traced, "second")
    assert caught.value.hint == "Choose another site."
    # Only behind its last use can samples leave.
    assert exit_names(traced) == ["view"]


class LocalBatchSize(Net):
    """Takes the batch size where it needs it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x)))
        return self.fc(x.mean((2, 3)).view(x.shape[0], -1))


class Sizes(Net):
    """Sizes that are the same for every batch are taken before the cut and used after it."""

    def forward(self, x: Tensor) -> Tensor:
        rows, shape = x.shape[2], x.shape[2:]
        x = self.third(self.second(self.first(x)))
        x = x.reshape(-1, 4, rows, x.shape[-1])
        return self.fc(functional.interpolate(x, shape).mean((2, 3)))


class Constants(Net):
    """A tensor that no sample has a part in, used on both sides of the cut."""

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(8, dtype=torch.float32, device=x.device).sin() + self.first.bias.mean()
        x = self.second(self.first(x * ramp))
        return self.fc(self.third(x * ramp).mean((2, 3)))


class InPlace(Net):
    """Changes a tensor and reads it under its old name."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.relu_()
        x = self.second(x)
        functional.relu(x, inplace=True)
        return self.fc(self.third(x).mean((2, 3)))


class Chunks(Net):
    """Tuples of tensors."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        left, right = self.second(torch.cat([right, left], 1)).split([1, 3], 1)
        return self.fc(self.third(torch.cat([right, left], 1)).mean((2, 3)))


@pytest.mark.parametrize("net", [LocalBatchSize, Sizes, Constants, InPlace, Chunks])
def test_networks_with_habits_can_be_cut_everywhere(net, images):
    model = net()
    traced = traced_net(model)
    nodes = [found.node for found in find_cuts(traced)]
    assert {"first", "second", "third"} & {str(node) for node in nodes}
    for chosen in [nodes, *([node] for node in nodes)]:
        expect_same(model, traced, cut(traced.graph, chosen), images)


def test_sizes_that_are_the_same_for_every_batch_become_literals(images):
    traced = traced_net(Sizes())
    segments = cut_at(traced, "second")
    assert segments[1].inputs == ("second",)
    assert not any(node.meta.get("constant") for node in segments[1].graph.nodes)


def test_constants_are_computed_on_both_sides():
    traced = traced_net(Constants())
    first, second = cut_at(traced, "second")

    def operations(segment: Segment) -> list[str]:
        return [getattr(node.target, "__name__", str(node.target)) for node in segment.graph.nodes]

    assert "arange" in operations(first)
    assert "arange" in operations(second)


class Dropped(Net):
    """Reads its mode in its own code, on both sides of the cut."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.second(self.first(x)), 0.5, training=self.training)
        return self.fc(functional.dropout(self.third(x).mean((2, 3)), 0.5, training=self.training))


def test_segments_follow_the_mode_of_the_network(images):
    model = Dropped()
    traced = traced_net(model)
    segments = cut_at(traced, "second")
    expect_same(model, traced, segments, images)
    model.train()
    traced.root.train()
    torch.manual_seed(3)
    expected = model(images)
    torch.manual_seed(3)
    assert torch.equal(run(traced, segments, images), expected)


def test_state_of_segments_is_that_of_the_network(images):
    traced = traced_net(nn.Sequential(Net().first, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    segments = cut_at(traced, "0")
    with torch.no_grad():
        before = run(traced, segments, images)
        traced.root.get_submodule("0").weight.mul_(2)
        assert not torch.equal(run(traced, segments, images), before)


def test_graph_that_returns_several_values():
    class Pair(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.first(x)
            return self.second(x), self.third(x)

    model = Pair().eval()
    traced = traced_net(model)
    (last,) = cut(traced.graph, [])
    assert isinstance(last.graph, fx.Graph)
    x = torch.randn(2, 3, 8, 8)
    for ours, theirs in zip(compile_graph(last.graph)(traced.root, x), model(x), strict=True):
        assert torch.equal(ours, theirs)
