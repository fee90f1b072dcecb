"""The `adaptify` command: one file per command, nothing heavy imported before a command runs."""

from __future__ import annotations

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
)
from adaptify.cli.group import make_group
from adaptify.cli.signals import stoppable
from adaptify.version import VERSION

_THE_WAY = """\
adaptify makes a pretrained network spend less compute, and shows what that saved.

The way through:
  adaptify demo                                      all of it on a small example, in two minutes
  adaptify inspect  model.pth                        what is in the network, and where gates can go
  adaptify retrofit model.pth --method dgate --data FOLDER
                                                     put gates in and train them
  adaptify prune    model.pth --target 0.4           or take channels out, and keep 40% of the MACs
  adaptify calibrate --max-drop 0.5                  choose again between accuracy and compute
  adaptify evaluate --data FOLDER                    run it, really skipping
  adaptify report                                    tables, and a page to show
  adaptify export --format onnx                      and a file that runs without adaptify

Commands after `retrofit` take the newest run when none is named.
`adaptify --help` lists every command, `adaptify COMMAND --help` explains one.
"""


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
        print(_THE_WAY, end="")


# In the order in which they are used; `--help` lists them so.
app.command("demo")(demo.demo)
app.command("inspect")(inspect.inspect)
app.command("retrofit")(retrofit.retrofit)
app.command("prune")(prune.prune)
app.command("calibrate")(calibrate.calibrate)
app.command("evaluate")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("env")(env.env)
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
            lambda: app(words, prog_name="adaptify", standalone_mode=False), traceback=show_everything
        )
