"""Time: the network as it came and what became of it, run in turns on the machine that is named."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from adaptify.reports.schema.part import Part

Milliseconds = Annotated[float, Field(gt=0)]


class BatchTime(Part):
    """Time of one batch, in milliseconds: a mean over batches of different images, each in its fastest round.

    Attributes:
        batch_size: Images in a batch.
        images: Different images that were run.
        before: Of the network as it came.
        after: Of what became of it.
        low: The lower quartile of the ratios after : before that the rounds gave.
        high: The upper quartile.
        kept: Mean MACs of these images, as a fraction of the network's as it came.
    """

    batch_size: Annotated[int, Field(ge=1)]
    images: Annotated[int, Field(ge=1)]
    before: Milliseconds
    after: Milliseconds
    low: float
    high: float
    kept: float

    @property
    def ratio(self) -> float:
        """Time after as a fraction of the time before."""
        return self.after / self.before

    @property
    def steady(self) -> bool:
        """Whether rounds agree with each other and with the ratio: a busy machine says little."""
        return self.high - self.low <= 0.2 * self.ratio and 0.8 * self.low <= self.ratio <= 1.2 * self.high


class Speed(Part):
    """How long both networks take.

    Attributes:
        machine: The processor, or the accelerator, that computed.
        device: The same as PyTorch calls it.
        threads: Threads that PyTorch had; of no importance on an accelerator.
        rounds: How often each network ran each batch, in turns.
        data: Data set that the images are of; `None`: random values, which say nothing of networks that
            decide image by image.
        batches: What was measured, by batch size.
    """

    machine: str
    device: str
    threads: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]
    data: str | None
    batches: Annotated[list[BatchTime], Field(min_length=1)]
