"""The report as one self-contained page: no scripts, no network, light and dark, readable on a phone."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adaptify import text
from adaptify.files import write_text
from adaptify.reports.curves import anytime, budgeted_within
from adaptify.reports.derive import class_rows, headline, operating_point, payers, target
from adaptify.reports.plots.curves import anytime_figure, draws_backbone
from adaptify.reports.plots.exits import compute_figure, frontier_figure, palette
from adaptify.reports.plots.heat import HEAT_LEVELS
from adaptify.reports.schema import Report
from adaptify.reports.sections import ends, gating_section, samples_section, training_section, wide_and_narrow
from adaptify.reports.tables.stages import stage_rows

_FILTERS = (text.memory, text.milliseconds, text.quantity, text.percent, text.points, text.whole, text.shape)


def render_html(report: Report) -> str:
    """Return the page of a report."""
    rows = class_rows(report)
    classes = ends(rows)
    paid = payers(report)
    payer_ends = ends(paid.rows) if paid is not None else []
    versions = report.environment.get("versions")
    facts = {
        "report": report,
        "palette": palette(len(report.exits)),
        "target": target(report),
        "headline": headline(report),
        "stages": stage_rows(report.stages) if report.stages else [],
        "chosen_known": operating_point(report) is not None,
        "figures": {
            "frontier": wide_and_narrow(partial(frontier_figure, report)) if report.frontier else None,
            "anytime": wide_and_narrow(partial(anytime_figure, report)) if len(report.exits) > 1 else None,
            "compute": wide_and_narrow(partial(compute_figure, report)) if len(report.exits) > 1 else None,
        },
        "payers": paid,
        "payer_ends": payer_ends,
        "payers_between": len(paid.rows) - sum(map(len, payer_ends)) if paid is not None else 0,
        "layer_rest": report.after.macs - sum(layer.macs_kept for layer in report.layers),
        "recipe": yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True).rstrip()
        if report.recipe
        else "",
        "curves": _curves(report) if len(report.exits) > 1 else None,
        "classes": classes,
        "classes_between": len(rows) - sum(map(len, classes)),
        "gating": gating_section(report.gating, report.before.accuracy) if report.gating else None,
        "samples": samples_section(report) if report.gating and report.gating.samples else None,
        "training": training_section(report.training, [e.name for e in report.exits])
        if report.training and report.training.epochs
        else None,
        "heat_levels": HEAT_LEVELS,
        "command": shlex.join(report.command),
        "options": list(_flat(report.method.options)),
        "trainer": list(_flat(report.training.options)) if report.training else [],
        "kwargs": list(_flat(report.model.kwargs)),
        "environment": list(_flat(versions if isinstance(versions, Mapping) else {}))
        + list(_flat({name: value for name, value in report.environment.items() if name != "versions"})),
        "timing": [_timing(name, value) for name, value in report.timing.items() if value is not None],
        "lowest_accuracy": min(
            accuracy
            for e in report.exits
            for accuracy in (e.accuracy_all, e.accuracy_left)
            if accuracy is not None
        )
        if report.exits
        else 0.0,
    }
    return environment().get_template("report.html.j2").render(facts)


def write_html(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page of a report, atomically.

    Raises:
        AdaptifyError: The file cannot be written.
    """
    write_text(path, render_html(report))


def _curves(report: Report) -> dict[str, Any]:
    """For the MACs of each exit: what it gives for all samples, and what thresholds give within them."""
    return {
        "came_drawn": draws_backbone(report),
        "rows": [
            (exit_.name, macs, accuracy, budgeted_within(report, macs) if report.budgeted else None)
            for exit_, (macs, accuracy) in zip(report.exits, anytime(report), strict=True)
        ],
    }


def environment() -> Environment:
    """Return what templates are rendered with: all that comes from elsewhere is escaped and printable."""
    environment = Environment(
        loader=PackageLoader("adaptify.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in _FILTERS:
        environment.filters[function.__name__] = function
    environment.filters["minus"] = lambda value: value.replace("-", "\N{MINUS SIGN}")
    return environment


def _printable(value: Any) -> Any:
    return text.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value in words) of nested settings, those without a value left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None or value == []:
            continue
        elif key.endswith("_bytes") and isinstance(value, int):
            yield f"{prefix}{key.removesuffix('_bytes')}", text.memory(value)
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _timing(name: str, value: float) -> tuple[str, str]:
    if name.endswith("_bytes"):
        return name.removesuffix("_bytes").replace("_", " "), text.memory(value)
    if name.endswith("_s"):
        return name.removesuffix("_s").replace("_", " "), text.duration(value)
    return name.replace("_", " "), f"{value:.4g}"
