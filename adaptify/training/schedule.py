"""Learning rate schedules, as functions of the step alone: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from adaptify.training.options import Schedule


def rate_factor(schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at one optimizer step.

    During warm-up the rate rises in equal parts up to the full one. `multistep` counts its milestones
    from the start of the run; `cosine` and `exponential` fill what warm-up leaves of it.

    Args:
        schedule: The schedule.
        step: Which step, from 0.
        steps: Steps of the whole run.
        steps_per_epoch: Steps of one epoch.

    Returns:
        A factor in (0, 1].

    >>> [rate_factor(Schedule(kind="multistep"), step, 4, 4) for step in range(4)]
    [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    warmup = min(round(schedule.warmup * steps_per_epoch), steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "multistep":
        return schedule.gamma ** sum(step / steps >= milestone for milestone in schedule.milestones)
    done = (step - warmup) / (steps - warmup)
    if schedule.kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return schedule.gamma**done if schedule.kind == "exponential" else 1.0
