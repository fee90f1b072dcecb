"""From a file to a network that is ready to run."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.checkpoint.architecture import find_fit, image_channels
from adaptify.checkpoint.fit import Fit
from adaptify.checkpoint.read import Checkpoint, read_checkpoint
from adaptify.errors import ModelError
from adaptify.input_spec import InputSpec
from adaptify.models.registry import Architecture
from adaptify.models.skeleton import has_meta
from adaptify.models.source import with_channels

_ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights.

    Attributes:
        module: In eval mode, on the CPU, in float32.
        architecture: What it is.
        checkpoint: Where it comes from. Its tensors are the memory of `module` wherever that was possible:
            training the module changes them.
        notes: Everything that was chosen, renamed, converted or left out on the way.
    """

    module: nn.Module
    architecture: Architecture
    checkpoint: Checkpoint
    notes: tuple[str, ...]


def load_model(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> LoadedModel:
    """Read a checkpoint, find its architecture, and load one into the other, strictly.

    Args:
        path: The file.
        arch: Name of the architecture; found when `None`.
        arch_kwargs: Arguments for its builder.
        trust_pickle: Whether code that the file names may run.

    Raises:
        UsageError: The file or the architecture does not exist.
        ModelError: The file cannot be used, or does not fit.
    """
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle)
    if checkpoint.module is not None and arch is None:
        return _whole_module(checkpoint, checkpoint.module, arch_kwargs)
    found = find_fit(checkpoint, arch=arch, arch_kwargs=arch_kwargs)
    return _loaded(found, checkpoint)


def _loaded(found: Fit, checkpoint: Checkpoint) -> LoadedModel:
    module, notes = _fill(found)
    return LoadedModel(
        module.eval(), found.architecture, checkpoint, (*checkpoint.notes, *found.notes, *notes)
    )


def _fill(found: Fit) -> tuple[nn.Module, list[str]]:
    """Build the network around the tensors: they become its parameters without being copied."""
    architecture = found.architecture
    module = architecture.build_meta()
    notes = _assign(module, found.tensors)
    if has_meta(module):  # it keeps values outside its state dict, which only a full construction makes
        module = architecture.build()
        notes = _assign(module, found.tensors)
    return module, notes


def _assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    own = module.state_dict()
    # The names are those of today: the versions that modules keep have to say so too.
    state: OrderedDict[str, Tensor] = OrderedDict()
    state._metadata = getattr(own, "_metadata", None)  # type: ignore[attr-defined]
    converted: Counter[str] = Counter()
    for name, mine in own.items():
        given = tensors.get(name, mine)
        if isinstance(given, Tensor) and given.dtype != mine.dtype:
            converted[f"{_short(given.dtype)} to {_short(mine.dtype)}"] += 1
            given = given.to(mine.dtype)
        state[name] = _aligned(given) if isinstance(given, Tensor) else given
    module.load_state_dict(state, strict=True, assign=True)
    return [f"converted {count} tensors from {types}" for types, count in converted.items()]


def _aligned(tensor: Tensor) -> Tensor:
    """Copy a tensor that does not lie in memory as PyTorch would have put it, such as a view of a file.

    Kernels choose their order of summation by alignment, so that results would differ in the last bits
    from those of the same network loaded from another kind of file.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _whole_module(
    checkpoint: Checkpoint, module: nn.Module, arch_kwargs: Mapping[str, Any] | None
) -> LoadedModel:
    """Prefer a public architecture that computes the same, as it can be rebuilt without the pickle."""
    module = module.float().eval()
    kind = f"{type(module).__module__}:{type(module).__qualname__}"
    spec = with_channels(InputSpec(), image_channels(checkpoint))
    try:
        loaded = _loaded(find_fit(checkpoint, arch_kwargs=arch_kwargs), checkpoint)
    except ModelError:
        note = f"kept the pickled {kind}, which is no architecture known here"
    else:
        if _same_function(module, loaded.module, loaded.architecture.input):
            return loaded
        spec = loaded.architecture.input
        note = f"kept the pickled {kind}: it computes something else than {loaded.architecture.name}"
    return LoadedModel(module, Architecture(kind, {}, spec), checkpoint, (*checkpoint.notes, note))


def _same_function(one: nn.Module, other: nn.Module, spec: InputSpec) -> bool:
    images = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            ours, theirs = one(images), other(images)
    except Exception:
        return False
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
        return False
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
