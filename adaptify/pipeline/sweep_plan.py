"""Which runs a sweep comes to: those that methods and targets say, or the trials of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptify.errors import UsageError
from adaptify.methods import JudgingMethod, find_method, method_names
from adaptify.pipeline.part_run import Command
from adaptify.pipeline.search import Search, Trial, propose
from adaptify.pipeline.sweep_file import Point
from adaptify.recipe import Recipe, recipe_type, resolve


def plan_points(
    methods: Sequence[str],
    targets: Sequence[float],
    options: Mapping[str, Any],
    overrides: Mapping[str, Any] = {},
) -> tuple[Point, ...]:
    """Return the runs that methods and targets come to.

    A method that judges channels prunes to each target, and one that is trained towards a part of the MACs is
    trained towards each; others, as most with exits, have all budgets on the frontier of a single run.

    Args:
        methods: Names of methods.
        targets: Fractions of the MACs.
        options: Dotted key -> value, for all of them.
        overrides: The same; with the name of a method before it (`dgate.train.epochs`), for that one.

    Raises:
        UsageError, RecipeError: A method or a setting is unknown, or a target is missing.
    """
    points: list[Point] = []
    own = {name: _overrides_of(name, overrides) for name in methods}
    for name in dict.fromkeys(methods):
        command, key = _aim(name)
        if command == "prune" and not targets:
            raise _no_target(name, "--target 0.4,0.6")
        for target in targets if key is not None and targets else [None]:
            settings = {**options, **({} if key is None or target is None else {key: target})}
            recipe = resolve(name, options=settings, overrides=own[name])
            points.append(Point(name if target is None else f"{name}-{target:g}", command, recipe))
    return tuple(points)


def plan_search(
    method: str,
    target: float | None,
    words: Sequence[str],
    trials: int,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any] = {},
) -> tuple[Search, Point]:
    """Return what is looked for, and what all of its trials have in common.

    Args:
        method: Name of the method.
        target: Fraction of the MACs, where that is not searched.
        words: What may be chosen: see `search_space.parse_space`.
        trials: How many runs there are to be.
        options: Dotted key -> value.
        overrides: The same, as in `plan_points`.

    Returns:
        The search, and a point with the settings that it leaves alone; those that it does not are at one of
        their ends.

    Raises:
        UsageError, RecipeError: The method or a setting is unknown, a value does not fit, a target is
            missing, or runs would say nothing of held-out images.
    """
    command, key = _aim(method)
    search = Search.of(words, trials, recipe_type(method))
    fixed = _overrides_of(method, overrides)
    if target is not None:
        if key is None:
            raise UsageError(
                f"{method} has no target", "Leave --target out: a run has all budgets on its frontier."
            )
        fixed[key] = target
    for name in search.space:
        if name in fixed:
            raise UsageError(f"{name} is both set and searched", "Leave one of them out.")
    first = {name: values.edges[0] for name, values in search.space.items()}
    recipe = resolve(method, options=options, overrides={**fixed, **first})
    point = Point(method, command, recipe)
    for name, values in search.space.items():
        for value in values.edges:
            _check_held_out(replace(point, settings={name: value}).resolved(), command)
    return search, point


def next_trial(search: Search, common: Point, trials: Sequence[Point]) -> Point | None:
    """Return the trial that comes after others; None: there is none, as the search has all that it wants.

    Args:
        search: What is looked for.
        common: What all trials have in common.
        trials: Those that are over, in order.

    Raises:
        UsageError: Optuna is not installed.
    """
    if len(trials) >= search.trials:
        return None
    over = [Trial(trial.settings, trial.held_out) for trial in trials]
    settings = propose(search.space, over, common.recipe.run.seed)
    if settings is None:
        return None
    name = f"{common.recipe.method}-{len(trials) + 1:03d}"
    return Point(name, common.command, common.recipe, settings)


def _check_held_out(recipe: Recipe, command: Command) -> None:
    if command == "retrofit":  # what is trained is measured on held-out images
        return
    if recipe.prune.target is None:
        raise _no_target(recipe.method, "--target 0.5, or --search prune.target=0.3..0.8")
    if not recipe.prune.finetune:
        raise UsageError(
            f"{recipe.method} looks at no held-out images, and a search must not look at the test images",
            "Train on what is pruned, which does: prune.finetune=1.",
        )


def _aim(method: str) -> tuple[Command, str | None]:
    """What a run of a method is, and where its target goes if it has one."""
    kind = find_method(method)
    if issubclass(kind, JudgingMethod):
        return "prune", "prune.target"
    return "retrofit", "train.target" if "target" in kind.Train.model_fields else None


def _no_target(method: str, words: str) -> UsageError:
    return UsageError(f"{method} prunes to a target, and there is none", f"Give some: {words}.")


def _overrides_of(method: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What is set for all methods, and for this one."""
    shared = {key: value for key, value in overrides.items() if key.partition(".")[0] not in method_names()}
    prefix = f"{method}."
    own = {key.removeprefix(prefix): value for key, value in overrides.items() if key.startswith(prefix)}
    return {**shared, **own}
