"""What became of a training run, epoch by epoch: in memory, as `metrics.csv`, and for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptify.errors import UsageError
from adaptify.files import telling, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Validation:
    """What held-out images say about a network.

    Attributes:
        accuracy: Top-1, in [0, 1].
        kept: Fraction of the MACs that is left, where the network has gates.
        eligible: Whether these weights may be the best: not before a target is reached, for example.
        activity: Mean probability of being open at each site with gates.
    """

    accuracy: float
    kept: float | None = None
    eligible: bool = True
    activity: tuple[float, ...] = ()

    def beats(self, other: Validation | None) -> bool:
        """Whether this is eligible and better: more accurate, or as accurate with fewer MACs."""
        if other is None or not self.eligible:
            return self.eligible
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        return self.accuracy, -(1.0 if self.kept is None else self.kept)


@dataclass(frozen=True)
class EpochRow:
    """One epoch.

    Attributes:
        epoch: From 0.
        lr: Learning rate of the network at the last step.
        loss: Mean over the training images, as they came by.
        train_accuracy: Likewise.
        validation: What held-out images say after it, for the averaged weights where there are any.
        images_per_second: Of training alone.
        seconds: Of the whole epoch, in wall-clock time.
        kept: Fraction of MACs in training, where the objective tells; a mean over the images.
        terms: What the loss is made of; means over the images.
        extra: What else the objective told (means over the images), and what the caller observed.
    """

    epoch: int
    lr: float
    loss: float
    train_accuracy: float
    validation: Validation
    images_per_second: float
    seconds: float
    kept: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """All figures by name, as columns of a table; what is not known has none."""
        known = {
            "epoch": self.epoch,
            "lr": self.lr,
            "loss": self.loss,
            **{f"loss.{name}": value for name, value in self.terms.items()},
            "train_accuracy": self.train_accuracy,
            "accuracy": self.validation.accuracy,
            "train_kept": self.kept,
            "kept": self.validation.kept,
            "eligible": int(self.validation.eligible),
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
        }
        own = {name: value for name, value in known.items() if value is not None}
        return own | {name: value for name, value in self.extra.items() if name not in own}

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EpochRow:
        """The inverse of `to_json`."""
        seen = value["validation"]
        return cls(**{**value, "validation": Validation(**{**seen, "activity": tuple(seen["activity"])})})


@dataclass(frozen=True)
class History:
    """A training run.

    Attributes:
        rows: One per epoch.
        chosen: The epoch whose weights were kept; None when nothing was trained.
    """

    rows: tuple[EpochRow, ...]
    chosen: int | None


class MetricsLog:
    """Writes rows to `metrics.csv` in a folder, and to `tensorboard/` in it when asked to.

    Raises:
        UsageError: TensorBoard was asked for and is not installed.
        AdaptifyError: Its folder cannot be written.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.csv"
        self._rows: list[dict[str, float]] = []
        self._boards = folder / "tensorboard"
        self._board = _open_board(self._boards) if tensorboard else None

    def add(self, row: EpochRow) -> None:
        """Write one more row. The file is written anew: a row may have columns that those before had not.

        Raises:
            AdaptifyError: The file cannot be written.
        """
        self._rows.append(row.figures())
        self._write()
        if self._board is not None:
            with telling(self._boards):
                for name, value in row.figures().items():
                    self._board.add_scalar(name.replace(".", "/"), value, row.epoch)
                self._board.flush()

    def resume(self, rows: Iterable[EpochRow]) -> None:
        """Go on after `rows`, which were written before: TensorBoard has them already.

        Raises:
            AdaptifyError: The file cannot be written.
        """
        self._rows = [row.figures() for row in rows]
        self._write()

    def _write(self) -> None:
        columns = dict.fromkeys(name for figures in self._rows for name in figures)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.7g}" for name, value in figures.items()} for figures in self._rows)
        write_text(self.path, table.getvalue())

    def close(self) -> None:
        """Let go of the files.

        Raises:
            AdaptifyError: What was written last is not on the disk.
        """
        if self._board is not None:
            with telling(self._boards):
                self._board.close()


def _open_board(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "train.tensorboard is set, but TensorBoard is not installed",
            "Install it: pip install adaptify[tensorboard], or train without it.",
        ) from error
    with telling(folder):
        return SummaryWriter(str(folder))
