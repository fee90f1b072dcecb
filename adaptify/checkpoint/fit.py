"""Whether tensors are those of a network: the same names, the same shapes.

Number of classes and input channels are read off the shapes. Names may differ in what wrappers add and in
what the network's own loading rules and older releases of torchvision translate.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from adaptify.checkpoint.read import Checkpoint
from adaptify.errors import UsageError
from adaptify.models.registry import Architecture, TensorSpec, resolve
from adaptify.text import shape as shape_text

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """A network and tensors, side by side.

    Attributes:
        architecture: The network.
        tensors: Tensors that belong to it, under the names they have there.
        missing: Names that only the network has.
        unexpected: Names that only the file has, with the shapes there.
        mismatched: Name, shape in the file and shape in the network, where these differ.
        notes: What was renamed or left out to get there.
    """

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: Mapping[str, Shape]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    notes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def distance(self) -> int:
        """Number of names and shapes that differ."""
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def differences(self) -> str:
        """What differs, with an example of each kind."""
        shapes = [
            f"{name}: file {shape_text(here)}, network {shape_text(there)}"
            for name, here, there in self.mismatched
        ]
        kinds = (
            ("missing", self.missing),
            ("unexpected", list(self.unexpected)),
            ("of another shape", shapes),
        )
        return ", ".join(
            f"{len(found)} {kind} ({found[0]}{', ...' if len(found) > 1 else ''})" if found else f"0 {kind}"
            for kind, found in kinds
        )


def fit(architecture: Architecture, checkpoint: Checkpoint) -> Fit:
    """Compare, and adapt `num_classes` and `in_channels` of a public network to the shapes in the file.

    Returns:
        The exact fit if there is one, else the comparison with `architecture` as it is.

    Raises:
        UsageError: The network cannot be built.
    """
    result = _compare(architecture, checkpoint)
    sizes = _sizes(result) if architecture.is_public else {}
    if not sizes:
        return result
    try:
        adapted = resolve(architecture.name, {**architecture.kwargs, **sizes}, file=checkpoint.path.name)
        better = _compare(adapted, checkpoint)
    except UsageError:  # it does not take these arguments
        return result
    return better if better.exact else result


def _sizes(result: Fit) -> dict[str, int]:
    """Classes and channels in the file, where nothing but these can explain all shapes that differ."""
    if result.missing:
        return {}
    # A network that is built without classes has no head, which is then what the file has besides.
    outputs = {shape[:1] for shape in result.unexpected.values()}
    inputs: set[Shape] = set()
    for _, here, there in result.mismatched:
        axes = [axis for axis, (a, b) in enumerate(zip(here, there, strict=False)) if a != b]
        if len(here) != len(there) or len(axes) != 1 or axes[0] > 1:
            return {}
        (inputs if axes[0] else outputs).add(here[axes[0] : axes[0] + 1])
    if len(outputs) > 1 or len(inputs) > 1 or () in outputs:
        return {}
    sizes = {}
    for key, found in (("num_classes", outputs), ("in_channels", inputs)):
        if found and key not in result.architecture.kwargs:
            sizes[key] = next(iter(found))[0]
    return sizes


def _compare(architecture: Architecture, checkpoint: Checkpoint) -> Fit:
    expected = architecture.signature()
    first: Fit | None = None
    for tensors, note in _namings(architecture, checkpoint, expected):
        result = _difference(architecture, expected, tensors, note)
        if not result.missing and not result.unexpected:
            return result
        first = first or result
    assert first is not None
    return first


def _difference(
    architecture: Architecture, expected: Mapping[str, TensorSpec], tensors: Mapping[str, Tensor], note: str
) -> Fit:
    notes = [note] if note else []
    absent = [name for name in expected if name not in tensors]
    missing = [name for name in absent if not expected[name].optional]
    own = [name for name in absent if expected[name].optional]
    unexpected = [name for name in tensors if name not in expected]
    if unexpected:
        heads = architecture.training_heads()
        for reason, left_out in (
            ("of heads that only training uses", [name for name in unexpected if name in heads]),
            ("of integers that the network does not know", [n for n in unexpected if _is_count(tensors[n])]),
        ):
            if left_out:
                notes.append(f"left out {_few(left_out)} {reason}")
                unexpected = [name for name in unexpected if name not in left_out]
    if own:
        notes.append(f"{_few(own)} of integers not in the file: kept as the network makes them")
    shared = {name: tensor for name, tensor in tensors.items() if name in expected}
    mismatched = tuple(
        (name, tuple(tensor.shape), expected[name].shape)
        for name, tensor in shared.items()
        if tuple(tensor.shape) != expected[name].shape
    )
    surplus = {name: tuple(tensors[name].shape) for name in unexpected}
    return Fit(architecture, shared, tuple(missing), surplus, mismatched, tuple(notes))


def _namings(
    architecture: Architecture, checkpoint: Checkpoint, expected: Mapping[str, TensorSpec]
) -> Iterator[tuple[Mapping[str, Tensor], str]]:
    """The tensors under the names of the file, then under those that they may have in the network."""
    tensors = checkpoint.tensors
    yield tensors, ""
    # A network whose own names all begin alike lost that part when wrappers were removed.
    parts = checkpoint.prefix.split(".")[:-1]
    for start in range(len(parts)):
        prefix = ".".join(parts[start:]) + "."
        if any(name.startswith(prefix) for name in expected):
            yield {prefix + name: tensor for name, tensor in tensors.items()}, f"kept prefix '{prefix}'"
    if not _same_shapes(expected, tensors):
        return
    # DenseNet was once saved with `norm.1` where `norm1` stands today.
    without_dots = {name.replace(".", ""): name for name in expected}
    if len(without_dots) == len(expected):
        renamed = {without_dots.get(name.replace(".", ""), name): t for name, t in tensors.items()}
        if len(renamed) == len(tensors):
            yield renamed, "translated names of an older release, which differ in dots"
    loaded = _through_loading_rules(architecture, tensors)
    if loaded is not None:
        yield loaded, "translated names of an older release, by the network's own rules"


def _through_loading_rules(
    architecture: Architecture, tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """Let the network itself load the tensors (without copying them) and ask what it calls them."""
    module = architecture.build_meta()
    try:
        result = module.load_state_dict(OrderedDict(tensors), strict=False, assign=True)
    except (RuntimeError, ValueError, KeyError):
        return None
    return None if result.missing_keys or result.unexpected_keys else module.state_dict()


def _same_shapes(expected: Mapping[str, TensorSpec], tensors: Mapping[str, Tensor]) -> bool:
    there = Counter(spec.shape for spec in expected.values() if not spec.optional)
    return there == Counter(tuple(tensor.shape) for tensor in tensors.values() if not _is_count(tensor))


def _is_count(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _few(names: list[str]) -> str:
    return (
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({names[0]}{', ...' if len(names) > 1 else ''})"
    )
