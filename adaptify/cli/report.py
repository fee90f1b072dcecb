"""`adaptify report`: what a run saved, as tables and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptify.cli.options import Json, Quiet, Run, Verbose


def report(
    run: Run = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Page to write. Without it: report.html in the run folder."
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Print the table of layers.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Show what a run saved, as tables and as a page.

    MACs and accuracy before and after, per exit and per layer. The page, report.html, is one file that
    needs nothing else.

    \b
    Examples:
      adaptify report
      adaptify report runs/resnet56-dgate-001 --no-layers
      adaptify report --json | jq .after
    """
    from adaptify.cli.console import Console
    from adaptify.cli.runs import find_run
    from adaptify.report.html import write_html
    from adaptify.report.schema import read_report
    from adaptify.report.tables import report_tables

    console = Console(json=json, quiet=quiet, verbose=verbose)
    folder = find_run(run, holding="report.json")
    if run is None:
        console.say(f"run: {folder}")
    facts = read_report(folder / "report.json")
    page = output or folder / "report.html"
    write_html(facts, page)
    console.data(facts.to_json())
    console.show(*report_tables(facts, layers=layers))
    console.say(f"page: {page}")
