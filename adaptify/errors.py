"""The one error type of adaptify, its kinds, and the exit code of each.

Every mistake a user can make ends in an `AdaptifyError`: one line that says what is wrong
with the offending value, one line (the hint) that says what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdaptifyError(Exception):
    """Something the user can understand and act on.

    Args:
        message: What is wrong and where, naming the offending value.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)  # both, so that an error survives the way out of another process
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}"


class OutsideError(AdaptifyError):
    """Something outside adaptify failed, and may not the next time: the disk, memory, data that vanished."""

    exit_code = 1


class ShortMemoryError(OutsideError):
    """The memory does not suffice; for fewer images at a time it may.

    Args:
        message: As for every error.
        hint: Likewise.
        training: Whether it was a step of training, which keeps gradients, that needed it.
    """

    def __init__(self, message: str, hint: str, *, training: bool = False) -> None:
        super().__init__(message, hint)
        self.training = training


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise the errors of memory that is not there, those of torch too, without importing torch."""
    if isinstance(error, (MemoryError, ShortMemoryError)) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


class UsageError(AdaptifyError):
    """Arguments, options or data that cannot be used as given."""

    exit_code = 2


class RecipeError(AdaptifyError):
    """A recipe or an override that does not fit the schema."""

    exit_code = 3


class ModelError(AdaptifyError):
    """A model or checkpoint that is unreadable or unsupported."""

    exit_code = 4


class TargetError(AdaptifyError):
    """A target that was missed, or a result that failed its verification."""

    exit_code = 5


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest of `choices`, or an empty string."""
    nearest = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
