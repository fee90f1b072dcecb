"""Boosted exits, exits that a network has of its own, and gradients that are means over exits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.errors import ModelError, UsageError
from adaptify.graph.trace import Traced, trace
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import ThresholdPolicy, leave_at

SHAPE = (3, 8, 8)


class Chain(nn.Module):
    """Three stages of one convolution, each with a classifier on its average; all classifiers come last."""

    def __init__(self, returns: type = tuple) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 5) for _ in range(3))
        self.returns = returns

    def forward(self, x: Tensor) -> object:
        """Logits (N, 5) of each stage, from (N, 3, H, W)."""
        maps = []
        for stage in self.stages:
            x = torch.relu(stage(x))
            maps.append(x)
        return self.returns([head(x.mean((2, 3))) for head, x in zip(self.heads, maps, strict=True)])


def chain(**kwargs: type) -> tuple[Chain, Traced]:
    torch.manual_seed(0)
    network = Chain(**kwargs).eval()
    return network, trace(network, SHAPE)


def images(count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def leaving_by_half(model: AdaptiveModel, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Set thresholds between scores; the logits (N, M) and exits (N,) that rows should have then."""
    with torch.no_grad():
        found = model.everything(batch)
    logits = torch.stack([*found.exits.values(), found.logits])
    scores = logits[:-1].softmax(2).amax(2)
    ranked = scores.sort(1).values
    middle = batch.shape[0] // 2
    limits = (ranked[:, middle - 1] + ranked[:, middle]) / 2
    model.policy = ThresholdPolicy(tuple(limits.tolist()), "confidence")
    leaves = torch.cat([scores >= limits.unsqueeze(1), torch.ones(1, len(batch), dtype=torch.bool)])
    index = leaves.int().argmax(0)
    return logits[index, torch.arange(len(batch))], index


