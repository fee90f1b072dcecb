"""The report of a run as files: what is said in it of the other files, and its page."""

from __future__ import annotations

from pathlib import Path

from adaptify.files import sha256
from adaptify.pipeline import folder
from adaptify.recipe import Recipe
from adaptify.reports.html import write_html
from adaptify.reports.schema import Report, WrittenFile, write_report


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
