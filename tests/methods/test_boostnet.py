"""BoostNet: which exits, what they are trained towards, and what comes out on the digits."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from digits_network import learned_digits
from exit_nets import OWN, PLAIN, exit_steps
from pydantic import ValidationError
from torch import nn

from adaptify.assembly import assemble
from adaptify.data import Data, open_data
from adaptify.errors import AdaptifyError, ModelError, UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import Traced, trace
from adaptify.methods import ExitFit, FitContext, find_method
from adaptify.methods.boostnet import BoostNet, Gates, Train
from adaptify.plan import BoostExits, PlaceExit
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import SCORES
from adaptify.training.recalibrate import normalisations


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=PLAIN.input)


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Module:
    """A small network that has learned the digits for a moment."""
    return learned_digits(data, epochs=4)


def fresh_msdnet() -> Traced:
    torch.manual_seed(0)
    return trace(OWN.build().eval(), OWN.input.shape)


def fitted(
    traced: Traced, data: Data, folder: Path, gates: dict[str, Any], train: dict[str, Any]
) -> tuple[AdaptiveModel, ExitFit]:
    """Place and train exits; `traced` keeps its tensors."""
    method = BoostNet(Gates.model_validate(gates), Train.model_validate({"batch_size": 64, **train}))
    torch.manual_seed(0)
    model = assemble(traced.with_own_tensors(), method.place(traced, CostModel(traced), 10))
    assert isinstance(model, AdaptiveModel)
    return model, method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, folder, folder))


def test_it_is_registered() -> None:
    assert find_method("boostnet") is BoostNet


# --- Which exits ---


def test_exits_go_after_every_stage_but_the_last() -> None:
    traced = trace(PLAIN.build().eval(), PLAIN.input.shape)
    first, second, boost = exit_steps("boostnet", traced, head="convolutional", width=8)
    assert isinstance(first, PlaceExit)
    assert isinstance(second, PlaceExit)
    assert [first.site, second.site] == ["layer1", "layer2"]
    assert (first.channels, first.classes, first.head, first.width, first.gate) == (
        16,
        10,
        "convolutional",
        8,
        False,
    )
    assert boost == BoostExits(temperatures=(0.5, 0.5))


def test_named_sites_and_a_plain_sum() -> None:
    traced = trace(PLAIN.build().eval(), PLAIN.input.shape)
    steps = exit_steps("boostnet", traced, sites=("layer2",), pool=2, ensemble="none")
    assert steps == (PlaceExit(site="layer2", channels=32, classes=10, pool=2),)
    with pytest.raises(UsageError, match="no exit site is called 'layer9'"):
        exit_steps("boostnet", traced, sites=("layer9",))


def test_a_network_with_exits_keeps_its_own() -> None:
    traced = fresh_msdnet()
    assert exit_steps("boostnet", traced) == (BoostExits(temperatures=(0.5,) * 3),)
    assert exit_steps("boostnet", traced, ensemble="none") == ()
    with pytest.raises(UsageError, match="MSDNet has 3 exits of its own, and no others") as caught:
        exit_steps("boostnet", traced, sites=("blocks.0",))
    assert "gates.ensemble=none train.epochs=0" in caught.value.hint


def test_a_network_without_a_place_to_leave_is_refused() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1))

    with pytest.raises(ModelError, match="Single has no place where samples could leave"):
        exit_steps("boostnet", trace(Single().eval(), (3, 2, 2)))


@pytest.mark.parametrize(
    ("given", "wanted"), [(0.5, (0.5, 0.5, 0.5)), (0, (0, 0, 0)), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3))]
)
def test_temperatures_of_the_ensemble(given: Any, wanted: tuple[float, ...]) -> None:
    (step,) = exit_steps("boostnet", fresh_msdnet(), temperature=given)
    assert step == BoostExits(temperatures=wanted)


def test_as_many_temperatures_as_there_are_sums() -> None:
    with pytest.raises(UsageError, match="has 2 numbers for 3 exits and the output") as caught:
        exit_steps("boostnet", fresh_msdnet(), temperature=(0.5, 0.5))
    assert "3: one for each but the first" in caught.value.hint


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, (0.5, -1.0), (math.nan,)])
def test_temperatures_are_finite_and_not_negative(value: Any) -> None:
    with pytest.raises(ValidationError, match="a temperature is a finite number, 0 or more"):
        Gates(temperature=value)


def test_weights_are_not_negative() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Train(weights=(1.0, -1.0))


def test_as_many_weights_as_there_are_predictions(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 3 numbers for 3 exits and the output"):
        fitted(fresh_msdnet(), data, tmp_path, {}, {"epochs": 1, "weights": (1.0, 1.0, 1.0)})


# --- Training ---


def accuracies(fit: ExitFit) -> list[float]:
    """Of every exit, and the output, on all test samples."""
    return [float(row) for row in fit.test.correct.double().mean(1)]


def test_a_network_with_exits_learns_from_random_weights(data: Data, tmp_path: Path) -> None:
    model, fit = fitted(fresh_msdnet(), data, tmp_path, {}, {"epochs": 3, "lr": 0.1})
    assert not model.training
    assert model.rescale_gradients
    assert len(accuracies(fit)) == 4
    assert min(accuracies(fit)) > 0.85
    assert fit.score == "confidence"
    assert fit.temperatures is None
    assert fit.history is not None
    names = [item.site.name for item in model.exits]
    last = fit.history.rows[-1]
    assert list(last.terms) == [*names, "output"]
    assert last.extra.keys() == {f"valid.{name}" for name in [*names, "output"]}
    assert last.extra[f"valid.{names[0]}"] == pytest.approx(0.9, abs=0.02)
    assert fit.history.rows[0].loss > last.loss
    # What was noted is what the network says.
    images, labels = next(data.test.batches(len(data.test)))
    assert torch.equal(fit.test.labels, labels)
    with torch.no_grad():
        found = model.everything(images)
    said = torch.stack([logits.argmax(1) for logits in (*found.exits.values(), found.logits)])
    assert float((said == fit.test.predictions).double().mean()) > 0.999
    rated = torch.stack([SCORES["confidence"](logits) for logits in found.exits.values()])
    torch.testing.assert_close(fit.test.scores, rated, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("gates", "lr"),
    # Linear heads are classifiers before the first step; the others start from nothing.
    [
        pytest.param({}, 0.01, id="linear"),
        pytest.param({"head": "convolutional", "width": 8}, 0.05, id="convolutional", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_keeps_its_accuracy_while_exits_learn(
    gates: dict[str, Any], lr: float, network: nn.Module, data: Data, tmp_path: Path
) -> None:
    traced = trace(network, PLAIN.input.shape)
    _, before = fitted(traced, data, tmp_path / "before", gates, {"epochs": 0, "warm_start": False})
    _, after = fitted(traced, data, tmp_path / "after", gates, {"epochs": 4, "lr": lr})
    assert accuracies(before)[-1] > 0.9
    assert accuracies(before)[0] < 0.2  # a fresh head says nothing
    assert accuracies(after)[-1] > accuracies(before)[-1] - 0.02
    assert accuracies(after)[1] > 0.5
    assert before.history is not None
    assert before.history.rows == ()


def test_linear_heads_start_as_classifiers_of_what_is_there(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    traced = trace(network, PLAIN.input.shape)
    model, warm = fitted(traced, data, tmp_path / "warm", {}, {"epochs": 0})
    cold_model, cold = fitted(traced, data, tmp_path / "cold", {}, {"epochs": 0, "warm_start": False})
    assert min(accuracies(warm)[:-1]) > 0.5
    assert max(accuracies(cold)[:-1]) < 0.2
    # Nothing but the heads was touched, and what they add to the output does it no harm.
    ours, theirs = model.state_dict(), cold_model.state_dict()
    differing = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert differing == [f"gates.layer{n}.linear.{part}" for n in (1, 2) for part in ("weight", "bias")]
    assert accuracies(warm)[-1] > accuracies(cold)[-1] - 0.02


def test_every_statistic_is_taken_anew_where_exits_are_not_summed(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    """Evaluation leaves out exits that are switched off: their BatchNorm must not be forgotten for that."""
    gates = {"head": "convolutional", "width": 8, "ensemble": "none"}
    traced = trace(network, PLAIN.input.shape)
    model, fit = fitted(traced, data, tmp_path, gates, {"epochs": 2, "lr": 0.05, "augment": False})
    assert model.boost is None
    assert accuracies(fit)[1] > 0.5
    images = torch.cat([images for images, _ in data.train.batches(256)])
    for item in model.exits:
        assert item.head is not None
        norm = normalisations(item.head)[0]
        assert norm.running_mean is not None
        seen: list[torch.Tensor] = []
        norm.register_forward_hook(lambda _module, args, _output, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model.everything(images)
        torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=0.2, atol=0.02)


def test_without_epochs_a_trained_network_is_observed_and_stays_as_it_is(data: Data, tmp_path: Path) -> None:
    traced = fresh_msdnet()
    before = {name: tensor.clone() for name, tensor in traced.root.state_dict().items()}
    model, fit = fitted(traced, data, tmp_path, {"ensemble": "none", "scale": True}, {"epochs": 0})
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert fit.history is not None
    assert fit.history.rows == ()
    images, labels = next(data.holdout.batches(len(data.holdout)))
    with torch.no_grad():
        wanted = torch.stack([logits.argmax(1) for logits in traced_outputs(traced, images)])
    assert float((fit.holdout.predictions == wanted).double().mean()) > 0.99
    assert torch.equal(fit.holdout.labels, labels)
    assert fit.temperatures is not None
    assert len(fit.temperatures) == 3


def traced_outputs(traced: Traced, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    network = OWN.build().eval()
    network.load_state_dict(traced.root.state_dict())
    found: tuple[torch.Tensor, ...] = network(images)
    return found


def test_scores_are_scaled_by_temperatures_that_make_held_out_samples_likelier(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    traced = trace(network, PLAIN.input.shape)
    model, fit = fitted(traced, data, tmp_path, {"scale": True}, {"epochs": 2, "lr": 0.05})
    assert fit.temperatures is not None
    images, labels = next(data.holdout.batches(len(data.holdout)))
    with torch.no_grad():
        exits = list(model.everything(images).exits.values())
    for logits, scores, temperature in zip(exits, fit.holdout.scores, fit.temperatures, strict=True):
        torch.testing.assert_close(scores, (logits / temperature).softmax(1).amax(1), rtol=1e-3, atol=1e-4)
        scaled, plain = (F.cross_entropy(logits / t, labels) for t in (temperature, 1.0))
        assert float(scaled) <= float(plain) + 1e-6


def test_a_weight_of_zero_teaches_an_exit_nothing(network: nn.Module, data: Data, tmp_path: Path) -> None:
    traced = trace(copy.deepcopy(network), PLAIN.input.shape)
    options = {"epochs": 1, "weights": (0.0, 1.0, 1.0), "warm_start": False, "rescale": False}
    model, _ = fitted(traced, data, tmp_path, {}, options)
    assert not model.rescale_gradients
    first, second = (item.head for item in model.exits)
    assert first is not None
    assert second is not None
    assert not any(parameter.any() for parameter in first.parameters())
    assert all(bool(parameter.any()) for parameter in second.parameters())


def test_the_same_seed_gives_the_same_network(network: nn.Module, data: Data, tmp_path: Path) -> None:
    traced = trace(network, PLAIN.input.shape)
    options = {"epochs": 1, "distill": {"weight": 1.0, "temperature": 4.0}}
    (first, told), (second, _) = (
        fitted(traced, data, tmp_path / name, {}, options) for name in ("first", "second")
    )
    assert told.history is not None
    assert "distillation" in told.history.rows[0].terms
    ours, theirs = first.state_dict(), second.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("method", ["dgate", "gumbel_exits"])
def test_other_exits_refuse_a_network_that_has_its_own(method: str) -> None:
    with pytest.raises(UsageError, match="has 3 exits of its own") as caught:
        exit_steps(method, fresh_msdnet())
    assert "--method boostnet" in caught.value.hint


@pytest.mark.parametrize("method", ["gumbel", "sgad", "lcnet"])
def test_gates_that_close_something_refuse_it_too(method: str) -> None:
    with pytest.raises(AdaptifyError, match="MSDNet has exits of its own, beside which nothing") as caught:
        exit_steps(method, fresh_msdnet())
    assert "--method boostnet" in caught.value.hint
