"""The `adaptify` command: one file per command, nothing heavy imported before a command runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from adaptify.cli import (
    bench,
    boundary,
    calibrate,
    demo,
    env,
    evaluate,
    export,
    inspect,
    prune,
    recipes,
    report,
    retrofit,
    sweep,
    together,
)
from adaptify.cli.group import make_group
from adaptify.cli.signals import stoppable
from adaptify.version import VERSION

_INTRODUCTION = "adaptify makes a pretrained network spend less compute, and shows what that saved."

# What is typed, and what it is for, in the order in which it is done.
_THE_WAY = (
    ("demo", "all of it on a small example, in two minutes"),
    ("inspect   model.pth", "what is in the network, and where gates can go"),
    ("retrofit  model.pth --data FOLDER", "put exits or gates in, and train them"),
    ("calibrate --max-drop 0.5", "choose again between accuracy and compute"),
    ("prune     model.pth --target 0.5", "or take channels out: keep half of the MACs"),
    ("evaluate", "run the newest run, really skipping"),
    ("report", "what was saved: tables, and a page to show"),
    ("export    --format onnx", "a file that runs without adaptify"),
)

_MORE = """\
Commands without a run take the newest one.
`adaptify --help` lists every command, `adaptify COMMAND --help` explains one."""


app = make_group()


def _show_version(value: bool) -> None:
    if value:
        print(f"adaptify {VERSION}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _adaptify(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Make a pretrained network spend less compute, and show what that saved.

    Start with `adaptify demo`, or with `adaptify inspect` on a checkpoint of your own.
    """
    if context.invoked_subcommand is None:
        print(_the_way(colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))


def _the_way(*, colour: bool) -> str:
    bold, plain = ("\033[1m", "\033[0m") if colour else ("", "")
    width = max(len(command) for command, _ in _THE_WAY)
    rows = [f"  {bold}adaptify {command:{width}}{plain}  {purpose}" for command, purpose in _THE_WAY]
    return "\n".join([_INTRODUCTION, "", "The way through:", *rows, "", _MORE])


# In the order in which they are used; `--help` lists them so.
for _command, _summary in (
    (demo.demo, "Go the whole way on a small example."),
    (inspect.inspect, "Show what is in a network, and where gates can go."),
    (retrofit.retrofit, "Put gates into a pretrained network and train them."),
    (prune.prune, "Take channels or blocks out of a network for good."),
    (calibrate.calibrate, "Choose again between accuracy and compute."),
    (evaluate.evaluate, "Run a network over test images, and measure it."),
    (bench.bench, "Measure how long a network takes."),
    (sweep.sweep, "Try several methods and targets side by side."),
    (report.report, "Show what a run saved, or compare runs."),
    (export.export, "Write a file that runs without adaptify."),
    (env.env, "Show what adaptify runs on, for bug reports."),
):
    app.command(_command.__name__, short_help=_summary)(_command)
app.add_typer(recipes.recipes, name="recipes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    show_everything = boundary.wants_traceback(words)
    if not show_everything and not sys.warnoptions:
        warnings.simplefilter("ignore")  # other packages' deprecations are not the user's concern
    with stoppable():
        return boundary.run(
            lambda: together.run(words, lambda: app(words, prog_name="adaptify", standalone_mode=False)),
            traceback=show_everything,
        )
