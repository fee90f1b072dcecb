"""Several runs side by side: what each came to, and where they cannot be held against each other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptify.reports.curves import anytime, anytime_within, budgeted, budgeted_within, chosen
from adaptify.reports.derive import payers
from adaptify.reports.schema import ClassEffect, Report
from adaptify.reports.svg import ticks
from adaptify.text import whole

_BUDGETS = 8  # rows of a table, at most


@dataclass(frozen=True)
class Run:
    """A run among others.

    Attributes:
        number: From 1, in the order in which runs were named.
        name: What it is called.
        report: What it came to.
        settings: Its settings that another run of the same method has otherwise.
    """

    number: int
    name: str
    report: Report
    settings: Mapping[str, Any]

    @property
    def parameters(self) -> tuple[int, int]:
        """Number of parameters before and after, those of gates included."""
        before, after, model = self.report.before, self.report.after, self.report.model
        if before.parameters is not None and after.parameters is not None:
            return before.parameters, after.parameters
        return model.parameters, model.parameters + model.gate_parameters

    @property
    def worst(self) -> ClassEffect | None:
        """The class that loses the most accuracy; None where no class loses any, or that is not known."""
        paid = payers(self.report)
        return paid.rows[0] if paid is not None and paid.lose else None

    @property
    def images_per_second(self) -> float | None:
        """Test images in a second of the network alone, if they were timed."""
        seconds = self.report.timing.get("evaluation_s")
        return self.report.data.test / seconds if seconds and self.report.data is not None else None


@dataclass(frozen=True)
class BudgetRow:
    """What the test samples give within a budget.

    Attributes:
        macs: MACs per sample: of the policies on average, of a single exit for each sample.
        budgeted: For each run, the accuracy of the policy that is chosen for it; None: nothing fits.
        anytime: For each run, the accuracy of the deepest exit within it; None: there is none.
    """

    macs: float
    budgeted: tuple[float | None, ...]
    anytime: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: The runs, in the order in which they were named.
        budgets: What they give for a few amounts of compute, ascending.
        warnings: Why some of them cannot be held against each other.
        notes: What else to know.
    """

    runs: tuple[Run, ...]
    budgets: tuple[BudgetRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def measured(self) -> bool:
        """Whether any run knows its accuracy."""
        return any(run.report.measured for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON value."""
        return {
            "format": "adaptify.comparison",
            "version": 1,
            "runs": [_run_json(run) for run in self.runs],
            "budgets": [
                {"macs": row.macs, "budgeted": list(row.budgeted), "anytime": list(row.anytime)}
                for row in self.budgets
            ],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


def compare(reports: Sequence[tuple[str, Report]]) -> Comparison:
    """Put runs side by side.

    Args:
        reports: Name and report of each run.
    """
    settings = _differing([_settings(report) for _, report in reports])
    runs = tuple(
        Run(number, name, report, own)
        for number, ((name, report), own) in enumerate(zip(reports, settings, strict=True), 1)
    )
    return Comparison(runs, _budgets(runs), tuple(_warnings(runs)), tuple(_notes(runs)))


def best_of(values: Sequence[float | None]) -> float | None:
    """Return the highest of the values that are known, where there are at least two."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) > 1 else None


def _budgets(runs: Sequence[Run]) -> tuple[BudgetRow, ...]:
    reports = [run.report for run in runs if run.report.measured]
    places = [place for report in reports for place in (*budgeted(report), *anytime(report), chosen(report))]
    costs = [place[0] for place in places if place is not None]
    if not costs or min(costs) == max(costs):
        return ()
    rounded = [macs for macs in ticks(min(costs), max(costs), _BUDGETS) if macs < max(costs)]
    rows = (
        BudgetRow(
            macs,
            tuple(budgeted_within(run.report, macs) for run in runs),
            tuple(anytime_within(run.report, macs) for run in runs),
        )
        for macs in [*rounded, max(costs)]
    )
    return tuple(row for row in rows if any(found is not None for found in (*row.budgeted, *row.anytime)))


def _warnings(runs: Sequence[Run]) -> Iterator[str]:
    measured = [run for run in runs if run.report.measured]
    on = _grouped(measured, lambda run: _data_key(run.report))
    if len(on) > 1:
        told = "; ".join(f"{_named(group)} on {_data_words(group[0].report)}" for group in on)
        yield f"measured on different images: {told}. Their accuracies say nothing about each other"
    for run in runs:
        if not run.report.measured:
            yield f"{_named([run])} was not measured: it is in the table only"


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    of = _grouped(runs, lambda run: run.report.model.sha256 or run.report.model.architecture)
    if len(of) > 1:
        told = "; ".join(
            f"{_named(group)} of {group[0].report.model.checkpoint or group[0].report.model.architecture}"
            for group in of
        )
        yield f"not made of the same checkpoint: {told}"
    old = [run for run in runs if run.report.frontier and run.report.exits and not run.report.budgeted]
    if old:
        yield f"{_named(old)}: no curve on the test samples; `adaptify calibrate` measures it"


def _data_key(report: Report) -> Hashable:
    data = report.data
    return None if data is None else (data.name, tuple(data.classes), data.test)


def _data_words(report: Report) -> str:
    data = report.data
    assert data is not None  # what was measured has data
    return f"{data.name} ({whole(data.test)} test samples, {whole(len(data.classes))} classes)"


def _named(runs: Sequence[Run]) -> str:
    return ", ".join(f"{run.name} [{run.number}]" for run in runs)


def _grouped(runs: Sequence[Run], key: Callable[[Run], Hashable]) -> list[list[Run]]:
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _settings(report: Report) -> dict[tuple[str, str], Any]:
    """The options of the method, and what calibration was asked for, by (method or nothing, dotted name)."""
    asked = report.calibration.request if report.calibration else {}
    options = {(report.method.name, name): value for name, value in _flat(report.method.options)}
    return options | {("", name): value for name, value in _flat(asked, "calibrate.")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _differing(settings: Sequence[Mapping[tuple[str, str], Any]]) -> list[dict[str, Any]]:
    """Of each, what at least one other has too, with another value; by dotted names."""
    found: list[dict[str, Any]] = []
    for own in settings:
        others = [other for other in settings if other is not own]
        found.append(
            {
                name: value
                for (method, name), value in own.items()
                if any((method, name) in other and other[method, name] != value for other in others)
            }
        )
    return found


def _run_json(run: Run) -> dict[str, Any]:
    report = run.report
    before, after = run.parameters
    return {
        "name": run.name,
        "architecture": report.model.architecture,
        "sha256": report.model.sha256,
        "method": report.method.name,
        "settings": dict(run.settings),
        "data": report.data.model_dump(mode="json", include={"name", "test"}) if report.data else None,
        "before": {**report.before.model_dump(mode="json"), "parameters": before},
        "after": {**report.after.model_dump(mode="json"), "parameters": after},
        "images_per_second": run.images_per_second,
        "anytime": [{"macs": macs, "accuracy": value} for macs, value in anytime(report)],
        "budgeted": [{"macs": macs, "accuracy": value} for macs, value in budgeted(report)],
    }
