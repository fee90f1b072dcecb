"""Which images a split holds: to say what was calibrated on, and that it was not the test images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from adaptify.data.split import Split
from adaptify.errors import UsageError
from adaptify.text import whole


def fingerprint(split: Split) -> str:
    """SHA-256 over the images of a split and their labels, in their order."""
    return _digest(split, split.identities())


def state(split: Split) -> str | None:
    """SHA-256 that shows whether a split holds what it held before, wherever that is.

    Pixels where they are in memory, else names and sizes of files; and the labels. None where that takes
    reading all images.

    Raises:
        OutsideError: An image is gone.
    """
    contents = split.contents()
    return None if contents is None else _digest(split, contents)


def _digest(split: Split, keys: Iterable[bytes]) -> str:
    found = hashlib.sha256(split.labels.numpy().tobytes())
    for key in keys:
        found.update(key)
    return found.hexdigest()


def check_apart(held: Split, test: Split) -> tuple[str, ...]:
    """Look for held-out images among the test images.

    Returns:
        What the user should know: that there are some.

    Raises:
        UsageError: Most of them are. Then the test says nothing about other images.
    """
    known = set(test.identities())
    shared = sum(key in known for key in held.identities())
    if 2 * shared > len(held):
        raise UsageError(
            f"{whole(shared)} of {whole(len(held))} held-out images are test images",
            "What is chosen on test images says nothing when it is tested on them: give others to test on.",
        )
    return (f"{whole(shared)} of {whole(len(held))} held-out images are test images too",) if shared else ()
