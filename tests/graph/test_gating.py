"""Gates in a graph: open they change nothing, closed they are masks, and masks may lie in the weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from channel_nets import Net, conv, run
from families import Family, GatedFamily, scramble
from gated_nets import DIGITS, by_channel, difference, fixed, gated, gated_digits, shake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptify.gates.gumbel import IndependentGates, sample_gates
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_sites import GateSite, find_channel_sites
from adaptify.graph.gating import Decider
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import find_blocks
from adaptify.graph.surgery import remove_blocks
from adaptify.graph.trace import trace
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.runtime.gated import GatedModel


def masked(model: GatedModel, gates: Tensor, images: Tensor) -> Tensor:
    """What the network of `model` yields with the channels masked that `gates` (K,) close."""
    return run(mask_channels(find_channels(model.backbone()), by_channel(model, gates)), images)


def some(count: int, seed: int = 0) -> Tensor:
    """Gates (count,), two thirds of them open."""
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 2 / 3).float()


def test_families_stay_the_same_behind_open_gates(family: Family, gated_family: GatedFamily) -> None:
    model = gated_family.channels
    with torch.no_grad():
        opened = model.decide(family.images, torch.ones_like)
    assert torch.equal(opened.logits, run(gated_family.traced, family.images))
    assert tuple(opened.gates.shape) == tuple(opened.odds.shape) == (model.gate_cost.gates,)
    own = {name for name in model.state_dict() if not name.startswith("gates.")}
    assert own == family.model.state_dict().keys()


# Over all families, `test_freeze` compares gates with masks.
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x1_0"])
def test_closed_gates_are_masks(name: str, build_family) -> None:
    family = GatedFamily(build_family(name))
    model = family.channels
    gates = some(model.gate_cost.gates)
    with torch.no_grad():
        found = model.decide(family.images, fixed(gates))
    assert torch.equal(found.gates, gates)
    assert difference(found.logits, masked(model, gates, family.images)) <= 1e-6
    assert difference(found.logits, run(family.traced, family.images)) > 1e-3


def check_samples(family: GatedFamily) -> None:
    """Each sample has channels of its own."""
    model = gated(family.traced, family.cost, kind="dependent")
    generator = torch.Generator().manual_seed(1)

    def draw(odds: Tensor) -> Tensor:
        return (torch.rand(odds.shape, generator=generator) < 2 / 3).to(odds)

    with torch.no_grad():
        opened = model.decide(family.images, torch.ones_like)
        found = model.decide(family.images, draw)
    assert torch.equal(opened.logits, run(family.traced, family.images))
    assert tuple(found.gates.shape) == (len(family.images), model.gate_cost.gates)
    assert not torch.equal(found.gates[0], found.gates[1])
    for row, gates in enumerate(found.gates):
        wanted = masked(model, gates, family.images[row : row + 1])
        assert difference(found.logits[row : row + 1], wanted) <= 1e-5


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "swin_t"])
def test_each_sample_has_channels_of_its_own(name: str, build_family) -> None:
    check_samples(GatedFamily(build_family(name)))


@pytest.mark.slow
def test_each_sample_of_families_has_channels_of_its_own(gated_family: GatedFamily) -> None:
    if not gated_family.blocks:
        pytest.skip("no residual blocks that gates could look at")
    check_samples(gated_family)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("kind", ["independent", "dependent"])
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_networks_of_basic_blocks_stay_the_same(shortcut: str, kind: str, granularity: str) -> None:
    torch.manual_seed(0)
    traced = trace(scramble(CifarResNet(blocks=2, shortcut=shortcut)), (3, 32, 32))
    model = gated(traced, kind=kind, granularity=granularity)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.decide(images, torch.ones_like).logits, run(traced, images))


def test_each_sample_has_layers_of_its_own() -> None:
    model = gated_digits(kind="dependent", granularity="layer")
    scramble(model)
    images = torch.randn(8, *DIGITS.input.shape, generator=torch.Generator().manual_seed(0))
    # All eight ways to close three blocks, one for each sample.
    wanted = torch.tensor([[number >> place & 1 for place in range(3)] for number in range(8)]).float()
    columns = iter(wanted.T)
    with torch.no_grad():
        found = model.decide(images, lambda odds: next(columns).unsqueeze(1))
    assert torch.equal(found.gates, wanted)
    blocks = find_blocks(model.backbone(), CostModel(model.backbone()))
    for row, gates in enumerate(wanted):
        left = remove_blocks(model.backbone(), [b for b, gate in zip(blocks, gates, strict=True) if not gate])
        assert difference(found.logits[row : row + 1], run(left, images[row : row + 1])) <= 1e-5


class Residual(nn.Module):
    """stem, then relu(x + f(x)) with f two convolutions, each with its BatchNorm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = conv(3, 6)
        self.inner, self.inner_norm = conv(6, 8), nn.BatchNorm2d(8)
        self.out, self.out_norm = conv(8, 6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.inner_norm(self.inner(x)))
        return self.head(torch.relu(x + self.out_norm(self.out(y))).mean((2, 3)))

    def by_hand(self, x: Tensor, read: Tensor, inner: Tensor, added: Tensor) -> Tensor:
        """The same, with masks on activations: what f reads, what it computes inside, what it adds."""
        x = torch.relu(self.stem(x))
        y = torch.relu(self.inner_norm(self.inner(x * _wide(read))))
        z = self.out_norm(self.out(y * _wide(inner))) * _wide(added)
        return self.head(torch.relu(x + z).mean((2, 3)))


