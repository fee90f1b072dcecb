"""`adaptify inspect`: what is in a network, and where gates can go."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adaptify.cli.options import Arch, ArchKwargs, Checkpoint, InputSize, Json, Quiet, TrustPickle, Verbose

if TYPE_CHECKING:
    from adaptify.pipeline.inspect import Inspection
    from adaptify.recipe import ModelSection

_DEFAULT = "dgate"  # the method that `retrofit` takes by itself


def inspect(
    checkpoint: Checkpoint,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth",
            metavar="N",
            min=0,
            help="Levels of modules to show. Default: what fits in 60 lines.",
        ),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="List every place for an exit, and every residual block.")
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", metavar="FILE", show_default=False, help="Draw the network, and what is decided in it."
        ),
    ] = None,
    arch: Arch = None,
    arch_kwargs: ArchKwargs = None,
    input_size: InputSize = None,
    trust_pickle: TrustPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Show what is in a network, and where gates can go.

    Modules with the shape of their output, parameters and MACs; where samples can leave, which blocks and
    channels can be left out, and what each could save; which methods suit the network, and why others do
    not; what to run next.

    \b
    Examples:
      adaptify inspect model.pth
      adaptify inspect timm:convnext_atto --depth 3 --all
      adaptify inspect runs/resnet56-dgate-001 --svg network.svg
      adaptify inspect torchvision:resnet50
      adaptify inspect model.pth --json | jq .exits
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.cli.inspect_tables import inspection
    from adaptify.cli.runs import find_target
    from adaptify.models.registry import is_public_name
    from adaptify.pipeline.drawing import draw
    from adaptify.pipeline.inspect import inspect as work
    from adaptify.pipeline.prepare import open_network
    from adaptify.recipe import DataSection, ModelSection

    console = Console(json=json, quiet=quiet, verbose=verbose)
    named = str(checkpoint)
    model = ModelSection(
        checkpoint=named if is_public_name(named) else str(find_target(checkpoint)),
        arch=arch,
        arch_kwargs=values.json_object(arch_kwargs, "--arch-kwargs") or {},
        trust_pickle=trust_pickle,
    )
    size = values.size(input_size, "--input-size")
    # Of the data only the size of an image matters here.
    data = DataSection(source="", input_size=(size[0], size[1]) if size else None)
    network = open_network(model, data)
    facts = work(network)
    for note in facts.notes:
        console.note(note)
    console.data(facts.to_json())
    console.show(*inspection(facts, depth, all_))
    if svg is not None:
        draw(network, facts, svg)
        console.say(f"drawn: {svg}")
    console.say(f"\nnext:\n  {_next(facts, model)}")


def _next(facts: Inspection, model: ModelSection) -> str:
    """The command to run next, as it would be typed."""
    if facts.placed:
        return shlex.join(["adaptify", "calibrate", model.checkpoint, "--max-drop", "1.0"])
    words = ["adaptify", "retrofit", model.checkpoint]
    words += ["--arch", model.arch] if model.arch else []
    words += ["--trust-pickle"] if model.trust_pickle else []
    suits = [item.method for item in facts.methods if item.least is not None and item.command == "retrofit"]
    if not suits:
        words[1] = "prune"
        return f"{shlex.join(words)} --target 0.5"
    # What `retrofit` takes by itself is left unsaid where it suits.
    words += ["--method", suits[0]] if _DEFAULT not in suits else []
    return f"{shlex.join(words)} --data FOLDER --max-drop 0.5"
