"""What comes after training, by what was trained."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from adaptify.methods import ExitFit, Fit, GateFit
from adaptify.pipeline.exit_run import conclude_exits
from adaptify.pipeline.gate_run import conclude_gates
from adaptify.pipeline.job import Job
from adaptify.report.schema import Report


@singledispatch
def conclude(fitted: Fit, model: Any, job: Job) -> Report:
    """Write the artifact of a trained network into the run folder, and report on what was written.

    Raises:
        AdaptifyError: What was written is not what was trained, or misses what was asked for.
    """
    raise NotImplementedError(f"nothing is known to follow {type(fitted).__name__}")


conclude.register(ExitFit, conclude_exits)
conclude.register(GateFit, conclude_gates)
