"""From a file of any kind to named tensors, safely."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adaptify.bounds import brief, room
from adaptify.checkpoint.formats import Format, detect
from adaptify.checkpoint.pickles import unpickle
from adaptify.checkpoint.state_dict import find_weights, mentioned_names
from adaptify.errors import ModelError, UsageError, did_you_mean
from adaptify.files import sha256
from adaptify.text import memory, shape


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Attributes:
        path: The file.
        tensors: Tensors on the CPU by name, without the prefixes of wrappers. Those of a safetensors file
            are read from it when they are first used.
        sha256: Digest of the file, in hexadecimal digits.
        notes: What was chosen, removed and left out, for people to read.
        module: The network itself, where the file holds one and was trusted.
        prefix: What was removed from the front of every name.
        mentions: Texts in the file that may name the architecture.
    """

    path: Path
    tensors: dict[str, Tensor]
    sha256: str
    notes: tuple[str, ...] = ()
    module: nn.Module | None = None
    prefix: str = ""
    mentions: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Checkpoint:
    """Read the weights in `path`: what torch.save (any version) or safetensors wrote, under any file name.

    Args:
        path: The file.
        trust_pickle: Whether code that the file names may run, as whole pickled modules need.

    Raises:
        UsageError: There is no such file.
        ModelError: It cannot be read, is not a checkpoint, or holds weights that are not usable.
    """
    file = Path(path)
    try:
        if not file.exists():
            siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
            raise UsageError(f"there is no file {file}{did_you_mean(file.name, siblings)}", "Check the path.")
        if not file.is_file():
            kind = "a folder" if file.is_dir() else "not a regular file"
            raise ModelError(f"{file} is {kind}", "Give the checkpoint file itself.")
        value = _read(file, detect(file), trust_pickle)
        digest = sha256(file)
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}", "Check the path.") from error
    weights = find_weights(value, str(file))
    _check(weights.tensors, file)
    return Checkpoint(
        path=file,
        tensors=weights.tensors,
        sha256=digest,
        notes=weights.notes,
        module=weights.module,
        prefix=weights.prefix,
        mentions=mentioned_names(value),
    )


def _read(file: Path, format: Format, trust_pickle: bool) -> Any:
    if format is Format.TORCH:
        return unpickle(file, trust=trust_pickle)
    try:
        return load_file(file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # types and shapes that torch does not know end in errors of many kinds
        raise ModelError(
            f"{file} is damaged or cut short: {brief(error)}", "Copy or download the checkpoint again."
        ) from error


def _check(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse weights that no network could use, naming the first such tensor."""
    # One value can stand for a tensor of any shape, which would become real when it is loaded.
    values = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    if values > room(file.stat().st_size):
        name = max(tensors, key=lambda name: tensors[name].numel())
        raise ModelError(
            f"{file} repeats its values: '{name}' has the shape {shape(tuple(tensors[name].shape))}, and all "
            f"tensors take {memory(values)}",
            "Do not use it; if it is yours, save the tensors as they are used, with .contiguous().",
        )
    for name, tensor in tensors.items():
        if tensor.is_quantized or _is_packed(name, tensor):
            raise ModelError(
                f"{file} is quantised: '{name}' is of type {_dtype(tensor)}",
                "Give the float checkpoint it was made from.",
            )
        if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
            layout = "nested" if tensor.is_nested else tensor.layout
            kind = "without values" if tensor.is_meta else f"of layout {layout}"
            raise ModelError(
                f"'{name}' in {file} is a tensor {kind}", "Save dense tensors with their values."
            )
        wrong = _not_finite(tensor)
        if wrong:
            raise ModelError(
                f"'{name}' in {file} holds {wrong}",
                "The training diverged or the file is damaged; give an earlier checkpoint.",
            )
    if not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise ModelError(
            f"{file} holds no floating-point tensors",
            "Save the weights with torch.save(model.state_dict(), ...).",
        )


def _is_packed(name: str, tensor: Tensor) -> bool:
    """Whether it is a weight in a type that only has a meaning together with scales kept elsewhere."""
    small = tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool
    return small and (tensor.is_floating_point() or (name.endswith("weight") and tensor.dim() > 1))


def _not_finite(tensor: Tensor) -> str:
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    if all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):  # no copy; NaN goes through
        return ""
    nans = int(tensor.isnan().sum())
    kind, count = ("NaN", nans) if nans else ("infinity", int(tensor.isinf().sum()))
    return f"{kind} ({count} of {tensor.numel()} values)"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
