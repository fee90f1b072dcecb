"""A network as a picture: a column of parts, skips beside it, and exits that lead out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from adaptify.reports.plots.axes import shortened
from adaptify.reports.svg import Svg
from adaptify.text import percent, quantity

_BOX, _GAP = 30, 12  # px: height of a part, and between two
_LEFT, _WIDTH = 56, 380  # px: the column of parts
_MARKS = _LEFT + _WIDTH + 44  # px: where marks are told of
_TOTAL = 860
_TOP, _LEGEND = 62, 54
_LINE = 16
_NAME = 21  # characters of a name that fit


@dataclass(frozen=True)
class Mark:
    """Something that is, or could be, decided at a part; `placed` says which of the two."""

    text: str
    placed: bool


@dataclass(frozen=True)
class Part:
    """A part of a network.

    Attributes:
        name: What it is called.
        shape: Shape of what it yields, in words.
        macs: Its MACs for one sample.
        share: The same as a fraction of the network's.
        residual: Whether a shortcut leads around it.
        exits: Exits behind it.
        gates: Gates in it.
    """

    name: str
    shape: str
    macs: int
    share: float
    residual: bool = False
    exits: tuple[Mark, ...] = ()
    gates: tuple[Mark, ...] = ()


def network_picture(title: str, subtitle: str, parts: Sequence[Part]) -> str:
    """Return an SVG file: the parts from top to bottom, as wide bars as they cost.

    It is dark where the reader wants it dark; what comes from a model is escaped.

    Args:
        title: What the network is called.
        subtitle: What it costs.
        parts: Its parts, in the order in which they run.
    """
    heights = [_height(part) for part in parts]
    total = _TOP + sum(heights) + _GAP * max(len(parts) - 1, 0) + _LEGEND
    svg = Svg(_TOTAL, total, f"{title}: {len(parts)} parts")
    svg.text(_LEFT, 28, shortened(title, _TOTAL - 2 * _LEFT), "title")
    svg.text(_LEFT, 47, subtitle, "muted")
    dearest = max((part.share for part in parts), default=0.0) or 1.0
    y = float(_TOP)
    for index, (part, height) in enumerate(zip(parts, heights, strict=True)):
        if index:
            _arrow(svg, y - _GAP, y)
        _part(svg, part, y, height, dearest)
        y += height + _GAP
    _legend(svg, y + 12)
    return svg.document(files("adaptify.reports").joinpath("templates/network.css").read_text("utf-8"))


def _height(part: Part) -> int:
    """Px: more marks than fit beside a box make it higher."""
    return max(_BOX, _LINE * len([*part.exits, *part.gates]) + 4)


def _part(svg: Svg, part: Part, y: float, height: float, dearest: float) -> None:
    svg.rect(_LEFT, y, _WIDTH, height, "box", f"{part.name}: {quantity(part.macs)} MACs")
    svg.rect(_LEFT, y, _WIDTH * part.share / dearest, height, "cost")
    middle = y + height / 2 + 4
    svg.text(_LEFT + 10, middle, _end_of(part.name, _NAME), "name")
    svg.text(_LEFT + 258, middle, part.shape, "muted", "end")
    svg.text(_LEFT + 318, middle, quantity(part.macs), "unit", "end")
    svg.text(_LEFT + _WIDTH - 12, middle, percent(part.share), "", "end")
    gated = any(mark.placed for mark in part.gates)
    if part.residual:
        top, bottom, side = y - 5, y + height + 5, _LEFT - 26
        curve = f"M{_LEFT + 14} {top} C{side} {top} {side} {bottom} {_LEFT + 14} {bottom}"
        svg.path(curve, "skip gated" if gated else "skip")
    line = y + height / 2 - _LINE * (len(part.gates) + len(part.exits) - 1) / 2
    for mark in part.gates:
        placed = " placed" if mark.placed else ""
        x = _LEFT + _WIDTH
        svg.polygon([(x, line - 6), (x + 6, line), (x, line + 6), (x - 6, line)], f"gate{placed}", mark.text)
        svg.text(_MARKS, line + 4, mark.text, "" if mark.placed else "muted")
        line += _LINE
    for mark in part.exits:
        placed = " placed" if mark.placed else ""
        svg.line(_LEFT + _WIDTH, line, _MARKS - 16, line, f"exit{placed}")
        svg.circle(_MARKS - 12, line, 4.5, f"out{placed}", mark.text)
        svg.text(_MARKS, line + 4, mark.text, "" if mark.placed else "muted")
        line += _LINE


def _end_of(name: str, most: int) -> str:
    """As much of a qualified name as fits: its end says where in the network it is."""
    return name if len(name) <= most else f"\u2026{name[1 - most :]}"


def _arrow(svg: Svg, top: float, bottom: float) -> None:
    x = _LEFT + _WIDTH / 2
    svg.line(x, top, x, bottom - 4, "flow")
    svg.polygon([(x - 4, bottom - 5), (x + 4, bottom - 5), (x, bottom)], "tip")


def _legend(svg: Svg, y: float) -> None:
    x = float(_LEFT)
    for shape, placed, told in (
        ("exit", False, "exit that is possible"),
        ("exit", True, "exit"),
        ("gate", False, "gate that is possible"),
        ("gate", True, "gate"),
    ):
        cls = " placed" if placed else ""
        if shape == "exit":
            svg.circle(x + 5, y - 4, 4.5, f"out{cls}")
        else:
            svg.polygon([(x + 5, y - 10), (x + 11, y - 4), (x + 5, y + 2), (x - 1, y - 4)], f"gate{cls}")
        svg.text(x + 17, y, told, "muted")
        x += 34 + 6.4 * len(told)
    svg.rect(x, y - 10, 26, 11, "cost")
    svg.text(x + 33, y, "share of the MACs; curves are shortcuts", "muted")
