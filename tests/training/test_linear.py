from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptify.errors import UsageError
from adaptify.progress import SilentProgress, Stage
from adaptify.training.features import FeatureCache, cache_features
from adaptify.training.linear import LOSSES, LinearGate, hinge_loss, train_linear_gates


def cached(labels: Tensor, **sites: Tensor) -> FeatureCache:
    rows = torch.arange(len(labels)).split(64)
    return cache_features(
        lambda index: {name: values[index] for name, values in sites.items()}, [(r, labels[r]) for r in rows]
    )


def clusters(samples: int, width: int, classes: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian clusters, with features of very different scale and offset."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator) * 2
    labels = torch.randint(0, classes, (samples,), generator=generator)
    values = centres[labels] + spread * torch.randn(samples, width, generator=generator)
    scale = torch.logspace(-1, 2, width)
    return (values * scale + 3 * scale).half().float(), labels


def standardised(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, std = values.double().mean(0), values.double().std(0, correction=0)
    return (values.double() - mean) / std, mean, std


def full_batch_optimum(values: Tensor, labels: Tensor, classes: int, loss: str, l2: float) -> float:
    """Objective after a long second-order solve; the hinge is smoothed, less and less."""
    x = torch.cat([values, torch.ones(len(values), 1, dtype=torch.float64)], dim=1)
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    signs = 2.0 * F.one_hot(labels, classes) - 1

    def objective(width: float) -> Tensor:
        scores = x @ weight
        if loss == "cross_entropy":
            value = F.cross_entropy(scores, labels)
        else:
            margin = (1 - signs * scores).clamp(min=0)
            value = torch.where(margin > width, margin - width / 2, margin**2 / (2 * width)).sum(1).mean()
        return value + l2 * weight[:-1].square().sum()

    for width in (1.0, 0.1, 0.01, 0.001):
        solver = torch.optim.LBFGS(
            [weight], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12
        )

        def closure(width: float = width, solver: torch.optim.Optimizer = solver) -> Tensor:
            solver.zero_grad()
            value = objective(width)
            value.backward()
            return value

        solver.step(closure)
    with torch.no_grad():
        return float(LOSSES[loss].value(x @ weight, labels) + l2 * weight[:-1].square().sum())


def test_the_hinge_loss_by_hand() -> None:
    scores = torch.tensor([[2.0, -3.0, 0.0], [0.5, 0.5, -0.5]])
    # Sample 0, class 0: 0 + 0 + 1. Sample 1, class 2: 1.5 + 1.5 + 1.5.
    assert hinge_loss(scores, torch.tensor([0, 2])).item() == pytest.approx((1 + 4.5) / 2)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_slopes_are_the_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 7, generator=generator, dtype=torch.float64).mul_(2).requires_grad_()
    labels = torch.randint(0, 7, (40,), generator=generator)
    LOSSES[name].value(scores, labels).backward()

    assert scores.grad is not None
    torch.testing.assert_close(LOSSES[name].slope(scores.detach(), labels) / 40, scores.grad)


@pytest.mark.parametrize(("loss", "slack"), [("hinge", 0.01), ("cross_entropy", 0.002)])
@pytest.mark.parametrize("l2", [1e-4, 1e-2])
def test_the_optimum_is_reached(loss: str, slack: float, l2: float) -> None:
    values, labels = clusters(600, 8, 4, spread=3.0)
    with cached(labels, site=values) as cache:
        gate = train_linear_gates(cache, 4, loss=loss, l2=l2)["site"]
    x, mean, std = standardised(values)
    weight = gate.weight.double() * std
    scores = x @ weight.T + gate.bias.double() + gate.weight.double() @ mean
    ours = float(LOSSES[loss].value(scores, labels) + l2 * weight.square().sum())
    best = full_batch_optimum(x, labels, 4, loss, l2)

    assert best * (1 - 1e-6) <= ours <= best * (1 + slack)


def test_separable_classes_reach_zero_loss() -> None:
    values, labels = clusters(1000, 16, 5, spread=0.1)
    with cached(labels, site=values) as cache:
        weight, bias = train_linear_gates(cache, 5, l2=0.0)["site"]
    scores = values @ weight.T + bias

    assert hinge_loss(scores, labels).item() < 1e-3
    assert scores.argmax(1).equal(labels)


def test_the_result_applies_to_features_as_they_are() -> None:
    # Two points, one feature: standardised they are -1 and 1, and d = +-x has zero loss and the least
    # norm among such. Folded back: x' = (x - 110) / 10.
    values, labels = torch.tensor([[100.0], [120.0]]), torch.tensor([0, 1])
    with cached(labels, site=values) as cache:
        weight, bias = train_linear_gates(cache, 2, l2=1e-2, lr=0.02)["site"]

    torch.testing.assert_close(weight, torch.tensor([[-0.1], [0.1]]), atol=0.003, rtol=0)
    torch.testing.assert_close(bias, torch.tensor([11.0, -11.0]), atol=0.33, rtol=0)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_folding_is_exact(loss: str) -> None:
    """A shifted and scaled feature gives the same scores: standardising takes both out."""
    values, labels = clusters(300, 6, 3, spread=2.0)
    values = values.div(torch.logspace(-1, 2, 6)).half().float()
    moved = values * 4 + 64  # exact in float16 as far as these values go
    moved, values = moved.half().float(), (moved.half().float() - 64) / 4
    with cached(labels, a=values, b=moved) as cache:
        gates = train_linear_gates(cache, 3, loss=loss, epochs=5)

    ours = [x @ gates[name].weight.T + gates[name].bias for name, x in (("a", values), ("b", moved))]
    torch.testing.assert_close(*ours, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(gates["a"].weight, gates["b"].weight * 4, atol=1e-4, rtol=1e-3)


def test_the_penalty_shrinks_the_weight() -> None:
    values, labels = clusters(400, 6, 3, spread=1.0)
    with cached(labels, site=values) as cache:
        gates = [train_linear_gates(cache, 3, l2=l2)["site"] for l2 in (0.0, 1e-2, 1e-1)]
    std = standardised(values)[2]
    norms = [float((gate.weight * std).norm()) for gate in gates]

    assert norms[0] > norms[1] > norms[2] > 0


def test_the_same_seed_gives_the_same_gates_and_sites_do_not_meddle() -> None:
    values, labels = clusters(500, 6, 3, spread=2.0)
    with cached(labels, a=values, b=values[:, :2].clone()) as cache:
        both = train_linear_gates(cache, 3, epochs=3, seed=1)
        alone = train_linear_gates(cache, 3, epochs=3, seed=1, sites=["b"])
        other = train_linear_gates(cache, 3, epochs=3, seed=2, sites=["b"])

    assert list(both) == ["a", "b"]
    assert list(alone) == ["b"]
    assert both["b"].weight.equal(alone["b"].weight)
    assert both["b"].bias.equal(alone["b"].bias)
    assert not other["b"].weight.equal(alone["b"].weight)


class Threads(SilentProgress):
    """Notes how many threads there are when work tells how far it is."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Stage]:
        return nullcontext(self)

    def advance(self, n: int = 1, **figures: float) -> None:
        self.seen.add(torch.get_num_threads())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "threads"), [(8, 1), (20_000, 2)])
def test_small_problems_take_one_thread(width: int, threads: int, two_threads: None) -> None:
    values, labels = clusters(300, width, 3, spread=1.0)
    progress = Threads()
    with cached(labels, site=values) as cache:
        train_linear_gates(cache, 3, epochs=2, progress=progress)
    assert progress.seen == {threads}
    assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_error(two_threads: None) -> None:
    values, labels = clusters(300, 8, 3, spread=1.0)
    with cached(labels, site=values) as cache, pytest.raises(UsageError, match="diverged"):
        train_linear_gates(cache, 3, lr=1e30, epochs=2)
    assert torch.get_num_threads() == 2


def test_memory_and_disk_give_the_same_gates() -> None:
    values, labels = clusters(500, 6, 3, spread=2.0)
    gates: list[LinearGate] = []
    for ram_limit in (0, 1 << 20):
        batches = [(r, labels[r]) for r in torch.arange(500).split(100)]
        with cache_features(lambda r: {"a": values[r]}, batches, ram_limit=ram_limit) as cache:
            gates.append(train_linear_gates(cache, 3, epochs=2)["a"])

    assert gates[0].weight.equal(gates[1].weight)


def test_features_that_never_vary_get_no_weight() -> None:
    values, labels = clusters(300, 4, 3, spread=1.0)
    values[:, 1] = 5.0
    values[:, 2] = 0.0
    with cached(labels, site=values) as cache:
        weight, bias = train_linear_gates(cache, 3, epochs=2)["site"]

    assert weight[:, 1:3].count_nonzero() == 0
    assert weight[:, [0, 3]].abs().min() > 0
    assert weight.isfinite().all()
    assert bias.isfinite().all()


def test_a_small_variation_counts_where_it_was_not_rounded_away() -> None:
    labels = torch.arange(200) % 2
    values = 1000 + 0.01 * labels.unsqueeze(1).float()
    batches = [(r, labels[r]) for r in torch.arange(200).split(50)]
    with cache_features(lambda r: {"exact": values[r], "half": values[r]}, batches, exact=["exact"]) as cache:
        gates = train_linear_gates(cache, 2, epochs=2)

    assert gates["exact"].weight.count_nonzero() == 2
    assert gates["half"].weight.count_nonzero() == 0


def test_integers_beside_the_features_are_no_sites_by_default() -> None:
    values, labels = clusters(100, 4, 3, spread=1.0)
    with cached(labels, layer1=values, predicted=labels.unsqueeze(1)) as cache:
        assert list(train_linear_gates(cache, 3, epochs=1)) == ["layer1"]


def test_few_samples_get_as_many_steps_as_many_samples() -> None:
    values, labels = clusters(40, 4, 3, spread=0.1)
    with cached(labels, site=values) as cache:
        weight, bias = train_linear_gates(cache, 3, l2=0.0)["site"]

    assert hinge_loss(values @ weight.T + bias, labels) < 0.01


def test_progress_hears_of_every_epoch() -> None:
    values, labels = clusters(100, 4, 3, spread=1.0)
    heard: list[object] = []

    class Listener:
        def stage(self, name: str, total: int | None = None) -> Listener:
            heard.append((name, total))
            return self

        def __enter__(self) -> Listener:
            return self

        def __exit__(self, *rest: object) -> None:
            heard.append("end")

        def advance(self, n: int = 1, **figures: float) -> None:
            heard.append((n, sorted(figures)))

        def note(self, message: str) -> None:
            heard.append(message)

    with cached(labels, layer1=values) as cache:
        train_linear_gates(cache, 3, epochs=2, progress=Listener())
    assert heard == [("train the gate at layer1", 2), (1, ["loss"]), (1, ["loss"]), "end"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hing"}, "did you mean 'hinge'"),
        ({"sites": ["layer9"]}, "no features of 'layer9'"),
        ({"classes": 2}, "labels run from 0 to 2, but there are 2 classes"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"l2": -1.0}, "l2=-1.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"l2": 1e6, "epochs": 50}, "'layer1' diverged with lr=5.0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    values, labels = clusters(100, 4, 3, spread=1.0)
    with cached(labels, layer1=values) as cache, pytest.raises(UsageError, match=message):
        train_linear_gates(cache, **{"classes": 3, "epochs": 1, **options})  # type: ignore[arg-type]


def test_two_gates_on_45000_samples_take_seconds() -> None:
    values, labels = clusters(45_000, 48, 10, spread=4.0)
    with cached(labels, layer1=values[:, :16].clone(), layer2=values[:, 16:].clone()) as cache:
        started = time.process_time()
        gates = train_linear_gates(cache, 10)
        seconds = time.process_time() - started
    accuracies = [
        float(((x @ gate.weight.T + gate.bias).argmax(1) == labels).float().mean())
        for x, gate in zip(values.split([16, 32], dim=1), gates.values(), strict=True)
    ]

    assert seconds < 15  # about 2 s; room for slow machines
    assert all(accuracy > 0.4 for accuracy in accuracies)
    assert all(a != b for a, b in itertools.pairwise(accuracies))
