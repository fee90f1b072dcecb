"""The objectives of networks with exits, by hand; and where samples leave, for any gates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptify.errors import UsageError
from adaptify.runtime.adaptive import Everything
from adaptify.training.exit_loss import (
    ExitsObjective,
    LearnedExitsObjective,
    leaving,
    losses_of,
    valid_shares,
    weights_of,
)
from adaptify.training.objective import Distillation, Moment

NOW = Moment(epoch=0, step=0, steps=1, epochs=1)
IMAGES = torch.zeros(2, 1, 4, 4)
LABELS = torch.tensor([0, 1])
# Of two classes, the difference of the logits decides: label 0 for the first sample, 1 for the second.
LOGITS = (
    torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
    torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
    torch.tensor([[3.0, 0.0], [1.0, 0.0]]),
)
MARGINS = ((1.0, 2.0), (-1.0, 0.0), (3.0, -1.0))
SURE = 50.0  # log-odds that no draw overturns


def entropy(margin: float) -> float:
    """Cross-entropy of two classes whose logits differ by `margin` in favour of the label."""
    return math.log(1 + math.exp(-margin))


LOSSES = [[entropy(margin) for margin in row] for row in MARGINS]
MEANS = [sum(row) / 2 for row in LOSSES]


def said(odds: list[list[float]] | None = None) -> tuple[Everything, list[Tensor], Tensor]:
    """What a network with two exits says, the logits that gradients reach, and the log-odds (2, 2)."""
    logits = [item.clone().requires_grad_() for item in LOGITS]
    gates = torch.tensor(odds or [[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    found = Everything(logits[2], {"a": logits[0], "b": logits[1]}, {"a": gates[0], "b": gates[1]})
    return found, logits, gates


def test_losses_are_those_of_every_prediction_for_every_sample() -> None:
    found, _, _ = said()
    torch.testing.assert_close(losses_of(found, LABELS), torch.tensor(LOSSES))


def test_label_smoothing_spreads_the_label() -> None:
    found, _, _ = said()
    smoothed = losses_of(found, LABELS, label_smoothing=0.2)
    assert smoothed[0, 0].item() == pytest.approx(0.9 * entropy(1) + 0.1 * entropy(-1))


def test_the_sum_over_exits_by_hand() -> None:
    found, _, _ = said()
    loss = ExitsObjective((1.0, 1.0, 1.0))(lambda images: found, IMAGES, LABELS, NOW)
    assert loss.total.item() == pytest.approx(sum(MEANS))
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(
        dict(zip(("a", "b", "output"), MEANS, strict=True))
    )
    assert loss.logits is found.logits
    assert loss.kept is None
    assert not any(term.requires_grad for term in loss.terms.values())
    assert loss.figures is not None
    assert loss.figures.keys() == {"valid.a", "valid.b", "valid.output"}


def test_weights_scale_losses_and_their_gradients() -> None:
    found, logits, _ = said()
    loss = ExitsObjective((2.0, 0.0, 0.5))(lambda images: found, IMAGES, LABELS, NOW)
    assert loss.total.item() == pytest.approx(2 * MEANS[0] + 0.5 * MEANS[2])
    loss.total.backward()
    first, second, output = (item.grad for item in logits)
    assert first is not None
    assert second is not None
    assert output is not None
    # d CE / d logit of the label is -(1 - p) / 2 samples; the weight is on top of that.
    assert first[0, 0].item() == pytest.approx(-2 * (1 / (1 + math.e)) / 2)
    assert not second.any()
    assert output[0, 0].item() == pytest.approx(-0.5 * (1 / (1 + math.exp(3))) / 2)


def test_distillation_is_of_the_output_and_comes_on_top() -> None:
    found, _, _ = said()
    distillation = Distillation(lambda images: torch.zeros(2, 2), weight=3.0, temperature=2.0)
    loss = ExitsObjective((1.0, 1.0, 1.0), distillation=distillation)(
        lambda images: found, IMAGES, LABELS, NOW
    )
    term = distillation(IMAGES, LOGITS[2]).item()
    assert term > 0
    assert loss.terms["distillation"].item() == pytest.approx(term)
    assert loss.total.item() == pytest.approx(sum(MEANS) + term)


def test_valid_shares_by_hand() -> None:
    """The 10th percentile of 0, 1, ..., 10 is 1; nine of them are above."""
    first = torch.arange(11.0)
    losses = torch.stack([first, first - 5, torch.full((11,), 1.0), torch.full((11,), 1.5)])
    assert valid_shares(losses).tolist() == pytest.approx([9 / 11, 4 / 11, 0.0, 1.0])


def test_one_weight_for_each_prediction() -> None:
    assert weights_of(None, 3) == (1.0, 1.0, 1.0)
    assert weights_of([1.0, 0.5], 2) == (1.0, 0.5)
    with pytest.raises(UsageError, match=r"train\.weights has 2 numbers for 3 exits and the output"):
        weights_of([1.0, 0.5], 4)


# --- Where samples leave ---

gates_of_any_size = st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(
        st.lists(st.floats(0, 1), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@given(gates_of_any_size)
@settings(deadline=None)
def test_every_sample_leaves_once(gates: list[list[float]]) -> None:
    found = leaving(torch.tensor(gates, dtype=torch.float64))
    assert found.shape == (len(gates) + 1, len(gates[0]))
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(0), torch.ones(len(gates[0]), dtype=torch.float64))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
@settings(deadline=None)
def test_samples_leave_at_the_first_open_gate(gates: list[list[bool]]) -> None:
    found = leaving(torch.tensor(gates).float())
    for sample in range(3):
        column = [row[sample] for row in gates]
        wanted = column.index(True) if any(column) else len(column)
        assert found[:, sample].tolist() == [float(index == wanted) for index in range(len(column) + 1)]


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=5))
@settings(deadline=None)
def test_gradients_are_those_of_the_products_even_at_0_and_1(values: list[float]) -> None:
    """w_i = z_i prod_{j<i} (1 - z_j): no factor is ever divided out, so that closed and open gates learn."""
    gates = torch.tensor(values, dtype=torch.float64).unsqueeze(1).requires_grad_()
    for index in range(len(values) + 1):
        (gradient,) = torch.autograd.grad(leaving(gates)[index, 0], gates)
        for other in range(len(values)):
            rest = [1 - z for position, z in enumerate(values[:index]) if position != other]
            own = values[index] if index < len(values) else 1.0
            wanted = 0.0
            if other < index:
                wanted = -own * math.prod(rest)
            elif other == index:
                wanted = math.prod(rest)
            assert gradient[other, 0].item() == pytest.approx(wanted, abs=1e-9)


# --- Gates that learn who leaves ---

MACS = (30, 60, 110)  # a sample that runs to the end pays both gates


def learned(target: float = 1.0, **options: float) -> LearnedExitsObjective:
    return LearnedExitsObjective(MACS, 100, target, **options)  # type: ignore[arg-type]


def test_the_loss_of_learned_exits_by_hand() -> None:
    """The first sample leaves at b, the second at the end."""
    found, _, _ = said([[-SURE, -SURE], [SURE, -SURE]])
    loss = learned(0.5, weight=4.0, auxiliary=0.25)(lambda images: found, IMAGES, LABELS, NOW)
    chosen = (LOSSES[1][0] + LOSSES[2][1]) / 2
    kept = (0.6 + 1.1) / 2
    assert loss.kept is not None
    assert loss.kept.item() == pytest.approx(kept)
    assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(
        {"where samples leave": chosen, "everywhere": sum(MEANS), "compute": (kept - 0.5) ** 2}
    )
    assert loss.total.item() == pytest.approx(chosen + 0.25 * sum(MEANS) + 4 * (kept - 0.5) ** 2)
    assert loss.figures is not None
    assert {name: share.item() for name, share in loss.figures.items()} == {
        "leave.a": 0.0,
        "leave.b": 0.5,
        "leave.output": 0.5,
    }


@pytest.mark.parametrize(("odds", "kept"), [(SURE, 0.3), (-SURE, 1.1)])
def test_less_than_the_target_is_worth_nothing_more(odds: float, kept: float) -> None:
    found, _, _ = said([[odds, odds], [odds, odds]])
    loss = learned(0.5)(lambda images: found, IMAGES, LABELS, NOW)
    assert loss.kept is not None
    assert loss.kept.item() == pytest.approx(kept)
    assert loss.terms["compute"].item() == pytest.approx(max(0.0, kept - 0.5) ** 2)


def test_a_classifier_learns_from_those_that_leave_there_and_from_all_by_the_auxiliary_loss() -> None:
    odds = [[-SURE, -SURE], [SURE, -SURE]]
    found, logits, _ = said(odds)
    learned(auxiliary=0.0)(lambda images: found, IMAGES, LABELS, NOW).total.backward()
    rows = [item.grad.abs().sum(1) > 0 for item in logits if item.grad is not None]
    assert torch.stack(rows).tolist() == [[False, False], [True, False], [False, True]]
    found, logits, _ = said(odds)
    learned(auxiliary=1.0)(lambda images: found, IMAGES, LABELS, NOW).total.backward()
    for item in logits:
        assert item.grad is not None
        assert bool((item.grad.abs().sum(1) > 0).all())


def test_gradients_reach_gates_through_the_draw() -> None:
    """Above the target, all gates are pulled open; below it, only the loss where samples leave pulls."""
    torch.manual_seed(0)
    found, _, gates = said([[0.0, 0.0], [0.0, 0.0]])
    learned(0.01, weight=1e4)(lambda images: found, IMAGES, LABELS, NOW).total.backward()
    assert gates.grad is not None
    assert bool((gates.grad[0] < 0).all())
    torch.manual_seed(0)
    found, _, gates = said([[0.0, 0.0], [0.0, 0.0]])
    learned(1.2, weight=1e4)(lambda images: found, IMAGES, LABELS, NOW).total.backward()
    assert gates.grad is not None
    assert bool(gates.grad.any())
    assert float(gates.grad.abs().max()) < 10


def test_distillation_comes_on_top_of_learned_exits_too() -> None:
    found, _, _ = said([[SURE, SURE], [SURE, SURE]])
    distillation = Distillation(lambda images: torch.zeros(2, 2), weight=3.0, temperature=2.0)
    plain = learned()(lambda images: found, IMAGES, LABELS, NOW).total.item()
    loss = LearnedExitsObjective(MACS, 100, 1.0, distillation=distillation)(
        lambda images: found, IMAGES, LABELS, NOW
    )
    assert loss.total.item() == pytest.approx(plain + distillation(IMAGES, LOGITS[2]).item())
