"""`adaptify report`: what a run saved, as tables and as a page; or several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptify.cli import completion
from adaptify.cli.options import Json, Quiet, Verbose

if TYPE_CHECKING:
    from adaptify.cli.console import Console

_MOST_NAMES = 4  # in the name of a page


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            show_default=False,
            help="Run folder. Without one: the newest in runs/. Several are compared.",
            autocompletion=completion.runs,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Page to write. Without it: report.html in the run folder; of several runs, "
            "compare-A-B.html in this folder.",
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Print the table of layers.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Show what a run saved, as tables and as a page; or compare several runs.

    MACs and accuracy before and after, per exit and per layer. The page, report.html, is one file that
    needs nothing else. Of several runs: accuracy against MACs, side by side.

    \b
    Examples:
      adaptify report
      adaptify report runs/resnet56-dgate-001 --no-layers
      adaptify report runs/boosted runs/plain -o compare.html
      adaptify report --json | jq .after
    """
    from adaptify.cli.console import Console

    console = Console(json=json, quiet=quiet, verbose=verbose)
    if runs is not None and len(runs) > 1:
        _compare(runs, output, console)
    else:
        _show(runs[0] if runs else None, output, layers, console)


def _show(run: Path | None, output: Path | None, layers: bool, console: Console) -> None:
    from adaptify.cli.runs import find_run
    from adaptify.report.html import write_html
    from adaptify.report.schema import read_report
    from adaptify.report.tables import report_tables

    folder = find_run(run, holding="report.json")
    if run is None:
        console.say(f"run: {folder}")
    facts = read_report(folder / "report.json")
    page = output or folder / "report.html"
    write_html(facts, page)
    console.data(facts.to_json())
    console.show(*report_tables(facts, layers=layers))
    console.say(f"page: {page}")


def _compare(runs: Sequence[Path], output: Path | None, console: Console) -> None:
    from adaptify.cli.runs import find_run
    from adaptify.errors import UsageError
    from adaptify.report.compare import compare
    from adaptify.report.compare_html import write_comparison
    from adaptify.report.schema import read_report
    from adaptify.report.tables.comparison import comparison_tables

    folders = [find_run(run, holding="report.json") for run in runs]
    for index, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:index]]:
            raise UsageError(f"{folder} is named twice", "Name different runs to compare.")
    names = _names(folders)
    found = compare(
        [(name, read_report(folder / "report.json")) for name, folder in zip(names, folders, strict=True)]
    )
    page = output or Path(_page_name([folder.resolve().name for folder in folders]))
    write_comparison(found, page)
    console.data(found.to_json())
    console.show(*comparison_tables(found))
    if console.json:
        for warning in found.warnings:
            console.warn(warning)
    console.say(f"page: {page}")


def _names(folders: Sequence[Path]) -> list[str]:
    """What runs are called: by their folders, or by their paths where folders have the same name."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)
    ]


def _page_name(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    shown = [*names[:_MOST_NAMES], *([f"{more}-more"] if more > 0 else [])]
    return f"compare-{'-'.join(shown)}.html"
