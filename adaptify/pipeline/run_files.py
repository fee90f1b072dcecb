"""The report of a run as files: what is said in it of the other files, and its page."""

from __future__ import annotations

import json
from pathlib import Path

from adaptify.environment import describe_environment
from adaptify.files import sha256, write_text
from adaptify.pipeline import folder
from adaptify.recipe import Recipe
from adaptify.reports.html import write_html
from adaptify.reports.schema import Report, WrittenFile, write_report


def complete_run(report: Report, recipe: Recipe, run: Path) -> Report:
    """Write what a new run has besides artifact and records: `env.json` and the report, which is returned."""
    write_text(run / folder.ENVIRONMENT, json.dumps(describe_environment(), indent=1) + "\n")
    return write_run_report(report, recipe, run)


def write_run_report(report: Report, recipe: Recipe, run: Path) -> Report:
    """Write `report.json` and the page into `run`, which has the artifact, and return the report as written.

    Args:
        report: The report.
        recipe: Every setting of the run.
        run: The folder.
    """
    artifact = run / folder.MODEL
    report = report.model_copy(
        update={
            "recipe": recipe.model_dump(mode="json"),
            "file": WrittenFile(bytes=artifact.stat().st_size, sha256=sha256(artifact)),
        }
    )
    write_report(report, run / folder.REPORT)
    write_html(report, run / folder.PAGE)
    return report
