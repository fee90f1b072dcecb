"""The network: what it was made of and by, what it takes before and after, layer by layer."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from adaptify.reports.schema.part import Fraction, Part


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
        milliseconds: Time of one image, or of one batch of a report that says how large it is, in turns with
            the other network.
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
    """One layer.

    Attributes:
        executed: Mean fraction of the samples that run it.
        kept: Part of its MACs that is left; `None`: the same. Where gates choose channels, it is that of the
            mean openness of the gates on both sides of the layer.
    """

    name: str
    type: str
    shape: list[int]
    parameters: int
    macs: int
    executed: float = 1.0
    kept: float | None = None

    @property
    def macs_kept(self) -> float:
        """Mean MACs that are left, per sample."""
        return self.macs * (self.executed if self.kept is None else self.kept)


class WrittenFile(Part):
    """The artifact that was written: its size in bytes, and the SHA-256 of its content."""

    bytes: int
    sha256: str


class ClassEffect(Part):
    """What became of the test samples of a class, by their true label; accuracies are shares of `samples`."""

    name: str
    samples: Annotated[int, Field(ge=1)]
    before: Fraction
    after: Fraction
