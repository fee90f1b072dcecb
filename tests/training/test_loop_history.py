from __future__ import annotations

import builtins
import csv
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adaptify.errors import OutsideError, UsageError
from adaptify.training.history import EpochRow, MetricsLog, Validation
from adaptify.training.meter import Meter, NonFiniteLossError
from adaptify.training.objective import Loss


def row(epoch: int, **changes: Any) -> EpochRow:
    return EpochRow(
        **{
            "epoch": epoch,
            "lr": 0.1,
            "loss": 1.5,
            "train_accuracy": 0.25,
            "validation": Validation(0.5, kept=0.75),
            "images_per_second": 100.0,
            "seconds": 2.0,
            **changes,
        }
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_every_epoch_is_a_line_of_the_metrics(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.add(row(0, terms={"cross_entropy": 1.25}))
    assert len(read(log.path)) == 1
    log.add(row(1, validation=Validation(0.625, eligible=False), kept=0.5, extra={"open": 3, "loss": 99}))

    first, second = read(log.path)
    assert first == {
        "epoch": "0",
        "lr": "0.1",
        "loss": "1.5",
        "loss.cross_entropy": "1.25",
        "train_accuracy": "0.25",
        "accuracy": "0.5",
        "kept": "0.75",
        "eligible": "1",
        "images_per_second": "100",
        "seconds": "2",
        "train_kept": "",
        "open": "",
    }
    assert (second["epoch"], second["accuracy"], second["eligible"]) == ("1", "0.625", "0")
    assert (second["kept"], second["train_kept"], second["open"]) == ("", "0.5", "3")
    assert second["loss"] == "1.5"  # the loop's own figures cannot be overwritten
    assert second["loss.cross_entropy"] == ""


@pytest.mark.parametrize(
    ("found", "other", "better"),
    [
        (Validation(0.5), None, True),
        (Validation(0.5, eligible=False), None, False),
        (Validation(0.6), Validation(0.5), True),
        (Validation(0.6, eligible=False), Validation(0.5), False),
        (Validation(0.5), Validation(0.5), False),
        (Validation(0.5, kept=0.4), Validation(0.5, kept=0.6), True),
        (Validation(0.5, kept=0.6), Validation(0.5, kept=0.4), False),
    ],
)
def test_what_is_better(found: Validation, other: Validation | None, better: bool) -> None:
    assert found.beats(other) is better


def test_tensorboard_that_is_not_installed_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match="not installed") as caught:
        MetricsLog(tmp_path, tensorboard=True)
    assert "pip install adaptify[tensorboard]" in caught.value.hint
    MetricsLog(tmp_path).add(row(0))  # nobody needs it who does not ask


def test_tensorboard_gets_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    log = MetricsLog(tmp_path, tensorboard=True)
    log.add(row(3, terms={"cross_entropy": 1.25}))
    log.close()
    assert ("loss/cross_entropy", 1.25, 3) in written
    assert ("accuracy", 0.5, 3) in written
    assert written[-1][0] == "closed"


CALLS = ("__init__", "add_scalar", "flush", "close")


@pytest.mark.parametrize("call", CALLS)
def test_a_disk_that_is_full_for_tensorboard_is_told_of(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = type("Writer", (), {name: lambda *_: None for name in CALLS})
    setattr(writer, call, full)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))

    def write() -> None:
        log = MetricsLog(tmp_path, tensorboard=True)
        log.add(row(1))
        log.close()

    with pytest.raises(OutsideError) as caught:
        write()
    assert caught.value.message == f"cannot write {tmp_path}/tensorboard: No space left on device"


def loss_of(value: float, right: int, wrong: int, **terms: float) -> tuple[Loss, torch.Tensor]:
    logits = torch.eye(2)[torch.zeros(right + wrong, dtype=torch.long)]
    labels = torch.tensor([0] * right + [1] * wrong)
    tensors = {name: torch.tensor(term) for name, term in terms.items()}
    return Loss(torch.tensor(value), logits, tensors), labels


def test_means_are_over_images_and_a_term_counts_where_it_is() -> None:
    meter = Meter()
    meter.add(0, *loss_of(1.0, 3, 0))
    meter.add(1, *loss_of(5.0, 0, 1, penalty=4.0))
    assert meter.means == {}  # nothing is read before it is asked for
    meter.read()
    assert meter.means == {"loss": 2.0, "accuracy": 0.75, "loss.penalty": 4.0}
    assert meter.terms == {"penalty": 4.0}
    assert meter.images == 4
    meter.read()
    assert meter.images == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_is_found(value: float) -> None:
    meter = Meter()
    for step, loss in enumerate([1.0, 2.0, value, 1.0, value]):
        meter.add(step, *loss_of(loss, 1, 1))
    with pytest.raises(NonFiniteLossError) as caught:
        meter.read()
    assert caught.value.step == 2
