"""The comparison of several runs as one self-contained page, like that of a single run."""

from __future__ import annotations

import os
from functools import partial

from adaptify.files import write_text
from adaptify.reports.compare import Comparison, best_of
from adaptify.reports.html import environment
from adaptify.reports.plots.curves import comparison_backbones, comparison_figure, hidden_places
from adaptify.reports.plots.heat import HEAT_LEVELS
from adaptify.reports.sections import wide_and_narrow
from adaptify.version import VERSION

_WIDE = 1020  # px, a card that is as wide as the page


def render_comparison(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    runs, budgets = comparison.runs, comparison.budgets
    tables = (
        ("Within a budget", [(row.macs, row.budgeted) for row in budgets]),
        ("One exit for all", [(row.macs, row.anytime) for row in budgets]),
    )
    facts = {
        "comparison": comparison,
        "version": VERSION,
        "figure": wide_and_narrow(partial(comparison_figure, runs), _WIDE) if comparison.measured else None,
        "hidden": hidden_places(runs) if comparison.measured else 0,
        "backbones": comparison_backbones(runs),
        "budgets": [
            (title, [(macs, values, best_of(values)) for macs, values in rows])
            for title, rows in tables
            if any(value is not None for _, values in rows for value in values)
        ],
        "data": list(dict.fromkeys(run.report.data.name for run in runs if run.report.data)),
        "sized": any(run.report.after.bytes is not None for run in runs),
        "clocked": any(run.report.after.milliseconds is not None for run in runs),
        "machines": list(dict.fromkeys(run.report.speed.machine for run in runs if run.report.speed)),
        "timed": all(run.report.after.milliseconds is None for run in runs)
        and any(run.images_per_second is not None for run in runs),
        "palette": [],
        "samples": None,
        "heat_levels": HEAT_LEVELS,
    }
    return environment().get_template("comparison.html.j2").render(facts)


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the page of a comparison, atomically.

    Raises:
        AdaptifyError: The file cannot be written.
    """
    write_text(path, render_comparison(comparison))
