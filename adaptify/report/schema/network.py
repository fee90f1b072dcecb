"""The network: what it was made of and by, what it takes before and after, layer by layer."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from typing import Any

from adaptify.report.schema.part import Fraction, Part


class Model(Part):
    """The network and the checkpoint it came from; `input` is (C, H, W)."""

    architecture: str
    kwargs: dict[str, Any] = {}
    checkpoint: str
    sha256: str
    parameters: int
    gate_parameters: int
    input: list[int]


class Method(Part):
    """The method by name, with its options as they were resolved."""

    name: str
    options: dict[str, Any] = {}


class DataInfo(Part):
    """The data set, and how many samples were used for what."""

    name: str
    classes: list[str]
    train: int
    holdout: int
    test: int
    notes: list[str] = []


class Size(Part):
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


class MacsPerSample(Part):
    """How the MACs of single samples are distributed."""

    mean: float
    median: float
    p95: float


class Layer(Part):
    """One layer; `executed` is the mean fraction of samples that run it."""

    name: str
    type: str
    shape: list[int]
    parameters: int
    macs: int
    executed: float = 1.0
