"""Networks with exits: really leaving gives what computing everything and choosing rows would give."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adaptify.errors import ModelError, UsageError
from adaptify.gates.exit_head import ExitHead
from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import find_exits, select_sites
from adaptify.graph.trace import trace
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy, never_leave


def with_exits(
    model: nn.Module, shape: tuple[int, int, int], names: list[str] | None = None
) -> AdaptiveModel:
    """`model` with untrained exits at its default sites, or at those of the names."""
    traced = trace(model, shape)
    cost = CostModel(traced)
    sites = find_exits(traced, cost)
    chosen = default_exits(traced, cost, sites) if names is None else select_sites(sites, names)
    classes = AdaptiveModel(traced).num_classes
    torch.manual_seed(0)
    heads = [Exit(site, ExitHead(site.channels, classes, channel_axis=site.channel_axis)) for site in chosen]
    return AdaptiveModel(traced, heads).eval()


def cifar_resnet() -> nn.Module:
    """ResNet-20 with seeded random weights and BatchNorm statistics that are not the identity."""
    torch.manual_seed(0)
    model = resolve("adaptify:cifar_resnet20").build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def images(count: int, shape: tuple[int, int, int] = (3, 32, 32)) -> Tensor:
    """Seeded random images."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def leave_evenly(model: AdaptiveModel, batch: Tensor) -> None:
    """Set thresholds, each midway between two scores, so that about half of what arrives leaves."""
    with torch.no_grad():
        scores = [logits.amax(1) for logits in model.dense(batch)[1].values()]
    inside = torch.ones(len(batch), dtype=torch.bool)
    thresholds = []
    for values in scores:
        ranked = values[inside].sort(descending=True).values
        half = len(ranked) // 2
        thresholds.append(float((ranked[half - 1] + ranked[half]) / 2) if half else math.inf)
        inside &= values < thresholds[-1]
    model.policy = ThresholdPolicy(tuple(thresholds))


