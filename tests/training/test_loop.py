from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import INPUT, conv_net, linear_net, split_of, tiny_data, weights
from torch import Tensor, nn

from adaptify.data import Data, open_data
from adaptify.errors import AdaptifyError, UsageError
from adaptify.graph.trace import trace
from adaptify.input_spec import InputSpec
from adaptify.models.cifar_resnet import digits_resnet
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.training import loop
from adaptify.training.evaluate import top1
from adaptify.training.history import History, Validation
from adaptify.training.loop import train
from adaptify.training.objective import Classification, Loss, Moment
from adaptify.training.optimizer import GateParameters
from adaptify.training.options import LoopOptions, Schedule

PLAIN = {"batch_size": 64, "augment": False, "channels_last": False, "recalibrate": 0}


def fit(model: nn.Module, folder: Path, data: Data | None = None, **given: Any) -> History:
    arguments = {"objective": Classification(), "device": "cpu", "seed": 0}
    settings = {name: given.pop(name) for name in list(given) if name in LoopOptions.model_fields}
    options = LoopOptions(**{**PLAIN, "epochs": 1, **settings})
    return train(model, data or tiny_data(), options, folder=folder, **{**arguments, **given})


def test_the_embedded_digits_are_learnt(tmp_path: Path) -> None:
    data = open_data("digits", input=InputSpec(1, 8, 8, (0.5,), (0.5,)))
    torch.manual_seed(0)
    model = digits_resnet()
    history = train(
        model,
        data,
        LoopOptions(epochs=8, lr=0.1, schedule=Schedule(warmup=1), label_smoothing=0.1, ema=0.9, clip=5.0),
        objective=Classification(0.1),
        device="cpu",
        seed=0,
        folder=tmp_path,
    )
    assert top1(model, data.test, "cpu") > 0.94
    assert history.rows[-1].loss < history.rows[0].loss / 2
    assert history.rows[-1].validation.accuracy > 0.9
    assert history.chosen == 7


