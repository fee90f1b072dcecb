"""`report.json`: read with its errors named, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adaptify.bounds import brief, parse_json, read_text, refuse_newer
from adaptify.errors import UsageError
from adaptify.files import write_text
from adaptify.reports.schema.report import FORMAT, VERSION, Report


def parse_report(value: Any, source: str = "report") -> Report:
    """Return the typed view of a JSON value.

    Args:
        value: The JSON value.
        source: What errors call it: the file it came from.

    Raises:
        UsageError: It is no report, one of a newer version, or a broken one.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{source} is no adaptify report", "Name a run folder, or the report.json in it.")
    refuse_newer(value, VERSION, source)
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the report"
        raise UsageError(
            f"{source} is broken at {brief(where)}: {brief(first['msg'])}",
            "Make it again: `adaptify evaluate` or `adaptify calibrate`.",
        ) from error


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a `report.json`.

    Raises:
        UsageError: The file cannot be read, or is no report that this version understands.
    """
    source = Path(path)
    try:
        value = parse_json(read_text(source))
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {error.strerror}", "Name a run folder that has a report.json."
        ) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise UsageError(
            f"{source} is not JSON: {brief(error)}", "The file is damaged: make the report again."
        ) from error
    return parse_report(value, str(source))


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write `report` as `report.json`, atomically."""
    write_text(path, json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
