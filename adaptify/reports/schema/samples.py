"""What gates that look at the sample make of the test samples: what each of them takes, and of whom."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from adaptify.reports.schema.examples import Examples
from adaptify.reports.schema.part import Count, Fraction, Part


class MacsHistogram(Part):
    """How many samples take how many MACs, gates included.

    Attributes:
        low: MACs at the lower end of the first bin: the least that a sample takes.
        high: MACs at the upper end of the last bin: the most that a sample takes.
        counts: Number of samples in each of equal bins; the last one holds its upper end.
    """

    low: float
    high: float
    counts: Annotated[list[Count], Field(min_length=1)]


class ClassUse(Part):
    """What the samples of a class take, by their true label.

    Attributes:
        name: Name of the class.
        samples: Number of its samples.
        accuracy: Share of them that is classified correctly.
        kept: Their mean MACs as a fraction of the whole network's, gates included.
    """

    name: str
    samples: Annotated[int, Field(ge=1)]
    accuracy: Fraction
    kept: float


class ChannelUse(Part):
    """Which channels the samples of each class open at a site (Xia et al., Fig. 7).

    Attributes:
        name: Name of the site.
        position: What is gated there.
        gates: Number of its gates; of many, only the first ones are shown.
        classes: Names of the classes.
        open: For each class, the share of its samples that opens each of the shown gates.
    """

    name: str
    position: str
    gates: Count
    classes: list[str]
    open: list[list[Fraction]]

    @model_validator(mode="after")
    def _one_row_a_class(self) -> ChannelUse:
        if len(self.open) != len(self.classes):
            raise ValueError(f"{self.name} has {len(self.open)} rows for {len(self.classes)} classes")
        if len({len(row) for row in self.open}) > 1 or any(len(row) > self.gates for row in self.open):
            raise ValueError(f"{self.name} has rows that do not fit {self.gates} gates")
        return self


class BlockUse(Part):
    """How often a block runs, and how much training would still change it (Wang et al., Fig. 4).

    Attributes:
        name: Name of the block.
        executed: Share of the samples that run it.
        gradient: Mean absolute gradient of the parameters of its branch.
    """

    name: str
    executed: Fraction
    gradient: Annotated[float, Field(ge=0)]


class Samples(Part):
    """What gates that look at the sample make of the test samples.

    Attributes:
        macs: How the MACs of single samples are distributed; `None` where all take the same.
        classes: The classes that have samples, those that need the least compute first.
        examples: Images that take the fewest (`easy`) and the most (`hard`) MACs.
        channels: Which channels each class opens, at the last sites.
        blocks: How often blocks run, where gates close whole blocks.
        gradient_images: Number of training images that the gradients of `blocks` are of.
    """

    macs: MacsHistogram | None = None
    classes: list[ClassUse] = []
    examples: Examples = Examples()
    channels: list[ChannelUse] = []
    blocks: list[BlockUse] = []
    gradient_images: Count = 0