def expected(model: AdaptiveModel, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1 sample by sample, from everything computed for everyone."""
    with torch.no_grad():
        final, exits = model.dense(batch)
    logits, index = final.clone(), torch.full((len(batch),), len(exits))
    for row in range(len(batch)):
        for place, (values, threshold) in enumerate(
            zip(exits.values(), model.policy.thresholds, strict=True)
        ):
            if values[row].max() >= threshold:
                logits[row], index[row] = values[row], place
                break
    return logits, index


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((actual - wanted).abs().max() / wanted.abs().max())


def test_never_leaving_is_the_network_itself_over_families(family) -> None:
    model = with_exits(family.model, family.input_shape)
    assert model.exits
    with torch.no_grad():
        assert torch.equal(model(family.images), family.logits)


def test_sparse_equals_dense_over_families(family) -> None:
    batch = images(7, family.input_shape)
    model = with_exits(family.model, family.input_shape)
    leave_evenly(model, batch)
    wanted, index = expected(model, batch)
    with torch.no_grad():
        for network in (model, optimize(model)):
            outcome = network.run(batch)
            assert outcome.exit_index.tolist() == index.tolist()
            assert relative_error(outcome.logits, wanted) <= 1e-5
    assert len(set(index.tolist())) > 1


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_sparse_equals_dense_for_every_batch_size(count: int) -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    leave_evenly(model, images(64))
    batch = images(64)[:count]
    wanted, index = expected(model, batch)
    with torch.no_grad():
        outcome = model.run(batch)
    assert outcome.exit_index.tolist() == index.tolist()
    assert relative_error(outcome.logits, wanted) <= 1e-5


@pytest.mark.parametrize(
    ("thresholds", "index"),
    [((-math.inf, math.inf), 0), ((math.inf, -math.inf), 1), ((math.inf, math.inf), 2)],
    ids=["all leave first", "all leave second", "nobody leaves"],
)
def test_whole_batches_leave_together(thresholds: tuple[float, float], index: int) -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    model.policy = ThresholdPolicy(thresholds)
    with torch.no_grad():
        outcome = model.run(images(5))
        final, exits = model.dense(images(5))
    assert outcome.exit_index.tolist() == [index] * 5
    assert torch.equal(outcome.logits, [*exits.values(), final][index])


def test_work_behind_an_exit_is_done_for_the_rows_that_stay_only() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    batch = images(16)
    leave_evenly(model, batch)
    seen: dict[str, int] = {}
    for name in ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"):
        module = model.traced.root.get_submodule(name)
        module.register_forward_hook(lambda _m, inputs, _o, name=name: seen.update({name: len(inputs[0])}))
    with torch.no_grad():
        index = model.run(batch).exit_index
    assert seen == {
        "layer1.0.conv1": 16,
        "layer2.0.conv1": int((index > 0).sum()),
        "layer3.0.conv1": int((index > 1).sum()),
    }


def test_a_gate_that_is_switched_off_is_not_computed_and_does_not_count() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    calls: list[str] = []
    for item in model.exits:
        item.head.register_forward_hook(lambda *_, name=item.site.name: calls.append(name))
    model.policy = ThresholdPolicy((math.inf, 0.0))
    with torch.no_grad():
        model(images(2))
    assert calls == ["layer2"]
    first, second = model.gate_macs
    total = model.cost.total
    assert model.exit_macs(model.policy) == (
        model.exits[0].site.macs_before,
        model.exits[1].site.macs_before + second,
        total + second,
    )
    assert model.exit_macs()[-1] == total + first + second


def test_state_dict_has_the_names_of_the_network_and_the_gates_beside_them() -> None:
    network = cifar_resnet()
    model = with_exits(network, (3, 32, 32))
    names = list(model.state_dict())
    assert [name for name in names if not name.startswith("gates.")] == list(network.state_dict())
    assert [name for name in names if name.startswith("gates.")] == [
        f"gates.{layer}.linear.{kind}" for layer in ("layer1", "layer2") for kind in ("weight", "bias")
    ]
    assert dict(model.named_parameters()).keys() <= model.state_dict().keys()


class Awkward(nn.Module):
    """A network whose submodules and tensors are called like attributes of the adaptive model."""

    def __init__(self) -> None:
        super().__init__()
        self.run = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.gates = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.exits = nn.Linear(8, 4)
        self.register_buffer("policy", torch.full((1, 4), 0.5))
        self.cost = nn.Parameter(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.exits(self.gates(self.run(x)).mean((2, 3))) * self.cost + self.policy


def test_names_in_the_network_cannot_clash_with_the_adaptive_model() -> None:
    torch.manual_seed(0)
    network = Awkward().eval()
    model = with_exits(network, (3, 16, 16), ["run"])
    batch = images(4, (3, 16, 16))
    with torch.no_grad():
        assert torch.equal(model(batch), network(batch))
        assert list(model.state_dict())[: len(network.state_dict())] == list(network.state_dict())
        moved = copy.deepcopy(model).double()
        assert torch.allclose(moved(batch.double()), network(batch).double(), atol=1e-6)


def test_training_mode_returns_the_logits_of_every_exit_with_gradients() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32)).train()
    logits, exits, _ = model(images(4))
    assert logits.shape == (4, 10)
    assert {name: tuple(values.shape) for name, values in exits.items()} == {
        "layer1": (4, 10),
        "layer2": (4, 10),
    }
    sum(values.sum() for values in exits.values()).backward()
    assert model.exits[0].head.linear.weight.grad is not None
    assert model.traced.root.get_submodule("layer1.0.conv1").weight.grad.abs().sum() > 0


def test_a_copy_is_independent() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(images(2))
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(images(2)), before)
        assert not torch.equal(twin(images(2)), before)


def test_optimize_folds_batchnorm_and_leaves_the_original_alone() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = optimize(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert fast.memory_format == torch.channels_last
    with torch.no_grad():
        assert relative_error(fast(images(4)), model(images(4))) <= 1e-5
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert fast.exit_macs() == model.exit_macs()


def test_an_exit_at_a_batchnorm_keeps_it() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32), ["bn1", "layer2"])
    leave_evenly(model, images(8))
    fast = optimize(model)
    wanted, index = expected(model, images(8))
    with torch.no_grad():
        outcome = fast.run(images(8))
    assert outcome.exit_index.tolist() == index.tolist()
    assert relative_error(outcome.logits, wanted) <= 1e-5
    assert isinstance(fast.traced.root.get_submodule("bn1"), nn.BatchNorm2d)


def test_macs_do_not_depend_on_the_mode_they_are_asked_in() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    with torch.inference_mode():
        asked_inside = with_exits(cifar_resnet(), (3, 32, 32)).exit_macs()
    assert asked_inside == model.exit_macs()


class Pair(nn.Module):
    """Not a classifier: two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps."""
        y = self.layer(x)
        return y, -y


@pytest.mark.parametrize("build", [Pair, lambda: nn.Conv2d(3, 4, 3)], ids=["two outputs", "feature maps"])
def test_a_network_without_one_score_per_class_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ModelError, match="does not return one score per class"):
        AdaptiveModel(trace(build().eval(), (3, 8, 8)))


def test_policies_check_their_values_and_survive_json() -> None:
    policy = ThresholdPolicy((0.5, math.inf), "confidence")
    assert ThresholdPolicy.from_json(policy.to_json()) == policy
    assert policy.to_json()["thresholds"] == [0.5, None]
    assert never_leave(2).thresholds == (math.inf, math.inf)
    with pytest.raises(UsageError, match="did you mean 'distance'"):
        ThresholdPolicy((0.5,), "distanc")
    with pytest.raises(UsageError, match="not a number"):
        ThresholdPolicy((math.nan,))


@pytest.mark.parametrize(
    ("score", "threshold", "expected"),
    [
        ("confidence", 0.8, [True, False]),
        ("distance", 0.05, [True, True]),
        ("distance", 2.0, [True, False]),
        ("margin", 1.9, [True, False]),
        ("entropy", -0.9, [True, False]),
    ],
)
def test_samples_leave_that_an_exit_is_sure_of(score: str, threshold: float, expected: list[bool]) -> None:
    policy = ThresholdPolicy((threshold,), score)
    scores = policy.rate(0, torch.tensor([[2.0, 0.0], [0.0, 0.1]]))
    assert policy.leaves(0, scores).tolist() == expected


def test_entropy_is_of_no_class_or_of_all_classes() -> None:
    policy = ThresholdPolicy((-0.5,), "entropy")
    sure, unsure = torch.tensor([[200.0, 0, 0, 0]]), torch.zeros(1, 4)
    assert policy.rate(0, sure).item() == pytest.approx(0, abs=1e-6)
    assert policy.rate(0, unsure).item() == pytest.approx(-1)


def test_temperatures_divide_the_logits_of_their_exit() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.1]])
    policy = ThresholdPolicy((0.5, 0.5), "margin", temperatures=(2.0, 0.5))
    assert policy.rate(0, logits).tolist() == pytest.approx([1.0, 0.05])
    assert policy.rate(1, logits).tolist() == pytest.approx([4.0, 0.2])
    assert policy.rate(2, logits).tolist() == pytest.approx([2.0, 0.1])  # the output
    assert ThresholdPolicy.from_json(policy.to_json()) == policy
    assert ThresholdPolicy.from_json({"thresholds": [None], "score": "margin"}).temperatures is None


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 0.0), (1.0, math.nan), (1.0, math.inf)])
def test_temperatures_are_positive_one_per_exit(temperatures: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="temperatures"):
        ThresholdPolicy((0.5, 0.5), temperatures=temperatures)


def test_a_batch_may_be_empty() -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    for threshold in (-math.inf, math.inf):
        model.policy = ThresholdPolicy((threshold,) * len(model.exits))
        with torch.no_grad():
            logits, exit_index = model.run(images(0))
        assert logits.shape == (0, 10)
        assert exit_index.shape == (0,)


@pytest.mark.parametrize("thresholds", [(), (0.0,), (0.0, 0.0, 0.0)])
def test_a_policy_has_a_threshold_for_every_exit(thresholds: tuple[float, ...]) -> None:
    model = with_exits(cifar_resnet(), (3, 32, 32))
    model.policy = ThresholdPolicy(thresholds)
    with torch.no_grad(), pytest.raises(UsageError, match=f"{len(thresholds)} thresholds for 2 exits"):
        model(images(2))
