"""Drawing small figures as SVG text.

Colours are CSS classes, never values, so that a figure follows the page into dark mode; all text and
attributes are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup, escape

from adaptify.text import printable


class Svg:
    """An SVG picture that is drawn element by element.

    Args:
        width: Width in pixels at which text has its nominal size.
        height: Height in pixels.
        label: What the figure shows, for those who do not see it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._elements: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, cls: str) -> None:
        """Draw a straight line."""
        self._add("line", {"x1": _px(x1), "y1": _px(y1), "x2": _px(x2), "y2": _px(y2), "class": cls})

    def rect(self, x: float, y: float, width: float, height: float, cls: str, title: str = "") -> None:
        """Draw a rectangle; a negative size draws nothing."""
        if width > 0 and height > 0:
            attributes = {"x": _px(x), "y": _px(y), "width": _px(width), "height": _px(height), "class": cls}
            self._add("rect", attributes, title=title)

    def circle(self, x: float, y: float, radius: float, cls: str, title: str = "") -> None:
        """Draw a circle."""
        self._add("circle", {"cx": _px(x), "cy": _px(y), "r": _px(radius), "class": cls}, title=title)

    def polygon(self, corners: Iterable[tuple[float, float]], cls: str, title: str = "") -> None:
        """Draw a closed shape."""
        self._add("polygon", {"points": _corners(corners), "class": cls}, title=title)

    def polyline(self, corners: Iterable[tuple[float, float]], cls: str) -> None:
        """Draw an open line through points."""
        self._add("polyline", {"points": _corners(corners), "class": cls})

    def text(self, x: float, y: float, text: str, cls: str = "", anchor: str = "start") -> None:
        """Write a line of text; `anchor` is start, middle or end."""
        self._add("text", {"x": _px(x), "y": _px(y), "text-anchor": anchor, "class": cls}, body=text)

    def markup(self) -> Markup:
        """Return the picture as markup that can stand in a page."""
        return Markup(
            f'<svg viewBox="0 0 {_px(self.width)} {_px(self.height)}" width="{_px(self.width)}" '
            f'height="{_px(self.height)}" role="img" aria-label="{escape(printable(self.label))}">'
            f"{''.join(self._elements)}</svg>"
        )

    def document(self, style: str) -> str:
        """Return the picture as a file of its own, with a style sheet."""
        drawn = str(self.markup()).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        opening = drawn.index(">") + 1
        styled = f"{drawn[:opening]}<style>{style}</style>{drawn[opening:]}"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{styled}\n'

    def path(self, data: str, cls: str) -> None:
        """Draw along SVG path commands."""
        self._add("path", {"d": data, "class": cls})

    def _add(self, tag: str, attributes: dict[str, str], *, title: str = "", body: str = "") -> None:
        written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items() if value)
        inner = (f"<title>{escape(printable(title))}</title>" if title else "") + f"{escape(printable(body))}"
        self._elements.append(f"<{tag}{written}>{inner}</{tag}>")


def scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """Return the linear map from [low, high] to [start, stop]."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers within [low, high], evenly apart.

    >>> ticks(0, 1), ticks(0.912, 0.944, 5)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.92, 0.93, 0.94])
    """
    if not high > low:
        return [low]
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [round(index * step, 12) for index in range(first, last + 1)]


def apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the positions (ascending), moved as little as needed to be `gap` apart within [low, high]."""
    placed: list[float] = []
    for position in positions:
        placed.append(max(position, placed[-1] + gap if placed else low))
    limit = high
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _px(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _corners(corners: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_px(x)},{_px(y)}" for x, y in corners)