@pytest.mark.parametrize("returns", [tuple, list])
def test_a_network_that_returns_several_logits_has_exits_of_its_own(returns: type) -> None:
    network, traced = chain(returns=returns)
    model = AdaptiveModel(traced).eval()
    batch = images(6)
    assert [item.site.name for item in model.exits] == ["heads.0", "heads.1"]
    found = model.everything(batch)
    wanted = network(batch)
    for ours, theirs in zip((*found.exits.values(), found.logits), wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(model(batch), wanted[-1])


def test_rows_that_leave_at_own_exits_are_spared_the_rest_even_where_heads_come_last() -> None:
    _, traced = chain()
    model = AdaptiveModel(traced).eval()
    batch = images(32)
    wanted, index = leaving_by_half(model, batch)
    rows: list[int] = []
    for stage in model.get_submodule("stages").children():
        stage.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    with torch.no_grad():
        outcome = model.run(batch)
    assert torch.equal(outcome.exit_index, index)
    torch.testing.assert_close(outcome.logits, wanted)
    assert rows == [32, int((index > 0).sum()), int((index > 1).sum())]


def test_macs_of_own_exits_by_hand() -> None:
    _, traced = chain()
    model = AdaptiveModel(traced)
    first, later, head = 64 * 27 * 4, 64 * 36 * 4, 4 * 5
    assert model.cost.total == first + 2 * later + 3 * head
    assert model.exit_macs() == (first + head, first + later + 2 * head, model.cost.total)
    # A head that is switched off is not computed.
    only_second = ThresholdPolicy((float("inf"), 0.5), "confidence")
    assert model.exit_macs(only_second) == (first, first + later + head, model.cost.total - head)
    assert sorted(set(model.exits_passed().values())) == [0, 1, 2]


def test_a_head_that_is_switched_off_does_not_run() -> None:
    _, traced = chain()
    model = AdaptiveModel(traced).eval()
    model.policy = ThresholdPolicy((float("inf"), 2.0), "confidence")
    ran: list[str] = []
    for name, head in model.get_submodule("heads").named_children():
        head.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    model.run(images(2))
    assert ran == ["1", "2"]


def test_no_exits_can_be_added_to_own_ones() -> None:
    _, traced = chain()
    model = AdaptiveModel(traced)
    with pytest.raises(UsageError, match="has 2 exits of its own"):
        AdaptiveModel(traced, model.exits)


def test_outputs_of_different_shapes_are_no_exits() -> None:
    class Odd(Chain):
        def forward(self, x: Tensor) -> object:
            logits = super().forward(x)
            return logits[0][:, :2], logits[1]

    traced = trace(Odd().eval(), SHAPE)
    assert traced.own_exits == ()
    with pytest.raises(ModelError, match="does not return one score per class"):
        AdaptiveModel(traced)


@pytest.mark.parametrize("temperatures", [(0.5, 0.5), (1.0, 0.0)])
def test_boosted_exits_add_to_those_before(temperatures: tuple[float, float]) -> None:
    network, traced = chain()
    model = AdaptiveModel(traced, boost=temperatures).eval()
    batch = images(5)
    f1, f2, f3 = network(batch)
    second = temperatures[0] * f1 + f2
    found = model.everything(batch)
    torch.testing.assert_close(found.exits["heads.0"], f1)
    torch.testing.assert_close(found.exits["heads.1"], second)
    torch.testing.assert_close(found.logits, temperatures[1] * second + f3)


def test_no_gradient_goes_through_the_sum_of_those_before() -> None:
    _, traced = chain()
    model = AdaptiveModel(traced, boost=(0.5, 0.5)).train()
    model.everything(images(5)).logits.square().sum().backward()
    heads = [head.weight.grad for head in model.get_submodule("heads").children()]
    assert heads[0] is None
    assert heads[1] is None
    assert heads[2].abs().sum() > 0


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_leaving_gives_boosted_rows_what_everything_gives(count: int) -> None:
    _, traced = chain()
    model = AdaptiveModel(traced, boost=(0.5, 0.7)).eval()
    batch = images(count)
    if count > 1:
        wanted, index = leaving_by_half(model, batch)
    else:
        wanted, index = model.everything(batch).logits, torch.tensor([2])
    with torch.no_grad():
        outcome = model.run(batch)
    assert torch.equal(outcome.exit_index, index)
    torch.testing.assert_close(outcome.logits, wanted)


def test_an_exit_that_is_switched_off_still_counts_in_the_ensemble() -> None:
    _, traced = chain()
    model = AdaptiveModel(traced, boost=(0.5, 0.5)).eval()
    batch = images(4)
    model.policy = ThresholdPolicy((float("inf"), 0.0), "confidence")
    with torch.no_grad():
        outcome = model.run(batch)
        wanted = model.everything(batch).exits["heads.1"]
    torch.testing.assert_close(outcome.logits, wanted)
    assert model.exit_macs(model.policy) == model.exit_macs()


def test_boosting_asks_for_one_temperature_an_exit() -> None:
    _, traced = chain()
    with pytest.raises(UsageError, match="3 temperatures for an ensemble of 2 exits"):
        AdaptiveModel(traced, boost=(0.5, 0.5, 0.5))


def test_rescaled_gradients_are_means_over_the_exits_behind() -> None:
    """Equation 7, against the gradients of each exit's loss on its own."""
    _, traced = chain()
    model = AdaptiveModel(traced.with_own_tensors(), boost=(0.5, 0.5)).train()
    batch, labels = images(6), torch.arange(6) % 5
    parameters = dict(model.named_parameters())

    def losses() -> list[Tensor]:
        found = model.everything(batch)
        return [F.cross_entropy(logits, labels) for logits in (*found.exits.values(), found.logits)]

    single = []
    for index in range(3):
        model.zero_grad()
        losses()[index].backward()
        single.append({name: p.grad for name, p in parameters.items()})
    model.zero_grad()
    model.rescale_gradients = True
    together = losses()
    sum(together).backward()
    for stage in range(3):
        behind = single[stage:]
        name = f"stages.{stage}.weight"
        mean = sum(item[name] for item in behind) / len(behind)
        torch.testing.assert_close(parameters[name].grad, mean)
        # A head answers for its own exit alone, in full.
        head = f"heads.{stage}.weight"
        torch.testing.assert_close(parameters[head].grad, single[stage][head])
    plain = [float(value.detach()) for value in together]
    model.rescale_gradients = False
    assert [float(value.detach()) for value in losses()] == plain


@pytest.mark.parametrize("boost", [None, 0.5])
def test_msdnet_runs_the_same_in_its_fast_form(boost: float | None) -> None:
    torch.manual_seed(0)
    network = resolve("adaptify:digits_msdnet").build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    traced = trace(network.eval(), (1, 8, 8))
    temperatures = None if boost is None else [boost] * len(traced.own_exits)
    model = AdaptiveModel(traced, boost=temperatures).eval()
    batch = images(24, (1, 8, 8))
    wanted, index = leaving_by_half(model, batch)
    fast = optimize(model)
    for runs in (model, fast):
        with torch.no_grad():
            outcome = runs.run(batch)
        assert torch.equal(outcome.exit_index, index)
        torch.testing.assert_close(outcome.logits, wanted, rtol=1e-4, atol=1e-5)
    assert fast.exit_macs(fast.policy) == model.exit_macs(model.policy)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_anytime_prediction_stops_at_one_exit(index: int) -> None:
    _, traced = chain()
    model = AdaptiveModel(traced, boost=(0.5, 0.5)).eval()
    batch = images(5)
    with torch.no_grad():
        found = model.everything(batch)
        model.policy = ThresholdPolicy.from_json(leave_at(index, exits=2).to_json())
        outcome = model.run(batch)
    assert outcome.exit_index.tolist() == [index] * 5
    torch.testing.assert_close(outcome.logits, [*found.exits.values(), found.logits][index])


def test_there_is_no_anytime_prediction_behind_the_output() -> None:
    with pytest.raises(UsageError, match="no exit 3 among 2"):
        leave_at(3, exits=2)
