"""`adaptify report`: what a run saved, as tables and as a page; or several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptify.cli import completion
from adaptify.cli.options import Json, Quiet, TrustPickle, Verbose

if TYPE_CHECKING:
    from adaptify.cli.console import Console
    from adaptify.reports.schema import Report

_MOST_NAMES = 4  # in the name of a page
_FORMATS = ("html", "md", "json", "csv")


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
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="html|md|json|csv",
            help="Only this: the page, or Markdown, JSON or CSV on stdout (with --output: in a file).",
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            metavar="NAME",
            help="Of --format csv: runs (one row each), classes, epochs, exits, frontier, gates, layers, "
            "pruning, times. Default: runs.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write. Without it, the page is report.html in the run folder; of several runs, "
            "compare-A-B.html in this folder.",
        ),
    ] = None,
    time: Annotated[
        bool,
        typer.Option("--time", help="First measure (seconds) how long the network takes on this machine."),
    ] = False,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Print the table of layers.")] = True,
    trust_pickle: TrustPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Show what a run saved, as tables and as a page; or compare several runs.

    MACs and accuracy before and after, per exit, class and layer. The page, report.html, is one file that
    needs nothing else. Of several runs: accuracy against MACs, side by side.

    \b
    Examples:
      adaptify report
      adaptify report runs/resnet56-dgate-001 --no-layers
      adaptify report runs/boosted runs/plain -o compare.html
      adaptify report runs/boosted --format md > summary.md
      adaptify report runs/* --format csv -o runs.csv
      adaptify report --time
      adaptify report --json | jq .after
    """
    from adaptify.cli.console import Console

    wanted = _wanted(format_, table, json)
    console = Console(json=json or wanted == "json", quiet=quiet, verbose=verbose)
    if time:
        _measure(runs, trust_pickle, console)
    if runs is not None and len(runs) > 1:
        _compare(runs, wanted, table, output, console)
    else:
        _show(runs[0] if runs else None, wanted, table, output, layers, console)


def _wanted(format_: str | None, table: str | None, json: bool) -> str | None:
    """Check what is asked for; None: tables and the page."""
    from adaptify.errors import UsageError, did_you_mean

    if format_ is not None and format_ not in _FORMATS:
        raise UsageError(
            f"there is no format '{format_}'{did_you_mean(format_, _FORMATS)}",
            f"Formats: {', '.join(_FORMATS)}.",
        )
    if json and format_ not in (None, "json"):
        raise UsageError(f"--json and --format {format_} are two formats", "Give one of them.")
    if table is not None and format_ != "csv":
        raise UsageError("--table says which table --format csv writes", "Add --format csv.")
    return format_


def _measure(runs: Sequence[Path] | None, trust_code: bool, console: Console) -> None:
    from adaptify.cli.runs import find_run
    from adaptify.pipeline.folder import REPORT
    from adaptify.pipeline.speed import measure_run
    from adaptify.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    named: Sequence[Path | None] = runs or [None]
    for run in named:
        measure_run(find_run(run, holding=REPORT), trust_code=trust_code, progress=console)


def _show(
    run: Path | None,
    wanted: str | None,
    table: str | None,
    output: Path | None,
    layers: bool,
    console: Console,
) -> None:
    from adaptify.cli.runs import find_run
    from adaptify.reports.html import write_html
    from adaptify.reports.schema import read_report
    from adaptify.reports.tables import report_tables

    folder = find_run(run, holding="report.json")
    if run is None:
        console.say(f"run: {folder}")
    facts = read_report(folder / "report.json")
    if wanted not in (None, "html"):
        tables = [] if wanted != "md" else list(reversed(report_tables(facts, layers=layers)))
        _write(wanted, table, [(folder.resolve().name, facts)], tables, facts.to_json(), output, console)
        return
    page = output or folder / "report.html"
    write_html(facts, page)
    console.data(facts.to_json())
    if wanted is None:
        console.show(*report_tables(facts, layers=layers))
    console.say(f"page: {page}")


def _compare(
    runs: Sequence[Path], wanted: str | None, table: str | None, output: Path | None, console: Console
) -> None:
    from adaptify.cli.runs import find_run
    from adaptify.errors import UsageError
    from adaptify.reports.compare import compare
    from adaptify.reports.compare_html import write_comparison
    from adaptify.reports.schema import read_report
    from adaptify.reports.tables.comparison import comparison_tables

    folders = [find_run(run, holding="report.json") for run in runs]
    for index, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:index]]:
            raise UsageError(f"{folder} is named twice", "Name different runs to compare.")
    names = _names(folders)
    reports = [
        (name, read_report(folder / "report.json")) for name, folder in zip(names, folders, strict=True)
    ]
    found = compare(reports)
    if wanted not in (None, "html"):
        _write(wanted, table, reports, comparison_tables(found), found.to_json(), output, console)
        return
    page = output or Path(_page_name([folder.resolve().name for folder in folders]))
    write_comparison(found, page)
    console.data(found.to_json())
    if wanted is None:
        console.show(*comparison_tables(found))
    if console.json:
        for warning in found.warnings:
            console.warn(warning)
    console.say(f"page: {page}")


def _write(
    wanted: str,
    table: str | None,
    reports: Sequence[tuple[str, Report]],
    tables: Sequence[Any],
    value: dict[str, Any],
    output: Path | None,
    console: Console,
) -> None:
    """Write one of the formats that are text, to a file or to stdout."""
    import json

    from adaptify.files import write_text
    from adaptify.reports.csv_tables import RUNS, render_csv
    from adaptify.reports.markdown import render_markdown

    if wanted == "md":
        text = render_markdown(tables)
    elif wanted == "csv":
        text = render_csv(reports, table or RUNS)
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if output is None:
        print(text, end="")
        return
    write_text(output, text)
    console.say(f"written: {output}")


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
