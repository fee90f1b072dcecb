"""Training that stops anywhere and goes on ends with the same weights, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_loop import fit
from test_loop_companion import Both
from tiny_data import conv_net, linear_net
from torch import Tensor, nn

from adaptify.errors import UsageError
from adaptify.training.history import History, MetricsLog, Validation
from adaptify.training.objective import Classification, Loss, Moment
from adaptify.training.state import States

EPOCHS = 4
# Momentum is laid out as the weights are, channel by channel.
SETTINGS = {"epochs": EPOCHS, "lr": 0.05, "augment": True, "channels_last": True, "recalibrate": 2}


class Stop(BaseException):
    """A run that ends from one moment to the next."""


class Notes:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def stage(self, name: str, total: int | None = None) -> Any:
        from adaptify.progress import SILENT

        return SILENT.stage(name, total)


class Drifting:
    """An objective that remembers all batches so far, with noise of its own."""

    def __init__(self) -> None:
        self.mean = 0.0

    def __call__(self, model: Any, images: Tensor, labels: Tensor, moment: Moment) -> Loss:
        loss = Classification()(model, images, labels, moment)
        noise = float(torch.rand(()))
        self.mean = 0.9 * self.mean + 0.1 * float(loss.total.detach())
        return Loss(loss.total * (1 + noise + self.mean), loss.logits, loss.terms)

    def state(self) -> Mapping[str, Any]:
        return {"mean": self.mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def run(folder: Path, stop: int | None = None, notes: Notes | None = None, **given: Any) -> Any:
    """Train from the beginning or from where it stopped; stop in the middle of epoch `stop`."""
    model, companion = conv_net(), linear_net(3)
    objective = given.pop("objective", Drifting)()

    def failing(*arguments: Any) -> Loss:
        loss: Loss = objective(*arguments)
        if stop is not None and arguments[-1].epoch == stop and arguments[-1].step % 2:
            raise Stop
        return loss

    class Wrapped:
        __call__ = staticmethod(failing)
        state = staticmethod(getattr(objective, "state", dict))
        restore = staticmethod(getattr(objective, "restore", lambda state: None))

    settings = {**SETTINGS, **given}
    history = fit(
        model,
        folder,
        objective=Wrapped(),
        companion=companion if settings.pop("beside", False) else None,
        states=States(folder / "states"),
        progress=notes or Notes(),
        **settings,
    )
    return everything(model), history


def told(history: History) -> list[Any]:
    """What a history says, less the time it took."""
    rows = [row.to_json() for row in history.rows]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adamw", "clip": 1.0, "accumulate": 2},
        {"ema": 0.8, "keep": "best"},
        {"schedule": {"kind": "constant", "warmup": 1.5}, "momentum": 0.0},
    ],
    ids=["sgd", "adamw", "ema", "plain"],
)
@pytest.mark.parametrize("stop", range(1, EPOCHS))
def test_what_stopped_and_went_on_is_what_never_stopped(
    settings: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    whole, history = run(tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        run(tmp_path / "parts", stop, **settings)
    notes = Notes()
    resumed, again = run(tmp_path / "parts", notes=notes, **settings)
    assert same(resumed, whole)
    assert told(again) == told(history)
    assert again.chosen == history.chosen
    assert notes.said == [f"training goes on: {stop} of {EPOCHS} epochs are done"]


def test_it_stops_as_often_as_it_likes(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    for stop in (0, 1, 1, 2, 3):
        with pytest.raises(Stop):
            run(tmp_path / "parts", stop)
    assert same(run(tmp_path / "parts")[0], whole)


def test_a_run_whose_training_is_done_trains_no_more(tmp_path: Path) -> None:
    whole, history = run(tmp_path, ema=0.5)
    again, same_history = run(tmp_path, 0, ema=0.5)
    assert same(again, whole)
    assert same_history == history  # the seconds are those of then


def test_what_an_objective_remembers_matters_here(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "parts", 2)

    class Forgetful(Drifting):
        def restore(self, state: Mapping[str, Any]) -> None:
            pass

    assert not same(run(tmp_path / "parts", objective=Forgetful)[0], whole)


def test_companions_go_on_too(tmp_path: Path) -> None:
    def trained(folder: Path, stop: int | None) -> dict[str, Tensor]:
        model, companion = linear_net(), conv_net(1)

        def observe(epoch: int, network: nn.Module) -> dict[str, float]:
            if epoch == stop:
                raise Stop
            return {}

        fit(
            model,
            folder,
            epochs=3,
            objective=Both(companion),
            companion=companion,
            states=States(folder / "states"),
            observe=observe,
        )
        return everything(companion)

    whole = trained(tmp_path / "whole", None)
    with pytest.raises(Stop):
        trained(tmp_path / "parts", 1)
    assert same(trained(tmp_path / "parts", None), whole)


def test_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    for damage in ("cut", "flipped", "empty"):
        parts = tmp_path / damage
        with pytest.raises(Stop):
            run(parts, 3)
        older, newest = sorted((parts / "states").iterdir())
        assert [older.name, newest.name] == ["epoch-000002.safetensors", "epoch-000003.safetensors"]
        content = bytearray(newest.read_bytes())
        content[-5] ^= 1
        newest.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[damage])
        notes = Notes()
        resumed, _ = run(parts, notes=notes)
        assert same(resumed, whole)
        assert f"{newest} is damaged" in notes.said[0]
        assert notes.said[1] == "training goes on: 2 of 4 epochs are done"


def test_with_no_whole_state_it_starts_again(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "parts", 3)
    for path in (tmp_path / "parts" / "states").iterdir():
        path.write_bytes(b"nothing")
    notes = Notes()
    assert same(run(tmp_path / "parts", notes=notes)[0], whole)
    assert len(notes.said) == 2


def test_newer_states_and_those_of_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, 2)
    with pytest.raises(UsageError, match="another network"):
        fit(linear_net(), tmp_path, states=States(tmp_path / "states"), **SETTINGS)
    (_, newest) = sorted((tmp_path / "states").iterdir())
    with safe_open(newest, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(newest), newest, {**metadata, "version": "2", "adaptify": "9.9"})
    with pytest.raises(UsageError, match="state version 2; this adaptify reads version 1") as caught:
        run(tmp_path)
    assert "written by version 9.9" in caught.value.hint


def test_a_missing_best_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, 2, keep="best")
    (tmp_path / "checkpoints/best.safetensors").unlink()
    with pytest.raises(UsageError, match=r"best\.safetensors is missing"):
        run(tmp_path, keep="best")


def test_metrics_go_on(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, 2)
    before = (tmp_path / "metrics.csv").read_text()
    run(tmp_path)
    after = (tmp_path / "metrics.csv").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 1 + EPOCHS


def test_rows_are_the_same_after_json(tmp_path: Path) -> None:
    _, history = run(tmp_path, epochs=1)
    row = history.rows[0]
    assert type(row).from_json(json.loads(json.dumps(row.to_json()))) == row
    seen = Validation(0.1, 0.2, False, (0.3, 0.4))
    other = type(row)(0, 0.1, 0.2, 0.3, seen, 1.0, 2.0, None, {"a": 0.1}, {"b": 1e-300})
    assert type(row).from_json(json.loads(json.dumps(other.to_json()))) == other
    log = MetricsLog(tmp_path / "log")
    log.resume([row, other])
    assert len(log.path.read_text().splitlines()) == 3
