"""The plotting area that figures share: axes, grid, marks and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adaptify.reports.svg import Svg, scale, ticks
from adaptify.text import percent

CHARACTER = 6.2  # px: about the width of a character of the figures' 11 px text
BOTTOM = 44  # px below the plotting area, for the numbers and the name of the x axis
_LEFT, _RIGHT, _TOP = 50, 14, 26

# Choices that lose much more than the one that was made press the interesting part into a corner.
_DEPTH = 8.0  # times what was lost
_LEAST_DEPTH, _MOST_DEPTH = 0.02, 0.20  # of accuracy

Writer = Callable[[Sequence[float]], list[str]]


def shares(values: Sequence[float]) -> list[str]:
    """Write fractions as percentages, with as many digits as they need to be told apart."""
    digits = _digits([100 * value for value in values])
    return [percent(value, digits) for value in values]


def numbers(values: Sequence[float]) -> list[str]:
    """Write numbers with as many digits as they need to be told apart."""
    digits = _digits(values)
    return [f"{value:.{digits}f}" for value in values]


def whole_numbers(values: Sequence[float]) -> list[str]:
    """Write those of the numbers that are whole; the others are nothing."""
    return [f"{value:.0f}" if float(value).is_integer() else "" for value in values]


def no_numbers(values: Sequence[float]) -> list[str]:
    """Write nothing: an axis of things that are named, not counted."""
    return ["" for _ in values]


class Axes:
    """The plotting area of a figure: maps from values to pixels, and the grid.

    Args:
        svg: The figure.
        x: The first and the last value of the x axis.
        y: The lowest and the highest value of the y axis.
        left: Pixels left of the area.
        bottom: Pixels below it.
    """

    def __init__(
        self,
        svg: Svg,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        left: float = _LEFT,
        bottom: float = BOTTOM,
    ) -> None:
        self.svg = svg
        self.left, self.right, self.top, self.bottom = left, svg.width - _RIGHT, _TOP, svg.height - bottom
        (self.low_x, self.high_x), (self.low_y, self.high_y) = x, y
        self.x = scale(self.low_x, self.high_x, self.left, self.right)
        self.y = scale(self.low_y, self.high_y, self.bottom, self.top)

    def grid(self, x_name: str, y_name: str, write_x: Writer = shares, write_y: Writer = shares) -> None:
        """Draw lines, numbers and the names of both axes; a y axis that the title names needs none."""
        values = ticks(self.low_y, self.high_y, 6)
        for value, written in zip(values, write_y(values), strict=True):
            self.svg.line(self.left, self.y(value), self.right, self.y(value), "grid")
            self.svg.text(self.left - 7, self.y(value) + 4, written, "tick", "end")
        self.x_axis(x_name, write_x)
        if y_name:
            self.svg.text(self.left, self.top - 12, y_name, "axis-name")

    def x_axis(self, name: str, write: Writer = shares) -> None:
        """Draw the x axis with its numbers and its name."""
        room = 50 if write is whole_numbers else 70  # px: a percentage is wider than a small number
        values = ticks(self.low_x, self.high_x, max(3, int((self.right - self.left) / room)))
        for value, written in zip(values, write(values), strict=True):
            if written:
                self.svg.line(self.x(value), self.bottom, self.x(value), self.bottom + 4, "axis")
                self.svg.text(self.x(value), self.bottom + 17, written, "tick", "middle")
        self.svg.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.svg.text(self.right, self.svg.height - 6, name, "axis-name", "end")

    def label(self, x: float, y: float, text: str) -> None:
        """Write beside a point (in pixels), on the side where there is room, below the curve."""
        width = len(text) * CHARACTER
        if x + 14 + width <= self.right:
            self.svg.text(x + 12, min(y + 20, self.bottom - 6), text, "label strong")
        else:
            self.svg.text(x - 12, min(y + 24, self.bottom - 6), text, "label strong", "end")


def floor_of_interest(base: float, lowest: float) -> float:
    """Return the accuracy below which points of a curve are not drawn.

    Args:
        base: Accuracy of the network as it came.
        lowest: Lowest accuracy that must be seen.
    """
    return base - min(max(_DEPTH * (base - lowest), _LEAST_DEPTH), _MOST_DEPTH)


def square(svg: Svg, x: float, y: float, cls: str, title: str) -> None:
    """Draw a small square around a point."""
    svg.polygon([(x - 4, y - 4), (x + 4, y - 4), (x + 4, y + 4), (x - 4, y + 4)], cls, title)


def diamond(svg: Svg, x: float, y: float, cls: str, title: str) -> None:
    """Draw a diamond around a point."""
    svg.polygon([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], cls, title)


def shortened(name: str, room: float) -> str:
    """Return as much of a name as fits into `room` pixels, or nothing where that says nothing."""
    most = int(room / CHARACTER + 1e-6)  # a room that was made for the name holds it
    if len(name) <= most:
        return name
    return f"{name[: most - 1]}\u2026" if most >= 5 else ""


def _digits(values: Sequence[float]) -> int:
    for digits in (0, 1, 2, 3):
        if all(abs(round(value, digits) - value) < 1e-6 for value in values):
            return digits
    return 4
