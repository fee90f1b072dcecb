"""MACs as a function of gates: by hand, as of the network that was really cut, and with a gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from channel_nets import Net, conv
from gated_nets import close, fixed, gated, gated_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_cost import GateCost
from adaptify.graph.gate_sites import find_channel_sites, find_first_layer_sites, find_layer_sites
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import Traced, trace


def chain() -> tuple[Traced, GateCost]:
    """Two 3x3 convolutions of 6 and 8 channels on 4x4 images, a linear layer of 5; a gate for two filters."""
    net = Net(
        lambda m, x: m.head(m.b(torch.relu(m.a(x))).mean((2, 3))),
        a=conv(3, 6),
        b=conv(6, 8),
        head=nn.Linear(8, 5),
    )
    traced = trace(net.eval(), (3, 4, 4))
    channels = find_channels(traced)
    sites = find_channel_sites(channels, (), positions=["channels"], filters=2)
    # The first two channels of each have no gate: 2 + 3 gates.
    return traced, GateCost(traced, channels, sites)


def macs_of_chain(a: int, b: int) -> int:
    """By hand: 16 places times 9 weights for each pair of channels."""
    return 16 * 9 * 3 * a + 16 * 9 * a * b + b * 5


_, COST = chain()


@given(st.lists(st.sampled_from([0, 1]), min_size=5, max_size=5))
def test_macs_of_a_chain_by_hand(gates: list[int]) -> None:
    macs = COST(torch.tensor(gates))
    assert macs.dtype == torch.int64
    assert int(macs) == macs_of_chain(2 + 2 * sum(gates[:2]), 2 + 2 * sum(gates[2:]))
    assert float(COST(torch.tensor(gates).float())) == int(macs)


def test_the_bounds_and_single_sites_by_hand() -> None:
    assert (COST.total, COST.least, COST.gates) == (macs_of_chain(6, 8), macs_of_chain(2, 2), 5)
    assert COST.without(0) == macs_of_chain(2, 8)
    assert COST.without(1) == macs_of_chain(6, 2)
    assert float(COST.kept(torch.ones(5))) == 1
    assert float(COST.kept(torch.zeros(5))) == pytest.approx(COST.least / COST.total)


def test_the_gradient_by_hand() -> None:
    gates = torch.ones(5, dtype=torch.float64, requires_grad=True)
    COST(gates).backward()
    # A gate opens two channels: of a, each read by 8 filters; of b, each reading 6 channels.
    of_a, of_b = 2 * (16 * 9 * 3 + 16 * 9 * 8), 2 * (16 * 9 * 6 + 5)
    assert gates.grad is not None
    assert gates.grad.tolist() == [of_a] * 2 + [of_b] * 3


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    index=st.integers(0, 4),
    other=st.floats(0, 1),
)
def test_the_cost_is_linear_in_each_gate(values: list[float], index: int, other: float) -> None:
    def at(value: float) -> float:
        gates = torch.tensor(values, dtype=torch.float64)
        gates[index] = value
        return float(COST(gates))

    assert at(other) == pytest.approx((1 - other) * at(0) + other * at(1))


def test_samples_have_costs_of_their_own() -> None:
    gates = (torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    macs = COST(gates)
    assert tuple(macs.shape) == (7,)
    assert macs.tolist() == [int(COST(row)) for row in gates]
    soft = gates.float().requires_grad_()
    (gradient,) = torch.autograd.grad(COST(soft)[2], soft)
    assert not gradient[[0, 1, 3, 4, 5, 6]].any()
    assert gradient[2].all()


def residual(depth: int = 2) -> Traced:
    """A stem of 4 channels, blocks x + out(relu(inner(x))) with 6 channels inside, on 8x8 images."""
    layers = {f"inner{index}": conv(4, 6) for index in range(depth)}
    layers |= {f"out{index}": conv(6, 4) for index in range(depth)}

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.stem(x)
        for index in range(depth):
            inner, out = getattr(m, f"inner{index}"), getattr(m, f"out{index}")
            x = torch.relu(x + out(torch.relu(inner(x))))
        return m.head(x.mean((2, 3)))

    return trace(Net(forward, stem=conv(3, 4), **layers, head=nn.Linear(4, 2)).eval(), (3, 8, 8))


STEM, BLOCK, HEAD = 64 * 9 * 3 * 4, 2 * 64 * 9 * 4 * 6, 8


def test_closed_blocks_cost_nothing() -> None:
    traced = residual()
    cost = GateCost(traced, None, find_layer_sites(find_blocks(traced, CostModel(traced))))
    gates = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]])
    assert cost(gates).tolist() == [STEM + count * BLOCK + HEAD for count in (2, 1, 1, 0)]
    assert (cost.total, cost.least) == (STEM + 2 * BLOCK + HEAD, STEM + HEAD)
    soft = torch.tensor([0.5, 0.25], requires_grad=True)
    macs = cost(soft)
    assert float(macs.detach()) == STEM + 0.75 * BLOCK + HEAD
    macs.backward()
    assert soft.grad is not None
    assert soft.grad.tolist() == [BLOCK, BLOCK]


def test_blocks_read_compute_and_add_what_is_open() -> None:
    model = gated(residual(1), filters=1)
    assert [(site.position, site.gates) for site in model.sites] == [
        ("input", 4),
        ("channels", 6),
        ("output", 4),
    ]
    gates = torch.tensor([1, 0, 0, 1, *[1, 1, 1, 0, 0, 0], *[1, 0, 0, 0]])
    # 2 channels of the stream are read by 3 filters, whose outputs are read by one.
    assert int(model.gate_cost(gates)) == STEM + 64 * 9 * (2 * 3 + 3 * 1) + HEAD
    assert model.gate_cost.least == STEM + HEAD


def test_grouped_convolutions_keep_their_inputs_per_output() -> None:
    net = Net(
        lambda m, x: m.head(m.c(torch.relu(m.deep(m.a(x)))).mean((2, 3))),
        a=conv(3, 8, 1),
        deep=conv(8, 8, groups=8),
        c=conv(8, 4, 1),
        head=nn.Linear(4, 2),
    )
    traced = trace(net.eval(), (3, 4, 4))
    channels = find_channels(traced)
    sites = [
        site for site in find_channel_sites(channels, (), positions=["channels"], filters=2) if site.size == 8
    ]
    cost = GateCost(traced, channels, sites)
    assert cost.gates == 3
    for gates in ([1, 1, 1], [1, 0, 0], [0, 0, 0]):
        n = 2 + 2 * sum(gates)
        assert int(cost(torch.tensor(gates))) == 16 * (3 * n + 9 * n + n * 4) + 8


def test_the_cost_of_deciding_is_counted_apart() -> None:
    assert gated_digits().decider_macs == 0
    model = gated_digits(kind="dependent", hidden=5)
    by_hand = 0
    for decider, channels in zip(model.deciders, (16, 16, 32), strict=True):
        by_hand += decider.gates * (channels * 5 + 5 * 2)
    assert model.decider_macs == by_hand
    assert model.gate_cost.total == model.cost.total


def test_copies_of_a_model_share_their_cost() -> None:
    model = gated_digits()
    cost = model.gate_cost
    assert copy.deepcopy(model).gate_cost is cost


def test_a_model_that_runs_some_gates_costs_them() -> None:
    model = close(gated_digits(), "layer2.0.conv1")
    gates = model.policy.decide(model.odds())
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.run(images).gates, gates)
        assert torch.equal(model.run(images).logits, model.decide(images, fixed(gates)).logits)
    index = [site.name for site in model.sites].index("layer2.0.conv1")
    assert int(model.gate_cost(gates)) == model.gate_cost.without(index) < model.gate_cost.total


def salient_block() -> tuple[Traced, GateCost, GateCost]:
    """A block x + out(relu(inner(x))) with a gate for its branch and for each of 6 channels inside.

    The cost where gates are decided first, and where `inner` runs meanwhile.
    """
    traced = residual(1)
    channels = find_channels(traced)
    blocks = find_blocks(traced, CostModel(traced))
    sites = find_first_layer_sites(channels, blocks)
    assert [(site.position, site.gates) for site in sites] == [("channels", 6)]
    layers = find_layer_sites(blocks)
    sequential = GateCost(traced, channels, (*layers, *sites))
    return traced, sequential, GateCost(traced, channels, (*layers, *sites), whole=("inner0",))


HALF = BLOCK // 2


@pytest.mark.parametrize(
    ("layer", "inside", "first", "second"),
    [(1, 6, 1.0, 1.0), (1, 3, 0.5, 0.5), (1, 1, 1 / 6, 1 / 6), (0, 6, 0, 0), (0, 2, 0, 0)],
)
def test_what_runs_beside_the_gates_runs_in_full(
    layer: int, inside: int, first: float, second: float
) -> None:
    _, sequential, parallel = salient_block()
    gates = torch.tensor([layer, *[1] * inside, *[0] * (6 - inside)])
    assert int(sequential(gates)) == STEM + round(HALF * (first + second)) + HEAD
    # The first convolution runs while the gates are decided, even if the whole branch is left out then.
    assert int(parallel(gates)) == STEM + HALF + round(HALF * second) + HEAD


def test_the_bounds_and_gradients_of_both_executions() -> None:
    _, sequential, parallel = salient_block()
    assert sequential.total == parallel.total == STEM + BLOCK + HEAD
    assert (sequential.least, parallel.least) == (STEM + HEAD, STEM + HALF + HEAD)
    assert (sequential.without(0), parallel.without(0)) == (STEM + HEAD, STEM + HALF + HEAD)
    for cost, of_layer, of_channel in ((sequential, BLOCK, BLOCK / 6), (parallel, HALF, HALF / 6)):
        gates = torch.ones(3, 7, dtype=torch.float64, requires_grad=True)
        cost(gates).sum().backward()
        assert gates.grad is not None
        assert gates.grad.tolist() == [[of_layer, *[of_channel] * 6]] * 3


def test_every_sample_and_every_node_has_its_own_switch() -> None:
    traced = residual(3)
    layers = find_layer_sites(find_blocks(traced, CostModel(traced)))
    cost = GateCost(traced, None, layers, whole=("inner1",))
    gates = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 1, 0]])
    assert cost(gates).tolist() == [STEM + part * HALF + HEAD for part in (4, 3, 2)]
