"""Images that show what the network finds easy and hard."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from adaptify.report.schema.part import Part, Picture


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


class Examples(Part):
    """Images that need little of the network, the clearest first, and images that need most of it."""

    easy: list[Example] = []
    hard: list[Example] = []
