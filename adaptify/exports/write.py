"""Writing a network as a file that runs without adaptify: opened and checked before it gets its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adaptify.assembly import Adapted
from adaptify.errors import UsageError
from adaptify.exports import onnx_file, pt2_file, python_file, tensor_file
from adaptify.exports.check import Checked, check
from adaptify.exports.facts import describe
from adaptify.exports.portable import ControlFlow, Portable, make_portable
from adaptify.exports.reference import Reference
from adaptify.files import atomic_write_all
from adaptify.freeze import static_network
from adaptify.graph.trace import Traced

Format = Literal["onnx", "pt2", "safetensors", "python"]

SUFFIXES: Mapping[Format, str] = {
    "onnx": ".onnx",
    "pt2": ".pt2",
    "safetensors": ".safetensors",
    "python": ".py",
}
"""Formats, and how the names of their files end."""

_GRAPHS = ("onnx", "pt2")


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        format: Key of `SUFFIXES`.
        control_flow: How what is skipped is skipped.
        batch: The only batch size that the file takes; None: any.
        opset: Version of the operations of ONNX; None: `onnx_file.OPSET`.
    """

    format: Format
    control_flow: ControlFlow = "compact"
    batch: int | None = None
    opset: int | None = None

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise UsageError(f"unknown format '{self.format}'", f"Use one of: {', '.join(SUFFIXES)}.")
        if self.control_flow == "if" and self.format != "onnx":
            raise UsageError(
                f"branches are written as ONNX only, not as {self.format}", "Leave --control-flow out."
            )
        if self.control_flow == "if" and self.batch not in (None, 1):
            raise UsageError(
                f"branches are for one image at a time, not for {self.batch}", "Leave --batch-size out."
            )
        if self.opset is not None and self.format != "onnx":
            raise UsageError(f"{self.format} has no opset", "Leave --opset out.")
        if self.batch is not None and self.format not in _GRAPHS:
            raise UsageError(f"{self.format} takes batches of any size", "Leave --batch-size out.")
        if self.format == "onnx":
            onnx_file.check_installed()
            onnx_file.check_opset(self.opset or onnx_file.OPSET)

    @property
    def only_batch(self) -> int | None:
        """The batch size that the file takes; None: any."""
        return 1 if self.control_flow == "if" else self.batch


@dataclass(frozen=True)
class Prepared:
    """A network in the form in which it will be written.

    Attributes:
        model: The network.
        options: What is asked for.
        network: The same without decisions, where it has none that depend on the sample.
        portable: What a graph is recorded of; None where only tensors or code are written.
    """

    model: Adapted
    options: Options
    network: Traced | None
    portable: Portable | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it."""
        return () if self.portable is None else self.portable.notes


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        files: The file, and what lies beside it.
        checked: What came of holding it against the network.
        facts: What it says of itself.
    """

    files: tuple[Path, ...]
    checked: Checked
    facts: dict[str, Any]


def prepare(model: Adapted, options: Options) -> Prepared:
    """Bring `model` into the form in which it is written.

    Raises:
        UsageError: The format cannot hold such a network.
        ModelError: The network cannot be exported.
    """
    network = static_network(model)
    if options.format in _GRAPHS:
        return Prepared(model, options, network, make_portable(model, network, options.control_flow))
    if network is None:
        raise UsageError(
            f"{options.format} holds layers, and this network decides for each image what it runs",
            "Use --format onnx or pt2, which hold what decides too.",
        )
    return Prepared(model, options, network, None)


def paths_of(path: Path, format: Format) -> tuple[Path, ...]:
    """The files that an export to `path` writes."""
    if format != "python":
        return (path,)
    return (path, path.with_suffix(SUFFIXES["safetensors"]))


def write(
    prepared: Prepared, path: Path, reference: Reference, classes: Sequence[str] | None = None
) -> Written:
    """Write a network, open the file, run it on the images of `reference`, and compare.

    The file appears when that went well, and not otherwise.

    Args:
        prepared: The network.
        path: The file.
        reference: What it must yield, from `reference.observe`.
        classes: Names of the classes, if they are known.

    Raises:
        TargetError: The file does not compute what the network computes.
        ModelError, UsageError: It cannot be written in this format.
        AdaptifyError: The disk refuses it.
    """
    options, portable = prepared.options, prepared.portable
    outputs = ("logits",) if portable is None else portable.outputs
    facts = describe(prepared.model, outputs, classes)
    facts["batch"] = options.only_batch
    files = paths_of(path, options.format)
    with atomic_write_all(files) as temporaries:
        checked = _write(prepared, temporaries, files, facts, reference)
    return Written(files, checked, facts)


def _write(
    prepared: Prepared,
    temporaries: Sequence[Path],
    files: tuple[Path, ...],
    facts: dict[str, Any],
    reference: Reference,
) -> Checked:
    """Write the files under temporary names, and check them."""
    temporary = temporaries[0]
    options, portable, network = prepared.options, prepared.portable, prepared.network
    shape = prepared.model.traced.input_shape
    if portable is not None and options.format == "onnx":
        opset = options.opset or onnx_file.OPSET
        onnx_file.write_onnx(temporary, portable, shape, facts, batch=options.batch, opset=opset)
        return check(onnx_file.open_onnx(temporary), reference, batch=options.only_batch)
    if portable is not None:
        pt2_file.write_pt2(temporary, portable, shape, facts, batch=options.batch)
        return check(pt2_file.open_pt2(temporary), reference, batch=options.only_batch)
    assert network is not None
    if options.format == "safetensors":
        tensor_file.write_network(temporary, network, facts)
        return check(tensor_file.open_network(temporary, network), reference)
    tensors = temporaries[1]
    code = python_file.python_code(network, facts, files[1].name)
    temporary.write_text(code, encoding="utf-8")
    tensor_file.write_network(tensors, network, facts)
    return check(python_file.open_python(temporary, tensors), reference)
