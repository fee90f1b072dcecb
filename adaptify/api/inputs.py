"""What the functions take: networks and images of any kind, and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from adaptify.api.run import Run
from adaptify.assembly import Adapted
from adaptify.data import Data
from adaptify.data.loaders import Batches, LoaderSource
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec
from adaptify.models import registry
from adaptify.models.registry import Architecture
from adaptify.pipeline.given import open_loaders, open_module, plain_input
from adaptify.pipeline.prepare import (
    Network,
    classes_of,
    input_spec,
    network_of,
    open_network,
    open_section,
)
from adaptify.plan import Source
from adaptify.recipe import DataSection, Recipe, resolve
from adaptify.recipe_library import find_recipe
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel

AnyModel: TypeAlias = "nn.Module | Run | str | Path"
"""A module, what `retrofit` or `prune` returned, a file or run folder, or the name of an architecture."""

AnyData: TypeAlias = "Batches | str"
"""A loader, a data set, batches; or a data set by name, as `digits` or a folder."""


class Images:
    """The images that a function was given: loaders, or a data set by name.

    Args:
        train: To train on.
        holdout: To choose thresholds on.
        test: To report on.
        data: A data set by name, with all three.
        input_shape: (C, H, W) of one image; None: that of the first one.

    Raises:
        UsageError: There are both, or a loader is none.
    """

    def __init__(
        self,
        *,
        train: Batches | None = None,
        holdout: Batches | None = None,
        test: Batches | None = None,
        data: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
    ) -> None:
        parts = {"train": train, "holdout": holdout, "test": test}
        self.loaders = {name: LoaderSource(part) for name, part in parts.items() if part is not None}
        self.name = data
        self.input_shape = input_shape
        if data is not None and self.loaders:
            raise UsageError(
                "images are given by loaders and by name", "Give data=, or train=, holdout= and test=."
            )

    @property
    def source(self) -> str:
        """What a recipe calls them."""
        return self.name or ("(loaders)" if self.loaders else "")

    def input(self, arch: str | None, section: DataSection) -> InputSpec:
        """What a module takes that is shown these images.

        Args:
            arch: Name of its architecture: a registered one tells how images are normalised.
            section: What was said about size and normalisation.

        Raises:
            UsageError: Nothing tells the size.
        """
        spec = None
        if arch is not None:
            named = registry.resolve(arch)
            spec = named.input if named.is_public else None
        shape = self.input_shape
        if shape is None and self.loaders:
            shape = next(iter(self.loaders.values())).image_shape
        if shape is None and spec is None:
            raise UsageError(
                "the size of the images is not known", "Give input_shape=(channels, height, width)."
            )
        if shape is not None and (spec is None or spec.shape != shape):
            spec = plain_input(shape)
        assert spec is not None
        return input_spec(spec, section)

    def open(self, recipe: Recipe, network: Network, needed: tuple[str, ...] = ()) -> Data | None:
        """Open the loaders for `network`; None where the images have a name, or there are none.

        Raises:
            UsageError: One of those that are `needed` is missing, or they do not fit the network.
        """
        if not self.loaders:
            return None
        for name in needed:
            if name not in self.loaders:
                raise UsageError(f"{recipe.method} needs images: there is no {name}=", f"Give {name}=LOADER.")
        return open_loaders(
            **self.loaders,
            input=network.architecture.input,
            classes=classes_of(network),
            share=recipe.data.holdout,
            seed=recipe.run.seed,
        )


def request_of(
    max_drop: float | None,
    budget: float | None,
    confidence: float | None,
    thresholds: Sequence[float | None] | None,
) -> dict[str, Any]:
    """What an operating point is asked for by, as keys of the recipe's section `calibrate`."""
    request = {
        "max_drop": max_drop,
        "max_macs": budget,
        "confidence": confidence,
        "thresholds": None if thresholds is None else list(thresholds),
    }
    return {key: value for key, value in request.items() if value is not None}


def settings_of(
    method: str | None,
    model: AnyModel,
    images: Images,
    *,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a function's arguments.

    Args:
        method: Name of the method, or None for the recipe's.
        model: The model: its name, if it has one.
        images: The images.
        recipe: A YAML file, or the name of a recipe that comes with adaptify.
        settings: Key -> value, as in `{"train.epochs": 5}` or `{"train": {"epochs": 5}}`.
        options: Dotted key -> value, from arguments of the function.

    Raises:
        RecipeError, UsageError: As `recipe.resolve`.
    """
    named = str(model) if isinstance(model, (str, Path)) else f"{type(model).__name__} (a module)"
    known: dict[str, Any] = {"model.checkpoint": named}
    if images.source or recipe is None:
        known["data.source"] = images.source
    return resolve(
        method,
        file=find_recipe(recipe) if recipe is not None else None,
        options=known | dict(options or {}),
        overrides=dict(_flat(settings or {})),
    )


def open_model(
    model: AnyModel,
    images: Images,
    recipe: Recipe,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
) -> Network:
    """Open what a caller calls a model.

    Raises:
        UsageError, ModelError: It cannot be used.
    """
    found = model.model if isinstance(model, Run) else model
    if isinstance(found, (AdaptiveModel, GatedModel)):
        return _open_made(found)
    if isinstance(found, nn.Module):
        return open_module(found, images.input(arch, recipe.data), arch=arch, arch_kwargs=arch_kwargs)
    section = recipe.model.model_copy(update={"arch": arch, "arch_kwargs": dict(arch_kwargs or {})})
    return open_network(section if arch is not None else recipe.model, recipe.data, seed=recipe.run.seed)


def open_test(data: AnyData, network: Adapted) -> Data:
    """Open images to run a network on, as the test part of a data set."""
    spec = plain_input(network.traced.input_shape)
    if network.plan is not None:
        spec = Architecture.from_json(network.plan.architecture).input
    if isinstance(data, str):
        return open_section(DataSection(source=data), spec)
    return open_loaders(test=LoaderSource(data), input=spec, classes=network.num_classes)


def _open_made(made: Adapted) -> Network:
    if made.plan is None:
        raise UsageError(
            "this network was put together by hand: nothing says how to make it again",
            "Give the module that it was made of.",
        )
    plan = made.plan
    made_by = f"{plan.method['name']} of " if plan.method else ""
    before = plan.source or Source(checkpoint="a module", sha256="")
    source = Source(checkpoint=f"{made_by}{before.checkpoint}", sha256=before.sha256)
    return network_of(made, plan, Architecture.from_json(plan.architecture), source)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and not key.endswith("kwargs"):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
