"""`report.json`, typed: the one source that the page and the tables are made from.

MACs are per sample; accuracies, shares and kept parts are fractions in [0, 1]. A threshold of
`None` is never reached: nothing leaves at that exit (JSON has no infinity).
"""

from __future__ import annotations

import json
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from adaptify.errors import UsageError
from adaptify.files import write_text

FORMAT = "adaptify.report"
VERSION = 1


def _never_is_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value


Fraction = Annotated[float, Field(ge=0, le=1)]
Threshold = Annotated[float | None, BeforeValidator(_never_is_none)]
Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]*$")]


class _Part(BaseModel):
    # Unknown keys are passed over: a later adaptify may add some without a new version.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Model(_Part):
    """The network and the checkpoint it came from; `input` is (C, H, W)."""

    architecture: str
    kwargs: dict[str, Any] = {}
    checkpoint: str
    sha256: str
    parameters: int
    gate_parameters: int
    input: list[int]


class Method(_Part):
    """The method by name, with its options as they were resolved."""

    name: str
    options: dict[str, Any] = {}


class DataInfo(_Part):
    """The data set, and how many samples were used for what."""

    name: str
    classes: list[str]
    train: int
    holdout: int
    test: int
    notes: list[str] = []


class Before(_Part):
    """The network as it came, on the test samples."""

    accuracy: Fraction
    macs: int


class After(_Part):
    """The network that exits early, on the test samples; `macs` is a mean, `kept` its fraction of before."""

    accuracy: Fraction
    macs: float
    kept: float


class Calibration(_Part):
    """What was asked for and what came of it on the samples that thresholds were chosen on.

    Attributes:
        request: One of `max_drop` (points of top-1), `max_macs` (fraction kept), `thresholds`.
        base_accuracy: Accuracy of the network as it came, on the same samples.
        macs: Mean MACs on these samples.
    """

    split: str
    samples: int
    request: dict[str, Any]
    accuracy: Fraction
    base_accuracy: Fraction
    macs: float | None = None


class Exit(_Part):
    """A place where samples leave, on the test samples; the last one is the network's own output.

    Attributes:
        share: Fraction of all samples that leave here, `samples` of them.
        macs: MACs of a sample that leaves here; `share_macs` as a fraction of the whole network.
        accuracy_all: Accuracy if every sample left here.
        accuracy_left: Accuracy on those that did; `None` when none did.
    """

    name: str
    threshold: Threshold = None
    share: Fraction
    macs: float
    share_macs: float
    accuracy_all: Fraction
    accuracy_left: Fraction | None
    samples: int


class MacsPerSample(_Part):
    """How the MACs of single samples are distributed."""

    mean: float
    median: float
    p95: float


class Point(_Part):
    """One choice of thresholds, with what it gives on the calibration samples."""

    thresholds: list[Threshold]
    accuracy: Fraction
    macs: float
    exit_shares: list[float]


class Layer(_Part):
    """One layer; `executed` is the mean fraction of samples that run it."""

    name: str
    type: str
    shape: list[int]
    parameters: int
    macs: int
    executed: float = 1.0


class Example(_Part):
    """One image, as a PNG data URI, with where it left and how sure that exit was."""

    image: Picture
    label: str
    predicted: str
    exit: str
    score: float | None = None


class Examples(_Part):
    """Images that leave early with the largest scores, and images that need the whole network."""

    easy: list[Example] = []
    hard: list[Example] = []


class Report(_Part):
    """Everything that a report says. See the contract of each part in its class."""

    format: Literal["adaptify.report"] = "adaptify.report"
    version: Literal[1] = 1
    adaptify: str
    created: datetime
    command: list[str]
    model: Model
    method: Method
    data: DataInfo
    before: Before
    after: After
    calibration: Calibration | None = None
    exits: list[Exit]
    macs_per_sample: MacsPerSample
    frontier: list[Point] = []
    layers: list[Layer] = []
    classes_per_exit: list[list[int]] = []
    examples: Examples = Examples()
    timing: dict[str, float | None] = {}
    environment: dict[str, Any] = {}
    notes: list[str] = []

    @model_validator(mode="after")
    def _parts_fit(self) -> Report:
        exits, classes = len(self.exits), len(self.data.classes)
        if self.classes_per_exit:
            if len(self.classes_per_exit) != exits:
                raise ValueError(f"classes_per_exit has {len(self.classes_per_exit)} rows for {exits} exits")
            if any(len(row) != classes for row in self.classes_per_exit):
                raise ValueError(f"classes_per_exit has rows that are not {classes} classes long")
        if any(len(point.exit_shares) != exits for point in self.frontier):
            raise ValueError(f"a point of the frontier has not {exits} exit_shares")
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that `read_report` reads back as an equal report."""
        return self.model_dump(mode="json")


def parse_report(value: Any, source: str = "report") -> Report:
    """Return the typed view of a JSON value.

    Args:
        value: The JSON value.
        source: What errors call it: the file it came from.

    Raises:
        UsageError: It is no report, one of a newer version, or a broken one.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{source} is no adaptify report", "Name a run folder, or the report.json in it.")
    version = value.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UsageError(
            f"{source} has version {version}, and this adaptify reads version {VERSION}",
            "Update adaptify, or use the one that made the report.",
        )
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the report"
        raise UsageError(
            f"{source} is broken at {where}: {first['msg']}",
            "Make it again: `adaptify evaluate` or `adaptify calibrate`.",
        ) from error


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a `report.json`.

    Raises:
        UsageError: The file cannot be read, or is no report that this version understands.
    """
    source = Path(path)
    try:
        value = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {error.strerror}", "Name a run folder that has a report.json."
        ) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise UsageError(
            f"{source} is not JSON: {error}", "The file is damaged: make the report again."
        ) from error
    return parse_report(value, str(source))


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write `report` as `report.json`, atomically."""
    write_text(path, json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
