"""The report as rows for a spreadsheet: one a run, or one of its tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adaptify.errors import UsageError, did_you_mean
from adaptify.reports.schema import Report
from adaptify.reports.schema.part import Part

RUNS = "runs"
"""The table that has one row for each run."""

_TABLES: Mapping[str, Callable[[Report], Sequence[Part]]] = {
    "classes": lambda report: report.class_effects,
    "epochs": lambda report: report.training.epochs if report.training else [],
    "exits": lambda report: report.exits,
    "frontier": lambda report: report.frontier,
    "gates": lambda report: report.gating.sites if report.gating else [],
    "layers": lambda report: report.layers,
    "pruning": lambda report: report.pruning.layers if report.pruning else [],
    "times": lambda report: report.speed.batches if report.speed else [],
}

TABLES = (RUNS, *_TABLES)


def render_csv(reports: Sequence[tuple[str, Report]], table: str = RUNS) -> str:
    """Return a table of one run or of several, a row of which begins with the run's name.

    Accuracies and parts of MACs are fractions in [0, 1], times milliseconds, sizes bytes.

    Raises:
        UsageError: There is no such table, or none of the runs has it.
    """
    if table != RUNS and table not in _TABLES:
        raise UsageError(
            f"there is no table '{table}'{did_you_mean(table, TABLES)}", f"Tables: {', '.join(TABLES)}."
        )
    rows = [
        {"run": name, **row}
        for name, report in reports
        for row in ([_run(report)] if table == RUNS else map(_flat, _TABLES[table](report)))
    ]
    if not rows:
        has = [name for name, find in _TABLES.items() if any(find(report) for _, report in reports)]
        raise UsageError(f"the report has no {table}", f"It has: {', '.join([RUNS, *has])}.")
    return _written(rows)


def _run(report: Report) -> dict[str, Any]:
    data, before, after = report.data, report.before, report.after
    both = ("accuracy", "macs", "parameters", "bytes", "milliseconds")
    return {
        "architecture": report.model.architecture,
        "method": report.method.name,
        "data": data.name if data is not None else None,
        "test_samples": data.test if data is not None else None,
        **{f"{name}_{when}": getattr(part, name) for name in both for when, part in _when(before, after)},
        "macs_kept": after.kept,
        "checkpoint": report.model.checkpoint,
        "checkpoint_sha256": report.model.sha256,
        "file_sha256": report.file.sha256 if report.file is not None else None,
        "created": report.created.isoformat(),
        "adaptify": report.adaptify,
    }


def _when(before: Part, after: Part) -> Iterable[tuple[str, Part]]:
    return ("before", before), ("after", after)


def _flat(part: Part) -> dict[str, Any]:
    """The fields of a part: lists in one cell, mappings as columns of their own."""
    found: dict[str, Any] = {}
    for name, value in part.model_dump(mode="json").items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items()}
        elif isinstance(value, list):
            found[name] = " ".join("never" if item is None else str(item) for item in value)
        else:
            found[name] = value
    return found


def _written(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
