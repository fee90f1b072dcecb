"""Images that show what the network finds easy and hard."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from typing import Annotated

from pydantic import Field

from adaptify.reports.schema.part import Part, Picture


class Example(Part):
    """One image of the test samples.

    Attributes:
        image: A PNG data URI.
        label: Name of its class.
        predicted: Name of the class that was predicted.
        exit: Where it left; empty in a network without exits.
        score: How sure that exit was.
        kept: Its MACs as a fraction of the whole network's, where gates decide for each sample.
    """

    image: Picture
    label: str
    predicted: str
    exit: str = ""
    score: float | None = None
    kept: float | None = None


class ClassExamples(Part):
    """Images of one class that left at the first exit where any sample left, and at the last.

    Attributes:
        name: Name of the class.
        first: Images that left at the first one, the surest first.
        last: Images that left at the last one, the most doubtful first.
    """

    name: str
    first: Annotated[list[Example], Field(min_length=1)]
    last: Annotated[list[Example], Field(min_length=1)]


class Examples(Part):
    """Images that need little of the network, the clearest first, and images that need most of it.

    Attributes:
        easy: Of all classes, those that need little.
        hard: Of all classes, those that need most.
        classes: Of a few classes, both side by side; only where samples leave at exits.
    """

    easy: list[Example] = []
    hard: list[Example] = []
    classes: list[ClassExamples] = []
