"""Networks that write over values they read again are traced into graphs that say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.errors import ModelError
from adaptify.graph.agreement import check_agreement
from adaptify.graph.cost import CostModel
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import trace


class Block(nn.Module):
    """Pre-activation whose rectifier writes over the input, which the sum reads after it."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rectify = rectify
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.rectify(x))


class Network(nn.Module):
    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(rectify) for _ in range(3)))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def added(x: Tensor) -> Tensor:
    x += 1
    return x


RECTIFIERS = {
    "a module": nn.ReLU(inplace=True),
    "a function": lambda x: F.relu(x, inplace=True),
    "a function that is named so": torch.relu_,
    "a method": lambda x: x.clamp_(min=0),
    "an operator": added,
}


@pytest.mark.parametrize("rectify", RECTIFIERS.values(), ids=RECTIFIERS)
def test_the_sum_reads_what_was_written(rectify: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = Network(rectify).eval()
    images = torch.randn(2, 3, 8, 8)
    traced = trace(network, (3, 8, 8))
    sums = [traced.node(block.add) for block in find_blocks(traced, CostModel(traced))]
    assert len(sums) == 3
    for node in sums:
        shortcut, branch = node.all_input_nodes
        assert branch.all_input_nodes == [shortcut]
    with torch.no_grad():
        assert torch.equal(compile_graph(traced.graph)(traced.root, images), network(images))


def test_what_comes_before_reads_what_was_there() -> None:
    class Before(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            early = x + 1
            late = x.relu_()
            return (early + late + x).flatten(1)

    traced = trace(Before(), (3, 4, 4))
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(compile_graph(traced.graph)(traced.root, images), Before()(images))
    names = {node.name: [read.name for read in node.all_input_nodes] for node in traced.graph.nodes}
    assert names["add"] == ["mul"]
    assert names["add_2"] == ["add_1", "relu_"]


def test_a_module_of_others_may_call_anything_inplace() -> None:
    class Twice(nn.Module):
        inplace = True

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x if x.sum() > 0 else 3 * x  # kept whole: it cannot be traced

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = Twice()

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.twice(x)).flatten(1)

    traced = trace(Sum(), (3, 4, 4))
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(compile_graph(traced.graph)(traced.root, images), Sum()(images))


class ReadsAfterACall(nn.Module):
    """What another function adds to its argument is seen by who called it."""

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        return (added(x) * x).flatten(1)


class WritesThroughAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x.view(-1).add_(1)
        return x.flatten(1)


@pytest.mark.parametrize("network", [ReadsAfterACall(), WritesThroughAView()])
def test_graphs_agree_with_what_writes_over_values(network: nn.Module) -> None:
    check_agreement(network, trace(network, (3, 4, 4)))
    images = torch.randn(2, 3, 4, 4)
    traced = trace(network, (3, 4, 4))
    assert torch.equal(compile_graph(traced.graph)(traced.root, images.clone()), network(images))


class CountsOn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        side = more = x.shape[2]
        more += 1
        return x.reshape(-1, 3 * side * side) * more


def test_numbers_are_not_written_over() -> None:
    traced = trace(CountsOn(), (3, 4, 4))
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(compile_graph(traced.graph)(traced.root, images), CountsOn()(images))


class Counts(nn.Module):
    """Depends on how often it was called, which a graph does not."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1) * self.calls


def test_what_no_graph_shows_is_found_by_running_both() -> None:
    network = Counts()
    traced = trace(network, (3, 4, 4))
    network(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ModelError, match="the graph of Counts computes something else"):
        check_agreement(network, traced)


def test_a_network_that_fails_says_so() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    network = Fails()
    traced = trace(network, (3, 4, 4))
    network.forward = lambda x: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="Fails fails on two images of noise: division by zero"):
        check_agreement(network, traced)
