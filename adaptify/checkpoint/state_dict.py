"""Finding the weights in what a training script saved, and the names they have in the network.

Scripts wrap state dicts in dictionaries (`{"epoch": 3, "model": {...}}`) and networks in other modules
(`module.` of DistributedDataParallel, `_orig_mod.` of torch.compile, `model.` of Lightning). Both are
undone by looking at what is there, not by a list of frameworks.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adaptify.errors import ModelError

# Where weights are kept, best first. Averages come before the raw weights, as they do in the evaluations
# of the libraries that write them.
_PREFERRED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
# How deep dictionaries are searched, and how many sets of weights are told apart.
_DEPTH = 8
_MOST_SETS = 1000
_LONGEST_NAME = 4096  # characters
# Components that PyTorch itself puts into names, anywhere.
_INSERTED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Counters that averaging and profiling leave among the weights.
_COUNTERS = frozenset({"n_averaged", "total_ops", "total_params"})
# Modules beside the network that hold weights of the loss or of metrics.
_BESIDE = re.compile(r"loss|criterion|metric", re.IGNORECASE)
# Where scripts write down which network it is.
_ARCHITECTURE_KEYS = ("arch", "architecture", "model", "model_name", "arch_name", "backbone", "net")
_SETTINGS_KEYS = ("args", "hyper_parameters", "hparams", "config", "opt")


@dataclass(frozen=True)
class Weights:
    """Named tensors as they were found.

    Attributes:
        tensors: By name, without the prefixes of wrappers.
        prefix: What was removed from the front of every name, e.g. `module.model.`.
        notes: What was chosen, removed and left out.
        module: The network itself where the file held one.
    """

    tensors: dict[str, Tensor]
    prefix: str
    notes: tuple[str, ...]
    module: nn.Module | None = None


def find_weights(value: Any, source: str) -> Weights:
    """Find the state dict in `value`, as it came out of the file `source`.

    Raises:
        ModelError: There is none, or several with nothing to choose between them.
    """
    where, module = _find_module(value)
    if module is not None:
        tensors: Mapping[str, Any] = module.state_dict()
        notes = [f"took the module {type(module).__name__}{where} of the file"]
    else:
        found = _state_dicts(value, {})
        if len(found) > _MOST_SETS:
            raise ModelError(
                f"{source} holds more than {_MOST_SETS} sets of weights",
                "Save the one you want: torch.save(model.state_dict(), 'weights.pt').",
            )
        if not found:
            raise ModelError(
                f"{source} holds {_describe(value)}, not a dictionary of tensors",
                "Save the weights with torch.save(model.state_dict(), 'weights.pt').",
            )
        where = _choose(found, source)
        tensors, notes = found[where], [f"took '{where}' of the file"] if where else []
        others = [f"'{name}'" for name in found if name != where and _rank(name) < len(_PREFERRED)]
        if others:
            notes[-1] += f" and left {', '.join(others)}"
    kept = {name: tensor.detach() for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    longest = max(kept, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        raise ModelError(
            f"{source} holds a tensor whose name has {len(longest)} characters: '{longest[:40]}...'",
            "The file is damaged: copy or download it again.",
        )
    named, prefix, renamed = clean_names(kept)
    return Weights(named, prefix, (*notes, *renamed), module)


def clean_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    """Remove what wrappers added to names.

    A first component that all names share belongs to a wrapper, whatever it is called.

    Returns:
        The tensors, what was removed from the front of all names, and notes about both.
    """
    notes: list[str] = []
    names = {name: _INSERTED.sub("", name) for name in tensors}
    if len(set(names.values())) < len(names):  # two networks in one: leave them apart
        names = {name: name for name in tensors}
    elif any(old != new for old, new in names.items()):
        inserted = {match for name in tensors for match in _INSERTED.findall(name)}
        notes.append(f"removed {', '.join(f'{text!r}' for text in sorted(inserted))} from names")
    result = {names[name]: tensor for name, tensor in tensors.items()}
    counters = [name for name in result if name.rpartition(".")[2] in _COUNTERS]
    if counters:
        notes.append(f"left out {_count(counters, 'counter')}")
        result = {name: tensor for name, tensor in result.items() if name not in counters}
    prefix = ""
    while True:
        beside = [name for name in result if _BESIDE.search(name.partition(".")[0])]
        heads = {name.partition(".")[:2] for name in result if name not in beside}
        if len(heads) != 1 or (head := next(iter(heads)))[1] == "":
            break
        if beside:
            if head[0] not in _PREFERRED:  # not surely a wrapper: the network may call a part of it so
                break
            notes.append(f"left out {_count(beside, 'tensor')} beside the network")
            result = {name: tensor for name, tensor in result.items() if name not in beside}
        wrapper = f"{head[0]}."
        result = {name.removeprefix(wrapper): tensor for name, tensor in result.items()}
        prefix += wrapper
    if prefix:
        notes.append(f"removed prefix '{prefix}'")
    return result, prefix, notes


def mentioned_names(value: Any) -> tuple[str, ...]:
    """Texts in a file that may say which network it holds, such as `args.model` of a training script."""
    places = [value, *(value.get(key) for key in _SETTINGS_KEYS)] if isinstance(value, Mapping) else []
    found = []
    for place in places:
        settings = vars(place) if isinstance(place, Namespace) else place
        if isinstance(settings, Mapping):
            found += [settings[key] for key in _ARCHITECTURE_KEYS if isinstance(settings.get(key), str)]
    return tuple(dict.fromkeys(found))


def _find_module(value: Any) -> tuple[str, nn.Module | None]:
    if isinstance(value, nn.Module):
        module, where = value, ""
    elif isinstance(value, Mapping):
        modules = {key: entry for key, entry in value.items() if isinstance(entry, nn.Module)}
        if not modules:
            return "", None
        key = min(modules, key=lambda key: _rank(str(key)))
        module, where = modules[key], f" under '{key}'"
    else:
        return "", None
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    return where, module


def _state_dicts(
    value: Any, known: dict[tuple[int, int], dict[str, Mapping[str, Any]]], above: tuple[int, ...] = ()
) -> dict[str, Mapping[str, Any]]:
    """All state dicts in nested dictionaries: dictionaries with more numbers of their own than below them.

    Args:
        value: Where to look.
        known: What was found in each dictionary at each depth: a file may hold one in any number of places.
        above: The dictionaries that `value` is in.

    Returns:
        Them by their dotted places; a few more than `_MOST_SETS` if there are too many.
    """
    if len(above) == _DEPTH or id(value) in above:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return {}
    here = (id(value), len(above))
    if here not in known:
        below: dict[str, Mapping[str, Any]] = {}
        for key, entry in value.items():
            if "optim" in key.lower() or len(below) > _MOST_SETS:
                continue
            for where, found in _state_dicts(entry, known, (*above, id(value))).items():
                below[f"{key}.{where}" if where else key] = found
        own = _numbers(value) > sum(_numbers(found) for found in below.values())
        known[here] = {"": value} if own else below
    return known[here]


def _numbers(value: Mapping[str, Any]) -> int:
    return sum(entry.numel() for entry in value.values() if isinstance(entry, Tensor))


def _choose(found: Mapping[str, Any], source: str) -> str:
    best = min(_rank(where) for where in found)
    candidates = [where for where in found if _rank(where) == best]
    if len(candidates) > 1:
        keys = "".join(f"['{key}']" for key in candidates[0].split("."))
        listed = ", ".join(f"'{where}'" for where in candidates)
        raise ModelError(
            f"{source} holds several sets of weights: {listed}",
            f"Save the one you want: torch.save(torch.load('{source}'){keys}, 'weights.pt')",
        )
    return candidates[0]


def _rank(where: str) -> int:
    """Position of the best known component of a dotted place; unknown ones come last."""
    ranks = [_PREFERRED.index(part) for part in where.split(".") if part in _PREFERRED]
    return min(ranks, default=len(_PREFERRED))


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        if not value:
            return "an empty dictionary"
        keys = ", ".join(repr(key) for key in list(value)[:5])
        return f"a dictionary without tensors (keys {keys}{', ...' if len(value) > 5 else ''})"
    return f"an object of type {type(value).__name__}"


def _count(names: list[str], noun: str) -> str:
    more = ", ..." if len(names) > 1 else ""
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''} ({names[0]}{more})"
