"""Which network are these tensors of?

Asked in this order: what the user says, what the file's name or content says, and a search through all
architectures. An answer counts only when all names and shapes fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptify.checkpoint.fit import Fit, fit
from adaptify.checkpoint.read import Checkpoint
from adaptify.errors import AdaptifyError, ModelError, UsageError
from adaptify.models.registry import SOURCES, Architecture, resolve
from adaptify.models.source import with_channels

_NEAREST = 3
_FOLDERS = 3


def find_architecture(
    checkpoint: Checkpoint, *, arch: str | None = None, arch_kwargs: Mapping[str, Any] | None = None
) -> Architecture:
    """Find the network that `checkpoint` holds the weights of.

    Args:
        checkpoint: Named tensors.
        arch: Name of the architecture, as in `--arch`; `None` to find it.
        arch_kwargs: Arguments for its builder. What the shapes tell (classes, channels) can be left out.

    Raises:
        UsageError: `arch` does not exist, or cannot be built.
        ModelError: It does not fit, or nothing or several things fit.
    """
    return find_fit(checkpoint, arch=arch, arch_kwargs=arch_kwargs).architecture


def find_fit(
    checkpoint: Checkpoint, *, arch: str | None = None, arch_kwargs: Mapping[str, Any] | None = None
) -> Fit:
    """As `find_architecture`, with the tensors under the names they have in the network."""
    kwargs = dict(arch_kwargs or {})
    if arch is not None:
        return _given(checkpoint, arch, kwargs)
    tried: list[Fit] = []
    for name in _names_in(checkpoint):
        for result in _fits(checkpoint, name, kwargs):
            if result.exact:
                return result
            tried.append(result)
    for name in _searchable():
        tried += _fits(checkpoint, name, kwargs)
    exact = {result.architecture.name: result for result in tried if result.exact}
    if len(exact) == 1:
        return next(iter(exact.values()))
    if exact:
        raise ModelError(
            f"{checkpoint.path} fits several architectures: {', '.join(sorted(exact))}",
            f"Choose one, for example --arch {min(exact)}",
        )
    raise _nothing_fits(checkpoint, tried)


def _given(checkpoint: Checkpoint, arch: str, kwargs: dict[str, Any]) -> Fit:
    architecture = resolve(arch, kwargs, file=checkpoint.path.name)
    if not architecture.is_public:
        architecture = replace(
            architecture, input=with_channels(architecture.input, image_channels(checkpoint))
        )
        best = fit(architecture, checkpoint)
    else:
        architecture.signature()  # says what is wrong with the arguments, which trying variants would hide
        best = min(_fits(checkpoint, architecture.name, kwargs), key=lambda result: result.distance)
    if best.exact:
        return best
    raise ModelError(
        f"{checkpoint.path} does not fit {architecture.name}: {best.differences()}",
        "Adjust --arch-kwargs, or leave out --arch to search for the architecture.",
    )


def image_channels(checkpoint: Checkpoint) -> int:
    """Channels of the images, read off the first convolution; 3 where there is none."""
    kernels = (tensor for tensor in checkpoint.tensors.values() if tensor.dim() == 4 and tensor.numel())
    first = next(kernels, None)
    return 3 if first is None else int(first.shape[1])


def _fits(checkpoint: Checkpoint, name: str, kwargs: Mapping[str, Any]) -> list[Fit]:
    """Compare with every variant of one public architecture, as far as they can be built."""
    prefix, _, bare = name.partition(":")
    results = []
    for variant in SOURCES[prefix].variants(bare):
        try:
            architecture = resolve(name, {**variant, **kwargs}, file=checkpoint.path.name)
            results.append(fit(architecture, checkpoint))
        except UsageError:
            continue
        if results[-1].exact:
            return results[-1:]
    return results


def _searchable() -> Iterator[str]:
    for source in SOURCES.values():
        if source.searchable:
            yield from (f"{source.prefix}:{name}" for name in source.names())


def _names_in(checkpoint: Checkpoint) -> Iterator[str]:
    """Architectures named by the file's name, by the file itself and by its folders; best first.

    A name counts when its words stand in the text side by side. The longest is best: `resnetblur50` is not
    `resnet50`, though they have the same parameters.
    """
    folders = [folder.name for folder in checkpoint.path.absolute().parents][:_FOLDERS]
    titles = [
        (f" {_words(title)} ", f"{source.prefix}:{name}")
        for source in SOURCES.values()
        for title, name in source.titles()
    ]
    titles.sort(key=lambda entry: -len(entry[0]))
    for text in (checkpoint.path.name, *checkpoint.mentions, *folders):
        words = f" {_words(text)} "
        yield from (name for title, name in titles if title in words)


def _words(text: str) -> str:
    return " ".join(re.findall("[a-z0-9]+", text.lower()))


def _nothing_fits(checkpoint: Checkpoint, tried: Sequence[Fit]) -> AdaptifyError:
    if not tried:
        return UsageError(
            "no known architecture takes these --arch-kwargs", "Name the architecture with --arch."
        )
    nearest: dict[str, str] = {}  # the first name for each set of differences: torchvision's before timm's
    for result in sorted(tried, key=lambda result: result.distance):
        if result.architecture.name not in nearest.values():
            nearest.setdefault(result.differences(), result.architecture.name)
    lines = [f"  {name}: {differences}" for differences, name in list(nearest.items())[:_NEAREST]]
    return ModelError(
        f"no known architecture has the names and shapes of the {len(checkpoint.tensors)} tensors in "
        f"{checkpoint.path}; nearest:\n" + "\n".join(lines),
        "Name it with --arch (torchvision:NAME, timm:NAME, adaptify:NAME or package.module:callable) and "
        "--arch-kwargs; networks of timm are only tried by name.",
    )
