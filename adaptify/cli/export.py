"""`adaptify export`: a network as a file that runs without adaptify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adaptify.cli.options import Data, Force, Json, Quiet, Run, TrustCode, ValSplit, Verbose

if TYPE_CHECKING:
    from adaptify.pipeline.export import Exported


def export(
    run: Run = None,
    format: Annotated[
        Literal["onnx", "pt2", "safetensors", "python"],
        typer.Option(
            "--format",
            "-f",
            show_default=False,
            help="onnx: for onnxruntime and others. pt2: a program for PyTorch. safetensors: tensors alone. "
            "python: a model.py that needs PyTorch alone, with its weights beside it. "
            "Gates and exits need onnx or pt2.",
        ),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="File to write. Without it: RUN/export/model.onnx, or as the format is called.",
        ),
    ] = None,
    control_flow: Annotated[
        Literal["compact", "if"],
        typer.Option(
            "--control-flow",
            help="How ONNX skips: by taking rows out of the batch, for any batch size; or by branches, "
            "for one image at a time.",
        ),
    ] = "compact",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            show_default=False,
            help="The only batch size that the file takes. Without it: any.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset", metavar="N", show_default="20", help="Version of the operations in an ONNX file."
        ),
    ] = None,
    data: Data = None,
    val_split: ValSplit = None,
    trust_code: TrustCode = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Write a network as a file that runs without adaptify, and still skips.

    The file is opened again, run on images of the run's data, of each way through the network where there are
    some, and compared with the network. One that computes something else is not kept (exit code 5).

    Gates that are the same for all images are frozen first: what they close is not in the file.

    \b
    Examples:
      adaptify export
      adaptify export runs/resnet56-dgate-001 --format onnx -o resnet56.onnx
      adaptify export runs/resnet56-dgate-001 --control-flow if
      adaptify export runs/resnet56-gumbel-001 --format pt2 --batch-size 1
      adaptify export runs/resnet56-importance-001 --format python -o net.py
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.cli.runs import find_target

    console = Console(json=json, quiet=quiet, verbose=verbose)
    found = find_target(run)

    # Not before the arguments are known to be right: what comes with these takes seconds to import.
    from adaptify.exports.write import Options
    from adaptify.pipeline.export import export as work
    from adaptify.recipe import DataSection

    if run is None:
        console.say(f"run: {found}")
    options = Options(format, control_flow, batch_size, opset)
    section = None
    if data is not None:
        settings = values.given({"source": data, "val_split": val_split})
        section = DataSection.model_validate(settings)
    done = work(
        found,
        options,
        output=output,
        data=section,
        force=force,
        trust_code=trust_code,
        progress=console,
    )
    console.data({"format": "adaptify.exported", "version": 1, "exported": asdict(done)})
    _show(done, console)


def _show(done: Exported, console: object) -> None:
    from adaptify.cli.console import Console
    from adaptify.text import quantity

    assert isinstance(console, Console)
    for note in done.notes:
        console.note(note)
    if done.untaken:
        shown = ", ".join(done.untaken[:4]) + (", ..." if len(done.untaken) > 4 else "")
        console.warn(f"no image shows {len(done.untaken)} of the ways through the network: {shown}")
    if done.turned:
        console.note(f"{done.turned} images are within rounding of a threshold and fell the other way")
    console.show(
        f"{done.files[0]}: {quantity(done.bytes)}B, as the network on {done.images} images"
        f"{'' if done.data is None else f' of {done.data}'}: logits differ by at most {done.max_error:.2g} "
        f"({done.relative_error:.1g} of the largest)"
    )
    if len(done.files) > 1:
        console.show(f"weights: {done.files[1]}")
