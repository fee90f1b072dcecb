"""Which part of a network with several outputs is the head of an exit, and which the trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptify.errors import ModelError
from adaptify.graph.cost import CostModel
from adaptify.graph.own_exits import find_own_exits, refuse_own_exits, without_heads
from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced, trace
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy

SHAPE = (3, 4, 4)


class Net(nn.Module):
    """Three convolutions and three linear layers, put together by a function."""

    def __init__(self, together: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.u, self.v, self.w = (nn.Linear(3, 5) for _ in range(3))
        self.together = together

    def forward(self, x: Tensor) -> Any:
        return self.together(self, x)


CONV, HEAD = 16 * 9, 15


def traced_as(together: Callable[[Any, Tensor], Any]) -> tuple[Net, Traced]:
    torch.manual_seed(0)
    net = Net(together).eval()
    return net, trace(net, SHAPE)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def ordinary(net: Any, x: Tensor) -> Any:
    first = net.a(x)
    second = net.b(first)
    return net.u(mean(first)), net.v(mean(second)), net.w(mean(net.c(second)))


def shared_pool(net: Any, x: Tensor) -> Any:
    """Both exits, and the output, need the first average."""
    pooled = mean(net.a(x))
    return net.u(pooled), net.v(pooled + mean(net.b(x))), net.w(pooled)


def fed_back(net: Any, x: Tensor) -> Any:
    """The second exit needs the logits of the first: these belong to the trunk then."""
    first = net.a(x)
    logits = net.u(mean(first))
    return logits, net.v(mean(net.b(first))) + logits, net.w(mean(net.c(first))) + logits


def reads_two(net: Any, x: Tensor) -> Any:
    """The first exit reads two tensors, both of which go on."""
    first = net.a(x)
    second = net.b(first)
    return net.u(mean(first) + mean(second)), net.w(mean(net.c(first + second)))


def one_head_for_all(net: Any, x: Tensor) -> Any:
    """The same layer is the head of every exit."""
    first = net.a(x)
    second = net.b(first)
    return net.u(mean(first)), net.u(mean(second)), net.u(mean(net.c(second)))


CASES = [ordinary, shared_pool, fed_back, reads_two, one_head_for_all]


@pytest.mark.parametrize("together", CASES)
def test_trunk_and_heads_are_the_network_and_nothing_is_in_two_of_them(
    together: Callable[[Any, Tensor], Any],
) -> None:
    net, traced = traced_as(together)
    cost = CostModel(traced)
    exits = find_own_exits(traced, cost)
    trunk = without_heads(traced, exits)
    everything = {node.name for node in traced.graph.nodes}
    parts = [{node.name for node in trunk.nodes}, *(item.nodes for item in exits)]
    assert set().union(*parts) == everything
    assert sum(map(len, parts)) == len(everything)
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(compile_graph(trunk)(net, images), net(images)[-1])
    before = [item.site.macs_before for item in exits]
    assert before == sorted(before)


@pytest.mark.parametrize("together", CASES)
def test_rows_leave_as_dense_ones_do(together: Callable[[Any, Tensor], Any]) -> None:
    net, traced = traced_as(together)
    model = AdaptiveModel(traced).eval()
    images = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = net(images)
        found = model.everything(images)
        for ours, theirs in zip((*found.exits.values(), found.logits), outputs, strict=True):
            torch.testing.assert_close(ours, theirs)
        middle = float(outputs[0].softmax(1).amax(1).median())
        model.policy = ThresholdPolicy((middle + 1e-5, *([2.0] * (len(model.exits) - 1))), "confidence")
        outcomes = [runs.run(images) for runs in (model, optimize(model))]
    leaves = outputs[0].softmax(1).amax(1) >= middle + 1e-5
    assert 0 < int(leaves.sum()) < 16
    wanted = torch.where(leaves.unsqueeze(1), outputs[0], outputs[-1])
    for outcome in outcomes:
        assert torch.equal(outcome.exit_index == 0, leaves)
        torch.testing.assert_close(outcome.logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("together", "before", "heads"),
    [
        (ordinary, [CONV, 2 * CONV], [HEAD, HEAD]),
        # What only the second exit needs is its head, a convolution too.
        (shared_pool, [CONV, CONV], [HEAD, HEAD + CONV]),
        # The first has no head of its own left.
        (fed_back, [CONV + HEAD, CONV + HEAD], [0, HEAD + CONV]),
        (reads_two, [2 * CONV], [HEAD]),
        (one_head_for_all, [CONV, 2 * CONV], [HEAD, HEAD]),
    ],
)
def test_macs_of_trunk_and_heads_by_hand(
    together: Callable[[Any, Tensor], Any], before: list[int], heads: list[int]
) -> None:
    _, traced = traced_as(together)
    cost = CostModel(traced)
    exits = find_own_exits(traced, cost)
    assert [item.site.macs_before for item in exits] == before
    assert [item.macs for item in exits] == heads


@pytest.mark.parametrize(
    ("together", "names"),
    [(ordinary, ["u", "v"]), (shared_pool, ["u", "b"]), (reads_two, ["u"])],
)
def test_exits_are_named_after_what_belongs_to_them_alone(
    together: Callable[[Any, Tensor], Any], names: list[str]
) -> None:
    _, traced = traced_as(together)
    found = [item.site.name for item in find_own_exits(traced, CostModel(traced))]
    assert found == names


@pytest.mark.parametrize("together", [fed_back, one_head_for_all])
def test_names_differ_even_where_heads_do_not(together: Callable[[Any, Tensor], Any]) -> None:
    _, traced = traced_as(together)
    found = [item.site.name for item in find_own_exits(traced, CostModel(traced))]
    assert len(set(found)) == len(found) == 2


def plain(net: Any, x: Tensor) -> Any:
    return net.u(mean(net.a(x)))


def single(net: Any, x: Tensor) -> Any:
    return (net.u(mean(net.a(x))),)


def named(net: Any, x: Tensor) -> Any:
    return {"first": net.u(mean(net.a(x))), "second": net.v(mean(net.b(x)))}


def maps(net: Any, x: Tensor) -> Any:
    return net.a(x), net.b(x)


@pytest.mark.parametrize("together", [plain, single, named, maps])
def test_other_outputs_are_no_exits(together: Callable[[Any, Tensor], Any]) -> None:
    _, traced = traced_as(together)
    assert traced.own_exits == ()
    assert find_own_exits(traced, CostModel(traced)) == ()
    refuse_own_exits(traced)  # nothing to refuse
    if together is not plain:
        with pytest.raises(ModelError, match="does not return one score per class"):
            AdaptiveModel(traced)


def test_own_exits_are_refused_where_something_is_to_be_closed() -> None:
    _, traced = traced_as(ordinary)
    with pytest.raises(ModelError, match="Net has exits of its own"):
        refuse_own_exits(traced)
