"""What follows from a report's figures: the same for the page and for the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adaptify.reports.schema import ClassEffect, Point, Report
from adaptify.reports.schema.exits import Promise
from adaptify.text import memory, milliseconds, percent, points, quantity, whole

_UNTRAINED = 0.20  # of accuracy that was gained


@dataclass(frozen=True)
class Target:
    """What calibration was asked for, and what it got.

    Attributes:
        request: The request in words.
        achieved: What the calibration samples gave, in words.
        test: What the test samples gave, in words.
        promise: What holds for new samples, in words; `None` if nothing was promised.
        met: Whether the test samples meet the request; `None` where nothing was asked for. They had no
            part in the choice: meeting it on the calibration samples says nothing.
    """

    request: str
    achieved: str
    test: str
    met: bool | None
    promise: str | None = None


def target(report: Report) -> Target | None:
    """Return what calibration was asked for and what came of it; `None` for a report without calibration."""
    calibration = report.calibration
    if calibration is None:
        return None
    operating = operating_point(report)
    base, now = report.accuracies
    if report.exits:
        # A drop is what leaving early costs: a network that was trained with its exits is another one now.
        base = report.exits[-1].accuracy_all
    trained = base != report.accuracies[0]
    drop, test_drop = calibration.base_accuracy - calibration.accuracy, base - now
    request = calibration.request
    if request.get("max_drop") is not None:
        allowed = float(request["max_drop"])
        promise = calibration.promise
        return Target(
            f"lose at most {_points(allowed)} of accuracy{' by leaving early' if trained else ''}",
            _lost(drop),
            _lost(test_drop),
            100 * test_drop <= allowed + 1e-6,
            None if promise is None else _in_words(promise),
        )
    if request.get("max_macs") is not None:
        allowed = float(request["max_macs"])
        kept = None if operating is None else operating[0]
        return Target(
            f"keep at most {percent(allowed)} of the MACs",
            "not recorded" if kept is None else f"{percent(kept)} kept",
            f"{percent(report.after.kept)} kept",
            report.after.kept <= allowed + 1e-6,
        )
    return Target("thresholds given by hand", _lost(drop), _lost(test_drop), None)


def chosen_point(report: Report) -> Point | None:
    """Return the point of the frontier that the exits' thresholds are, or `None` if they are not on it."""
    thresholds = [exit_.threshold for exit_ in report.exits[:-1]]
    for point in report.frontier:
        if len(point.thresholds) == len(thresholds) and all(
            a is b is None
            or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9))
            for a, b in zip(point.thresholds, thresholds, strict=True)
        ):
            return point
    return None


def operating_point(report: Report) -> tuple[float, float] | None:
    """Return (fraction of MACs kept, accuracy) of the choice, on the calibration samples, if known."""
    chosen, calibration = chosen_point(report), report.calibration
    if chosen is not None:
        return chosen.macs / report.before.macs, chosen.accuracy
    if calibration is not None and calibration.macs is not None:
        return calibration.macs / report.before.macs, calibration.accuracy
    return None


def spread(items: Sequence[Point], count: int, keep: Point | None = None) -> list[Point]:
    """Return about `count` of the points, evenly spread over their MACs, the ends and `keep` among them."""
    if len(items) <= count:
        return list(items)
    low, high = items[0].macs, items[-1].macs
    targets = [low + (high - low) * i / (count - 1) for i in range(count)]
    picked = {min(range(len(items)), key=lambda i: abs(items[i].macs - target)) for target in targets}
    if keep is not None:
        picked |= {i for i, point in enumerate(items) if point is keep}
    return [items[i] for i in sorted(picked)]


@dataclass(frozen=True)
class ClassRow:
    """One class of the data: where its samples leave.

    Attributes:
        name: Name of the class.
        samples: Number of its samples.
        shares: Fraction of them that leaves at each exit.
        kept: Mean MACs of its samples, as a fraction of the whole network's.
    """

    name: str
    samples: int
    shares: tuple[float, ...]
    kept: float


def class_rows(report: Report) -> list[ClassRow]:
    """Return the classes that have samples, those that need the least compute first."""
    rows = []
    classes = report.data.classes if report.data else []
    for name, *counts in zip(classes, *report.classes_per_exit, strict=False):
        samples = sum(counts)
        if samples:
            shares = tuple(count / samples for count in counts)
            kept = sum(share * exit_.share_macs for share, exit_ in zip(shares, report.exits, strict=True))
            rows.append(ClassRow(name, samples, shares, kept))
    return sorted(rows, key=lambda row: (row.kept, row.name))


