"""ONNX files."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptify.errors import ModelError, UsageError
from adaptify.exports.captured import capture, quiet, without_fused_attention
from adaptify.exports.facts import KEY, dumps
from adaptify.exports.onnx_branches import move_into_branches
from adaptify.exports.portable import Portable

OPSET = 20
"""Version of the operations, unless another is asked for: the newest that runtimes of 2024 have."""

_OLDEST = 18
_LARGEST = (1 << 31) - (1 << 20)  # bytes that a protocol buffer holds
_MODULES = ("onnx", "onnxscript", "onnxruntime")

Runner = Callable[[Tensor], tuple[Tensor, ...]]


def check_installed() -> None:
    """Make sure that what reads and writes ONNX is there.

    Raises:
        UsageError: It is not.
    """
    for name in _MODULES:
        _module(name)


def check_opset(opset: int) -> None:
    """Make sure that there are operations of this version.

    Raises:
        UsageError: There are not.
    """
    newest = _module("onnx").defs.onnx_opset_version()
    if not _OLDEST <= opset <= newest:
        raise UsageError(
            f"ONNX operations of version {opset} cannot be written", f"Give one from {_OLDEST} to {newest}."
        )


def write_onnx(
    path: Path,
    portable: Portable,
    input_shape: tuple[int, int, int],
    facts: dict[str, Any],
    *,
    batch: int | None = None,
    opset: int = OPSET,
) -> None:
    """Write `portable` for images of `input_shape`, with the facts among the metadata.

    Raises:
        ModelError: It cannot be recorded or translated, or is larger than a file can be.
        UsageError: Packages are missing.
        OSError: The file cannot be written.
    """
    check_installed()
    program = capture(portable, input_shape, batch)
    with torch.no_grad(), without_fused_attention(), quiet():
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=["images"],
                output_names=list(portable.outputs),
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"this network cannot be written as ONNX: {reason[:300]}", "Use --format pt2."
            ) from error
    assert translated is not None
    model = translated.model_proto
    if portable.one_by_one:
        move_into_branches(model.graph)
    _name_batch(model.graph)
    model.producer_name, model.producer_version = "adaptify", str(facts["adaptify"])
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, dumps(facts)
    if model.ByteSize() > _LARGEST:
        raise ModelError("the network is larger than the 2 GB that an ONNX file holds", "Use --format pt2.")
    path.write_bytes(model.SerializeToString())


def open_onnx(path: Path) -> Runner:
    """Load a file for running with onnxruntime, on the CPU: images (N, C, H, W) -> outputs."""
    runtime = _module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {"images": images.numpy()})
        return tuple(torch.from_numpy(item) for item in found)

    return run


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"the ONNX format needs {name}, which is not installed",
            "Install it: pip install 'adaptify[onnx]'.",
        ) from error


def _name_batch(graph: Any) -> None:
    """Call the free size of inputs and outputs what it is."""
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = "batch"
