"""What comes after training, by what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from adaptify.methods import ExitFit, Fit, GateFit
from adaptify.pipeline.exit_run import conclude_exits
from adaptify.pipeline.gate_run import conclude_gates
from adaptify.pipeline.job import Job
from adaptify.reports.schema import Report

_CONCLUSIONS: Mapping[type[Fit], Callable[[Any, Any, Job], Report]] = MappingProxyType(
    {ExitFit: conclude_exits, GateFit: conclude_gates}
)


def conclude(fitted: Fit, model: Any, job: Job) -> Report:
    """Write the artifact of a trained network into the run folder, and report on what was written.

    Args:
        fitted: What the method's `fit` returned; its type says what was trained.
        model: The trained network.
        job: The run.

    Raises:
        AdaptifyError: What was written is not what was trained, or misses what was asked for.
    """
    return _CONCLUSIONS[type(fitted)](fitted, model, job)