def headline(report: Report) -> list[tuple[str, str, str, str]]:
    """Return the rows (what, before, after, change) that a report begins with."""
    before, after = report.before, report.after
    rows = [("Accuracy", "-", "-", "not measured")]
    if report.measured:
        base, now = report.accuracies
        rows = [("Accuracy", percent(base, 2), percent(now, 2), f"{points(now - base)} points")]
    rows += [
        ("MACs per sample", quantity(before.macs), quantity(after.macs), f"{percent(after.kept)} kept"),
        ("FLOPs per sample", quantity(2 * before.macs), quantity(2 * after.macs), "2 x MACs"),
        *_times(report),
        ("Parameters", *parameters(report)),
    ]
    if before.bytes and after.bytes is not None:
        rows.append(("Size", memory(before.bytes), memory(after.bytes), change(after.bytes / before.bytes)))
    return rows


def _times(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the headline: of a single image, and of larger batches where they were timed."""
    size = report.pruning.batch_size if report.pruning else 1
    was, left = report.before.milliseconds, report.after.milliseconds
    measured = {row.batch_size: row for row in report.speed.batches} if report.speed is not None else {}
    if was and left is not None and size not in measured:
        yield _time_of(size), milliseconds(was), milliseconds(left), change(left / was)
    for size, row in measured.items():
        told = change(row.ratio) if row.steady else "unsteady"
        yield _time_of(size), milliseconds(row.before), milliseconds(row.after), told


def _time_of(images: int) -> str:
    return "Time, one image" if images == 1 else f"Time, {images} images"


def change(ratio: float) -> str:
    """Return in words what is left of something, or how much it has grown.

    >>> change(0.5), change(1.25)
    ('50.0% kept', '25.0% more')
    """
    return f"{percent(ratio)} kept" if ratio <= 1 else f"{percent(ratio - 1)} more"


@dataclass(frozen=True)
class Payers:
    """Who pays for the savings: classes by what became of their accuracy on the test samples.

    Attributes:
        rows: The classes, those that lose the most first.
        lose: How many lose accuracy.
        gain: How many gain.
        one_image: What one image of a class of median size counts, as a fraction of its accuracy.
    """

    rows: tuple[ClassEffect, ...]
    lose: int
    gain: int
    one_image: float

    @property
    def most(self) -> float:
        """The largest change, in either direction; 0: nothing changed."""
        return max(abs(row.after - row.before) for row in self.rows)


def came_untrained(report: Report) -> bool:
    """Whether the network as it came was so bad that nothing can be lost."""
    before, after = report.before.accuracy, report.after.accuracy
    return before is not None and after is not None and after - before > _UNTRAINED


def payers(report: Report) -> Payers | None:
    """Return who pays for the savings of a report; `None` where that was not recorded.

    A network that was far worse before, of random weights, says nothing about that either.
    """
    if not report.class_effects or came_untrained(report):
        return None
    rows = sorted(report.class_effects, key=lambda row: (row.after - row.before, row.after))
    changes = [row.after - row.before for row in rows]
    return Payers(
        tuple(rows),
        sum(change < 0 for change in changes),
        sum(change > 0 for change in changes),
        1 / statistics.median(row.samples for row in rows),
    )


def parameters(report: Report) -> tuple[str, str, str]:
    """Return the number of parameters before and after, and what became of them."""
    before, after, model = report.before.parameters, report.after.parameters, report.model
    gates = model.gate_parameters
    if before is not None and after is not None and after - before != gates:
        return quantity(before), quantity(after), change(after / before)
    told = f"{quantity(gates)} in gates" if gates else "unchanged"
    return quantity(model.parameters), quantity(model.parameters + gates), told


def _in_words(promise: Promise) -> str:
    return (
        f"at most {_points(promise.max_drop)} lost on new images, with {100 * promise.confidence:g}% "
        f"confidence; tested on {whole(promise.samples)} other held-out images: {_lost(promise.drop / 100)}"
    )


def _points(value: float) -> str:
    return f"{value:g} {'point' if value == 1 else 'points'}"


def _lost(drop: float) -> str:
    if round(100 * drop, 2) == 0:
        return "nothing lost"
    return f"{abs(100 * drop):.2f} points {'lost' if drop > 0 else 'gained'}"
