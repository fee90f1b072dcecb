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


class Size(_Part):
    """What a network takes, as far as it was looked at.

    Attributes:
        parameters: Number of parameters.
        bytes: Size of its tensors.
        milliseconds: Time of one batch: the median of runs that took turns with the other network's.
    """

    parameters: int | None = None
    bytes: int | None = None
    milliseconds: float | None = None


class Before(Size):
    """The network as it came; its accuracy on the test samples, `None` where there were none."""

    accuracy: Fraction | None
    macs: int


class After(Size):
    """The network that came of it, on the test samples; `macs` is a mean, `kept` its fraction of before."""

    accuracy: Fraction | None
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


class PrunedLayer(_Part):
    """One layer: how many channels it writes and what it costs, before and after (0: it is gone)."""

    name: str
    channels_before: int
    channels_after: int
    macs_before: int
    macs_after: int


class Pruning(_Part):
    """Which channels were removed.

    Attributes:
        target: Fraction of the MACs that was asked for; `achieved` what came of it.
        importance: What channels were judged by.
        round_to: Multiple of channels that was kept to where layers are large enough.
        frozen: Reason -> channel groups that lose nothing for it.
        layers: All layers with channels, in the order of the network.
        batch_size: Images in a batch whose time was taken.
        device: Where the time was taken.
    """

    target: Fraction
    achieved: float
    importance: str
    round_to: int
    frozen: dict[str, list[str]] = {}
    layers: list[PrunedLayer] = []
    batch_size: int = 1
    device: str = "cpu"


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
    data: DataInfo | None = None
    before: Before
    after: After
    calibration: Calibration | None = None
    pruning: Pruning | None = None
    exits: list[Exit] = []
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