def _wide(mask: Tensor) -> Tensor:
    return mask.view(1, -1, 1, 1)


def residual_gates() -> tuple[Residual, GatedModel]:
    net = Residual()
    scramble(net)
    # Filters by pairs: 3 gates for what the block reads, 4 inside, 3 for what it adds.
    model = gated(trace(net, (3, 8, 8)), filters=2)
    assert [(site.position, site.gates) for site in model.sites] == [
        ("input", 3),
        ("channels", 4),
        ("output", 3),
    ]
    return net, model


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 0.3]), min_size=10, max_size=10),
    training=st.booleans(),
)
def test_masks_in_weights_are_masks_on_activations(values: list[float], training: bool) -> None:
    """Forward, every gradient, and the statistics that BatchNorm takes."""
    net, model = residual_gates()
    model = copy.deepcopy(model).train(training)
    net.train(training)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(4)
    ours, theirs = (torch.tensor(values, requires_grad=True) for _ in range(2))
    found = model.decide(images, fixed(ours)).logits
    masks = [part.repeat_interleave(2) for part in theirs.split([3, 4, 3])]
    wanted = net.by_hand(images, *masks)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    F.cross_entropy(found, labels).backward()
    F.cross_entropy(wanted, labels).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    by_name = dict(model.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(by_name[name].grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
    state = model.state_dict()
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(state[name], buffer, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_parameters_have_the_gradients_of_the_masked_network(name: str, build_family) -> None:
    family = build_family(name)
    traced = trace(scramble(copy.deepcopy(family.model)), family.input_shape)
    model = gated(traced, family.cost)
    gates = some(model.gate_cost.gates)
    labels = torch.tensor([3, 7])

    def gradients(logits: Tensor, root: nn.Module) -> dict[str, Tensor]:
        root.zero_grad()
        F.cross_entropy(logits, labels).backward()
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in root.named_parameters()
            if not name.startswith("gates.")
        }

    ours = gradients(model.decide(family.images, fixed(gates)).logits, model)
    reference = mask_channels(find_channels(model.backbone()), by_channel(model, gates))
    logits = compile_graph(reference.graph)(reference.root, family.images)
    theirs = gradients(logits, reference.root)
    assert ours.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 0
    for key, gradient in theirs.items():
        assert float((ours[key] - gradient).abs().max()) <= 1e-5 * largest, key


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("kind", ["independent", "dependent"])
def test_open_gates_train_as_the_network_does(kind: str, granularity: str, build_family) -> None:
    family = build_family("resnet18")
    plain = copy.deepcopy(family.model).train()
    traced = trace(copy.deepcopy(family.model).eval(), family.input_shape)
    model = gated(traced, family.cost, kind=kind, granularity=granularity).train()
    images = torch.randn(6, *family.input_shape, generator=torch.Generator().manual_seed(0))
    found = model.decide(images, torch.ones_like).logits
    wanted = plain(images)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    state = model.state_dict()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(state[name], buffer, atol=1e-5, rtol=1e-5, msg=name)
    assert int(state["bn1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("kind", ["independent", "dependent"])
def test_a_step_of_training_reaches_weights_and_gates(kind: str, granularity: str) -> None:
    model = gated_digits(kind=kind, granularity=granularity).train()
    images = torch.randn(16, *DIGITS.input.shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for _ in range(4):  # a block that is closed once is open at another time
        decisions = model(images)
        assert set(decisions.gates.unique().tolist()) <= {0.0, 1.0}
        F.cross_entropy(decisions.logits, torch.arange(16) % 10).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_gates_see_what_enters_their_block() -> None:
    """The decision of a block depends on its input alone, and is made whatever earlier gates did."""
    model = shake(gated_digits(kind="dependent"))
    images = torch.randn(4, *DIGITS.input.shape, generator=torch.Generator().manual_seed(0))
    seen: dict[str, Tensor] = {}
    for decider in model.deciders:
        decider.module.register_forward_hook(
            lambda module, inputs, output, name=decider.name: seen.update({name: inputs[0]})
        )
    root = model.traced.root
    with torch.no_grad():
        model.decide(images, torch.ones_like)
        x = torch.relu(root.bn1(root.conv1(images)))
        assert list(seen) == [f"layer{index}/0" for index in (1, 2, 3)]
        for index, value in enumerate(seen.values(), 1):
            torch.testing.assert_close(value, x, atol=1e-5, rtol=1e-5)
            x = root.get_submodule(f"layer{index}.0")(x)


def channel_gates(net: nn.Module, filters: int, shape: tuple[int, int, int] = (3, 8, 8)) -> GatedModel:
    """Gates for the channels of a network that is not decoupled."""
    traced = trace(scramble(net), shape)
    sites = find_channel_sites(find_channels(traced), (), positions=["channels"], filters=filters)
    gates = IndependentGates(sum(site.gates for site in sites), 0.9)
    return GatedModel(traced, [Decider("all", gates, None, sites)], sample_gates).eval()


def check_masks(model: GatedModel) -> None:
    images = torch.randn(2, *model.traced.input_shape, generator=torch.Generator().manual_seed(3))
    for seed in range(4):
        gates = some(model.gate_cost.gates, seed)
        with torch.no_grad():
            found = model.decide(images, fixed(gates)).logits
        assert difference(found, masked(model, gates, images)) <= 1e-6


def test_a_layer_that_is_used_twice_reads_masked_channels_both_times() -> None:
    net = Net(
        lambda m, x: m.head(torch.relu(m.same(torch.relu(m.same(m.first(x))))).mean((2, 3))),
        first=conv(3, 8),
        same=conv(8, 8),
        head=nn.Linear(8, 4),
    )
    check_masks(channel_gates(net, 2))


def test_readers_with_similar_names_are_told_apart() -> None:
    inside = nn.Module()
    inside.add_module("b", conv(8, 4))
    net = Net(
        lambda m, x: m.head((m.a.b(m.first(x)) + m.a_b(m.second(x))).mean((2, 3))),
        first=conv(3, 8),
        second=conv(3, 8),
        a=inside,
        a_b=conv(8, 4),
        head=nn.Linear(4, 4),
    )
    check_masks(channel_gates(net, 2))


def test_readers_of_every_kind_are_masked() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = torch.relu(m.norm(m.first(x)))
        x = torch.relu(m.grouped(x))
        x = torch.relu(m.back(torch.cat([x, m.side(x)], 1)))
        return m.head(m.mix(x.flatten(2).transpose(1, 2)).mean(1))

    net = Net(
        forward,
        first=conv(3, 8),
        norm=nn.BatchNorm2d(8),
        grouped=conv(8, 8, groups=4),
        side=conv(8, 6),
        back=nn.ConvTranspose2d(14, 6, 2),
        mix=nn.Linear(6, 6),
        head=nn.Linear(6, 4),
    )
    model = channel_gates(net, 2)
    assert len(model.sites) >= 4
    check_masks(model)


def test_blocks_have_gates_at_all_their_positions() -> None:
    model = gated_digits(filters=8)
    layout = [(site.block.name, site.position, site.size, site.gates) for site in model.sites if site.block]
    assert layout == [
        ("layer1.0", "input", 16, 2),
        ("layer1.0", "channels", 16, 2),
        ("layer1.0", "output", 16, 2),
        ("layer2.0", "input", 16, 2),
        ("layer2.0", "channels", 32, 4),
        ("layer2.0", "output", 32, 4),
        ("layer3.0", "input", 32, 4),
        ("layer3.0", "channels", 64, 8),
        ("layer3.0", "output", 64, 8),
    ]
    # The stream, which they share, has none.
    assert len(layout) == len(model.sites)


def test_projections_and_chains_keep_a_gate_always_open() -> None:
    torch.manual_seed(0)
    traced = trace(CifarResNet(blocks=1, shortcut="B").eval(), (3, 32, 32))
    by_position: dict[str, list[GateSite]] = {}
    for site in gated(traced, filters=8).sites:
        by_position.setdefault(site.position, []).append(site)
    assert [(site.size, site.always_open, site.gates) for site in by_position["shortcut"]] == [
        (32, 8, 3),
        (64, 8, 7),
    ]
    assert {site.always_open for name in ("input", "channels", "output") for site in by_position[name]} == {0}
    chain = channel_gates(
        Net(
            lambda m, x: m.head(m.b(m.a(x)).mean((2, 3))), a=conv(3, 10), b=conv(10, 4), head=nn.Linear(4, 2)
        ),
        4,
    )
    assert [(site.name, site.gate_of()) for site in chain.sites] == [("a", [0] * 4 + [1] * 4 + [2] * 2)]


def test_positions_can_be_chosen() -> None:
    model = gated_digits(positions=("channels",))
    assert [site.name for site in model.sites] == [f"layer{index}.0.conv1" for index in (1, 2, 3)]
    # Nothing had to be decoupled for that.
    assert not any("adapters" in name for name, _ in model.named_modules())
