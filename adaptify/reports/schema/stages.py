"""Stages: what each part of a recipe with several of them did."""

from __future__ import annotations

from adaptify.reports.schema.network import After, Before
from adaptify.reports.schema.part import Part


class Stage(Part):
    """One stage of a recipe.

    Attributes:
        command: What it did: `prune`, `retrofit` or `calibrate`.
        method: The method, where it had one.
        folder: Its run folder, seen from the folder of all stages.
        before: The network that it was given, on the test images.
        after: The network that it made; `kept` is the part of the MACs that it was given.
    """

    command: str
    method: str = ""
    folder: str
    before: Before
    after: After

    @property
    def name(self) -> str:
        """What it is called: the command and its method."""
        return f"{self.command} ({self.method})" if self.method else self.command
