"""Numbers and names as people read them: the one place that decides how a figure is written."""

from __future__ import annotations

import re

# Control characters, line separators, marks that turn the direction of writing, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def printable(text: str) -> str:
    """Return `text` with control characters written out, so that no name can drive a terminal or a page.

    >>> print(printable("cat" + chr(27) + "[2J"))
    cat\\x1b[2J
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def quantity(value: float) -> str:
    """Write a count with a decimal prefix.

    >>> quantity(125_485_696), quantity(4_089_184_256), quantity(640)
    ('125.5 M', '4.09 G', '640')
    """
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            scaled = value / scale
            return f"{scaled:.{1 if abs(scaled) >= 10 else 2}f} {prefix}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def memory(size: float) -> str:
    """Write a number of bytes with a binary prefix.

    >>> memory(1536), memory(2 * 1024**3)
    ('1.5 KiB', '2.0 GiB')
    """
    for scale, prefix in _BINARY:
        if size >= scale:
            return f"{size / scale:.1f} {prefix}"
    return f"{size:.0f} B"


def duration(seconds: float) -> str:
    """Write a length of time.

    >>> duration(0.042), duration(12.34), duration(125), duration(3720)
    ('42 ms', '12.3 s', '2 min 5 s', '1 h 2 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def milliseconds(value: float) -> str:
    """Write a time in milliseconds.

    >>> milliseconds(0.1301), milliseconds(12.34), milliseconds(2150)
    ('0.130 ms', '12.3 ms', '2,150 ms')
    """
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f} ms"


def percent(fraction: float, digits: int = 1) -> str:
    """Write a fraction as a percentage.

    >>> percent(0.573), percent(0.94374, 2)
    ('57.3%', '94.37%')
    """
    return f"{100 * fraction:.{digits}f}%"


def points(fraction: float, digits: int = 2) -> str:
    """Write a difference of two fractions in percentage points, always with its sign.

    >>> points(-0.0042), points(0.001), points(0.0)
    ('-0.42', '+0.10', '0.00')
    """
    value = round(100 * fraction, digits)
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def whole(value: int) -> str:
    """Write an integer with its thousands set apart.

    >>> whole(1281167)
    '1,281,167'
    """
    return f"{value:,}"


def shape(sizes: list[int] | tuple[int, ...]) -> str:
    """Write the shape of a tensor.

    >>> shape((16, 32, 32))
    '16x32x32'
    """
    return "x".join(str(size) for size in sizes)