def test_one_epoch_is_what_torch_does_step_by_step(tmp_path: Path) -> None:
    data = tiny_data()
    model, expected = linear_net(), linear_net()
    fit(model, tmp_path, data, lr=0.1, weight_decay=0.01, schedule={"kind": "constant"})

    optimizer = torch.optim.SGD(expected.parameters(), 0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for images, labels in data.train.batches(64, shuffle=True, seed=loop._seed(0, 0)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(expected(images), labels).backward()
        optimizer.step()
    assert weights(model).equal(weights(expected))


def test_two_batches_of_64_are_one_of_128(tmp_path: Path) -> None:
    # Five batches of 64: the last step of an epoch has a single one.
    data = tiny_data(train=320)
    large, small = linear_net(), linear_net()
    fit(large, tmp_path / "a", tiny_data(train=256), epochs=2, batch_size=128, lr=0.1)
    fit(small, tmp_path / "b", tiny_data(train=256), epochs=2, batch_size=64, accumulate=2, lr=0.1)
    torch.testing.assert_close(weights(small), weights(large))

    seen: list[Moment] = []

    def watch(model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        seen.append(moment)
        return Classification()(model, images, labels, moment)

    fit(linear_net(), tmp_path / "c", data, epochs=2, accumulate=2, objective=watch)
    assert [moment.step for moment in seen] == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
    assert {(moment.steps, moment.epochs) for moment in seen} == {(6, 2)}


def test_the_last_step_of_an_epoch_is_a_mean_too(tmp_path: Path) -> None:
    """A step of a single batch, where two are accumulated, is as long as any other."""
    data = tiny_data(train=64)
    one, accumulated = linear_net(), linear_net()
    fit(one, tmp_path / "a", data)
    fit(accumulated, tmp_path / "b", data, accumulate=2)
    assert weights(one).equal(weights(accumulated))


def test_gradients_are_clipped_by_their_norm(tmp_path: Path) -> None:
    model = linear_net()
    before = weights(model).clone()
    settings = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "schedule": {"kind": "constant"}}
    fit(model, tmp_path, tiny_data(train=64), clip=0.01, **settings)
    assert float((weights(model) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_rate_follows_its_schedule_and_gates_have_their_own(tmp_path: Path) -> None:
    model = linear_net()
    gates = GateParameters([model[1].bias], count=20)
    found: list[tuple[float, float]] = []
    options = {"momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "gate_lr": 0.5}

    def steady(network: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        found.append((model[1].weight[0, 0].item(), model[1].bias[0].item()))
        total = model[1].weight.sum() + model[1].bias.sum()  # a gradient of 1 everywhere
        return Loss(total, network(images))

    schedule = {"kind": "multistep", "milestones": [0.5], "gamma": 0.1}
    history = fit(model, tmp_path, epochs=3, schedule=schedule, objective=steady, gates=gates, **options)
    moves = [(a - c, b - d) for (a, b), (c, d) in itertools.pairwise(found)]
    rates = [0.1] * 6 + [0.01] * 5
    assert [weight for weight, _ in moves] == pytest.approx(rates, rel=1e-3)
    assert [bias for _, bias in moves] == pytest.approx([5 * rate for rate in rates], rel=1e-3)
    assert [row.lr for row in history.rows] == pytest.approx([0.1, 0.01, 0.01])


class Sick:
    """An objective whose loss is no number from one step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        loss = Classification()(model, images, labels, moment)
        return Loss(loss.total * float("nan"), loss.logits) if moment.step >= self.step else loss


def test_a_loss_that_is_no_number_names_step_rate_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AdaptifyError) as caught:
        fit(linear_net(), tmp_path, epochs=3, lr=0.25, schedule={"kind": "constant"}, objective=Sick(5))
    assert caught.value.message == "training diverged: the loss is nan at step 6 of 12, at learning rate 0.25"
    good = tmp_path / "checkpoints" / "last.safetensors"
    assert f"The last good checkpoint is {good}." in caught.value.hint
    assert all(tensor.isfinite().all() for tensor in load_file(good).values())


def test_divergence_in_the_first_epoch_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AdaptifyError, match="step 1 of 4") as caught:
        fit(linear_net(), tmp_path, objective=Sick(0))
    assert "no good checkpoint yet" in caught.value.hint
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    def poison(model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        loss = Classification()(model, images, labels, moment)
        # The square root of zero: a finite loss whose gradient is infinite times zero.
        return Loss(
            loss.total + (0 * loss.logits).sum().sqrt() if moment.step == 3 else loss.total, loss.logits
        )

    with pytest.raises(AdaptifyError, match="a weight is not finite at step 4 of 4"):
        fit(linear_net(), tmp_path, objective=poison)
    assert list(tmp_path.rglob("*.safetensors")) == []


class Judge:
    """A validation with known answers, which remembers the weights it saw."""

    def __init__(self, *answers: Validation) -> None:
        self.answers = iter(answers)
        self.seen: list[Tensor] = []

    def __call__(self, model: nn.Module) -> Validation:
        assert not model.training
        self.seen.append(weights(model).clone())
        return next(self.answers)


@pytest.mark.parametrize(("keep", "chosen"), [("last", 2), ("best", 1)])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_last_or_the_best_weights_are_kept(
    tmp_path: Path, keep: str, chosen: int, ema: float | None
) -> None:
    model = linear_net()
    judge = Judge(Validation(0.9, eligible=False), Validation(0.7), Validation(0.6))
    history = fit(model, tmp_path, epochs=3, lr=0.1, keep=keep, ema=ema, validate=judge)

    assert history.chosen == chosen
    assert weights(model).equal(judge.seen[chosen])
    assert not model.training
    for name, epoch in (("last", 2), ("best", 1)):
        saved = load_file(tmp_path / "checkpoints" / f"{name}.safetensors")
        assert torch.cat([saved[key].flatten() for key in ("1.weight", "1.bias")]).equal(judge.seen[epoch])


def test_without_an_eligible_epoch_the_last_is_kept_and_that_is_said(tmp_path: Path) -> None:
    listener = Listener()
    judge = Judge(Validation(0.9, eligible=False))
    history = fit(linear_net(), tmp_path, keep="best", validate=judge, progress=listener)
    assert history.chosen == 0
    assert any("eligible" in note for note in listener.notes)
    assert not (tmp_path / "checkpoints" / "best.safetensors").exists()


def test_training_goes_on_from_the_weights_and_not_from_their_average(tmp_path: Path) -> None:
    plain, averaged = linear_net(), linear_net()
    fit(plain, tmp_path / "a", epochs=2, lr=0.1)
    history = fit(averaged, tmp_path / "b", epochs=2, lr=0.1, ema=0.9)
    reference = fit(linear_net(), tmp_path / "c", epochs=2, lr=0.1)
    assert [row.loss for row in history.rows] == [row.loss for row in reference.rows]
    assert not weights(averaged).equal(weights(plain))


def test_a_seed_is_all_that_counts_and_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    def run(seed: int, state: int) -> Tensor:
        model = nn.Sequential(conv_net(), nn.Dropout(0.2))
        torch.manual_seed(state)
        before = torch.get_rng_state()
        fit(model, tmp_path / f"{seed}-{state}", epochs=2, augment=True, seed=seed, recalibrate=2)
        assert torch.get_rng_state().equal(before)
        return weights(model)

    assert run(1, state=5).equal(run(1, state=6))
    assert not run(1, state=5).equal(run(2, state=5))


def test_every_epoch_has_its_own_order_whatever_came_before(tmp_path: Path) -> None:
    orders: dict[str, list[Tensor]] = {"short": [], "long": []}
    for name, epochs in (("short", 1), ("long", 2)):

        def note(model: Any, images: Tensor, labels: Tensor, moment: Moment, name: str = name) -> Loss:
            orders[name].append(torch.cat([labels.float(), torch.rand(2)]))
            return Classification()(model, images, labels, moment)

        fit(linear_net(), tmp_path / name, epochs=epochs, objective=note)
    assert torch.stack(orders["short"]).equal(torch.stack(orders["long"][:4]))
    assert not torch.stack(orders["short"]).equal(torch.stack(orders["long"][4:]))


def test_metrics_tell_what_the_history_tells(tmp_path: Path) -> None:
    def watched(model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        loss = Classification()(model, images, labels, moment)
        return Loss(loss.total, loss.logits, loss.terms, kept=torch.tensor(0.25 + moment.epoch))

    def observe(epoch: int, model: nn.Module) -> Mapping[str, float]:
        return {"open": 10.0 - epoch}

    history = fit(linear_net(), tmp_path, epochs=2, objective=watched, observe=observe)
    with (tmp_path / "metrics.csv").open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert [line["epoch"] for line in lines] == ["0", "1"]
    assert [line["open"] for line in lines] == ["10", "9"]
    assert [line["train_kept"] for line in lines] == ["0.25", "1.25"]
    for line, row in zip(lines, history.rows, strict=True):
        assert float(line["loss"]) == pytest.approx(row.loss)
        assert float(line["loss.cross_entropy"]) == pytest.approx(row.loss)
        assert float(line["accuracy"]) == pytest.approx(row.validation.accuracy)
        assert float(line["images_per_second"]) == pytest.approx(row.images_per_second)
        assert row.seconds >= 256 / row.images_per_second > 0


class Listener:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.totals: dict[str, int | None] = {}
        self._current = ""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Any:
        self._current = name
        self.stages[name], self.totals[name] = [], total
        yield self

    def advance(self, n: int = 1, **figures: float) -> None:
        self.stages[self._current].append((n, figures))

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_progress_counts_steps_and_shows_figures(tmp_path: Path) -> None:
    listener = Listener()

    def gated(model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        loss = Classification()(model, images, labels, moment)
        return Loss(loss.total, loss.logits, kept=torch.tensor(0.5))

    fit(conv_net(), tmp_path, epochs=2, recalibrate=3, objective=gated, progress=listener)
    told = listener.stages["train"]
    assert listener.totals["train"] == sum(n for n, _ in told) == 8
    figures = {name: value for _, part in told for name, value in part.items()}
    assert set(figures) == {"loss", "accuracy", "MACs kept", "images/s", "held-out"}
    assert figures["MACs kept"] == 0.5
    assert len(listener.stages["recalibrate BatchNorm"]) == 1  # one pass at most, in large batches


def test_batch_norm_is_recalibrated_for_the_weights_that_are_kept(tmp_path: Path) -> None:
    data = tiny_data()
    model = conv_net()
    fit(model, tmp_path, data, epochs=3, lr=0.1, ema=0.9, recalibrate=5)
    images, _ = next(iter(data.train.batches(256)))
    values = model[0](images).detach().transpose(0, 1).flatten(1)
    assert model[1].running_mean.tolist() == pytest.approx(values.mean(dim=1).tolist(), abs=1e-5)
    assert model[1].running_var.tolist() == pytest.approx(values.var(dim=1).tolist(), rel=1e-4)


def test_no_epochs_train_nothing_but_recalibrate(tmp_path: Path) -> None:
    model = conv_net()
    before = weights(model).clone()
    history = fit(model, tmp_path, epochs=0, recalibrate=5)
    assert history == History((), None)
    assert weights(model).equal(before)
    assert model[1].running_mean.abs().sum() > 0
    assert not model.training


def test_channels_last_computes_the_same_and_leaves_the_plain_layout(tmp_path: Path) -> None:
    layouts: list[bool] = []

    class Watching(Classification):
        def __call__(self, model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
            layouts.append(model[0].weight.is_contiguous(memory_format=torch.channels_last))
            return super().__call__(model, images, labels, moment)

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 4)
        )

    plain, last = net(), net()
    fit(plain, tmp_path / "a", epochs=2, lr=0.1)
    fit(last, tmp_path / "b", epochs=2, lr=0.1, channels_last=True, objective=Watching())
    torch.testing.assert_close(weights(last), weights(plain), rtol=1e-3, atol=1e-5)
    assert all(layouts)
    assert last[2].weight.is_contiguous()


def test_bfloat16_is_used_in_the_network_and_not_in_its_weights(tmp_path: Path) -> None:
    types: list[torch.dtype] = []

    class Watching(Classification):
        def __call__(self, model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
            loss = super().__call__(model, images, labels, moment)
            types.append(loss.logits.dtype)
            assert loss.total.dtype == torch.float32
            return loss

    model = conv_net()
    history = fit(model, tmp_path, epochs=6, lr=0.1, bf16=True, objective=Watching())
    assert set(types) == {torch.bfloat16}
    assert weights(model).dtype == torch.float32
    assert history.rows[-1].validation.accuracy > 0.8


def test_a_compiled_network_trains_the_network_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend="eager"))
    plain, compiled = linear_net(), linear_net()
    fit(plain, tmp_path / "a", lr=0.1)
    fit(compiled, tmp_path / "b", lr=0.1, compile=True)
    torch.testing.assert_close(weights(compiled), weights(plain))


def test_an_adaptive_network_can_be_trained(tmp_path: Path) -> None:
    net = conv_net().eval()
    model = AdaptiveModel(trace(net, INPUT.shape))
    before = weights(model).clone()
    history = fit(model, tmp_path, epochs=4, lr=0.1, channels_last=True, ema=0.5, keep="best", recalibrate=1)
    assert not weights(model).equal(before)
    assert history.rows[-1].validation.accuracy > 0.5
    assert model.memory_format is torch.contiguous_format
    images, _ = next(iter(tiny_data().test.batches(32)))
    torch.testing.assert_close(
        model(images), net(images)
    )  # it is the network's own tensors that were trained


@pytest.mark.parametrize("train", [1, 40, 65])
def test_any_number_of_images_will_do(tmp_path: Path, train: int) -> None:
    history = fit(linear_net(), tmp_path, tiny_data(train=train), epochs=2)
    assert len(history.rows) == 2


def test_batch_norm_never_sees_a_rest_of_one_image(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))
    fit(net, tmp_path, tiny_data(train=65), epochs=2, recalibrate=9)
    assert weights(net).isfinite().all()


def test_the_test_images_are_never_looked_at(tmp_path: Path) -> None:
    data = tiny_data()
    read, load = [], data.test._load

    def noted(report: Any) -> Tensor:
        read.append(report)
        return load(report)

    data.test._load = noted
    fit(conv_net(), tmp_path, data, recalibrate=1)
    assert read == []
    next(iter(data.test.batches(8)))
    assert len(read) == 1


def test_nothing_to_train_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no parameters"):
        fit(linear_net().requires_grad_(False), tmp_path)


def test_top1_by_hand() -> None:
    split = split_of(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1, 0, 1]))

    class Answer(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, str]:
            assert not self.training
            return torch.tensor([[0.0, 1.0]]).expand(len(images), 2), "more"

    assert top1(Answer(), split, "cpu", batch_size=2) == 0.6
