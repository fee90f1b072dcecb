"""A search: settings that are proposed trial by trial, from what those before gave on held-out images.

Nothing is kept beside the trials themselves. For each proposal the study is built anew from them, and the
sampler is seeded by the run's seed and the number of the trial: a search that was stopped proposes what it
would have proposed otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptify.errors import UsageError
from adaptify.pipeline.search_space import Choices, Range, Space, parse_space
from adaptify.recipe import Recipe

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Proposals that have been tried are passed over; after so many, there is hardly anything else.
_ATTEMPTS = 100


@dataclass(frozen=True)
class Search:
    """What is looked for.

    Attributes:
        trials: How many runs there are to be.
        words: What may be chosen, as it was given: see `search_space.parse_space`.
        space: The same, read.
    """

    trials: int
    words: tuple[str, ...]
    space: Space

    @classmethod
    def of(cls, words: Sequence[str], trials: int, schema: type[Recipe]) -> Search:
        """Read the words of a search.

        Raises:
            RecipeError: They do not fit the schema.
        """
        return cls(trials, tuple(words), parse_space(words, schema))


@dataclass(frozen=True)
class Trial:
    """A trial that is over.

    Attributes:
        settings: What was chosen for it: dotted key -> value.
        held_out: Mean MACs of a sample, and top-1 in [0, 1], on held-out images; None: it failed.
    """

    settings: Mapping[str, Any]
    held_out: tuple[float, float] | None


def check_installed() -> None:
    """Make sure that what proposes settings is there.

    Raises:
        UsageError: It is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a search needs optuna, which is not installed", "Install it: pip install 'adaptify[search]'."
        ) from error


def propose(space: Space, trials: Sequence[Trial], seed: int) -> dict[str, Any] | None:
    """Return settings for the next trial, for accuracy up and MACs down, by optuna's TPE sampler.

    The first ten that succeed are drawn at random; a trial that failed teaches the sampler nothing.

    Args:
        space: What may be chosen.
        trials: All trials so far, in order.
        seed: Of the run.

    Returns:
        Dotted key -> value; None if the sampler finds nothing that has not been tried.

    Raises:
        UsageError: Optuna is not installed.
    """
    check_installed()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(values) for key, values in space.items()}
    own = np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0]
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=optuna.samplers.TPESampler(seed=int(own))
    )
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL
                if trial.held_out is None
                else optuna.trial.TrialState.COMPLETE,
                values=trial.held_out,
                params={key: _inward(values, trial.settings[key]) for key, values in space.items()},
                distributions=distributions,
            )
        )
    tried = {_identity(trial.settings) for trial in trials}
    for _ in range(_ATTEMPTS):
        asked = study.ask(distributions)
        settings = {key: _outward(values, asked.params[key]) for key, values in space.items()}
        if _identity(settings) not in tried:
            return settings
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    return None


def _distribution(values: Range | Choices) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Choices):
        # By number: a choice may be a list, which the sampler would not take.
        return CategoricalDistribution(range(len(values.values)))
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _inward(values: Range | Choices, value: Any) -> Any:
    return values.values.index(value) if isinstance(values, Choices) else value


def _outward(values: Range | Choices, drawn: Any) -> Any:
    if isinstance(values, Choices):
        return values.values[drawn]
    # What a person would write: more digits change nothing, and are hard to read.
    return drawn if values.whole else min(max(float(f"{drawn:.4g}"), values.low), values.high)


def _identity(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
