"""Pruning: which channels were removed."""

# ruff: noqa: RUF012 (pydantic copies the defaults of fields)
from __future__ import annotations

from adaptify.reports.schema.part import Fraction, Part


class PrunedLayer(Part):
    """One layer: how many channels it writes and what it costs, before and after (0: it is gone)."""

    name: str
    channels_before: int
    channels_after: int
    macs_before: int
    macs_after: int


class Pruning(Part):
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
