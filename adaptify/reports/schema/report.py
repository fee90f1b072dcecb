"""The report as a whole."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import model_validator

from adaptify.errors import UsageError
from adaptify.reports.schema.examples import Examples
from adaptify.reports.schema.exits import Calibration, Exit, Measured, Point
from adaptify.reports.schema.gating import Gating
from adaptify.reports.schema.network import (
    After,
    Before,
    ClassEffect,
    DataInfo,
    Layer,
    MacsPerSample,
    Method,
    Model,
    WrittenFile,
)
from adaptify.reports.schema.part import Part
from adaptify.reports.schema.pruning import Pruning
from adaptify.reports.schema.speed import Speed
from adaptify.reports.schema.stages import Stage
from adaptify.reports.schema.training import Training

FORMAT = "adaptify.report"
VERSION = 1


class Report(Part):
    """Everything that a report says. See the contract of each part in its class.

    Attributes:
        stages: Of a run in several stages: each of them, in order; `before` is what the last one was given.
        anytime: Each exit for all test samples, the heads before it computed too; older reports have none.
        held_out: What the network that was written does with held-out images, where it was trained and its
            thresholds were not chosen on them (`calibration` knows of those); older reports have none.
        budgeted: Each point of `frontier` on the test samples; older reports have none.
        class_effects: What became of each class that has test samples; older reports have none.
        speed: How long the networks take; `None` where nobody measured it.
        recipe: Every setting of the run, as `recipe.yaml` has them; older reports have none.
        file: The artifact that all of this is about; older reports have none.
    """

    format: Literal["adaptify.report"] = "adaptify.report"
    version: Literal[1] = 1
    adaptify: str
    created: datetime
    command: list[str]
    model: Model
    method: Method
    data: DataInfo | None = None
    before: Before
    after: After
    calibration: Calibration | None = None
    held_out: Measured | None = None
    pruning: Pruning | None = None
    training: Training | None = None
    stages: list[Stage] = []
    gating: Gating | None = None
    exits: list[Exit] = []
    macs_per_sample: MacsPerSample
    frontier: list[Point] = []
    anytime: list[Measured] = []
    budgeted: list[Measured] = []
    layers: list[Layer] = []
    classes_per_exit: list[list[int]] = []
    class_effects: list[ClassEffect] = []
    examples: Examples = Examples()
    speed: Speed | None = None
    timing: dict[str, float | None] = {}
    recipe: dict[str, Any] = {}
    file: WrittenFile | None = None
    environment: dict[str, Any] = {}
    notes: list[str] = []

    @model_validator(mode="after")
    def _parts_fit(self) -> Report:
        exits, classes = len(self.exits), len(self.data.classes) if self.data else 0
        if self.exits and (self.data is None or not self.measured):
            raise ValueError("it has exits, but no data that they were measured on")
        if self.classes_per_exit:
            if len(self.classes_per_exit) != exits:
                raise ValueError(f"classes_per_exit has {len(self.classes_per_exit)} rows for {exits} exits")
            if any(len(row) != classes for row in self.classes_per_exit):
                raise ValueError(f"classes_per_exit has rows that are not {classes} classes long")
        if any(len(point.exit_shares) != exits for point in self.frontier):
            raise ValueError(f"a point of the frontier has not {exits} exit_shares")
        if self.anytime and len(self.anytime) != exits:
            raise ValueError(f"anytime has {len(self.anytime)} figures for {exits} exits")
        if self.budgeted and len(self.budgeted) != len(self.frontier):
            raise ValueError(f"budgeted has {len(self.budgeted)} figures for {len(self.frontier)} points")
        return self

    @property
    def measured(self) -> bool:
        """Whether accuracy was measured."""
        return self.before.accuracy is not None and self.after.accuracy is not None

    @property
    def accuracies(self) -> tuple[float, float]:
        """Accuracy on the test samples before and after.

        Raises:
            UsageError: It was not measured.
        """
        if self.before.accuracy is None or self.after.accuracy is None:
            raise UsageError("the report has no accuracy: it was not measured", "Measure it with --data.")
        return self.before.accuracy, self.after.accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that `read_report` reads back as an equal report."""
        return self.model_dump(mode="json")
