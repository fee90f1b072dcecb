"""The error boundary: whatever a command raises becomes lines on stderr and an exit code.

A user's mistake never shows a traceback, unless `-vv` asks for it. Exit codes: 0 done, 1 something
outside adaptify or a bug in it, 2 usage, 3 bad recipe, 4 unsupported or unreadable model,
5 target or verification missed, 129, 130 or 143 ended by a signal.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import typer

from adaptify.errors import AdaptifyError, is_out_of_memory
from adaptify.text import printable

INTERRUPTED = 130

# Typer carries its own click or uses the installed one, by version; its BadParameter tells which.
_UsageError, _ClickException = typer.BadParameter.__mro__[1:3]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def run(work: Callable[[], object], *, traceback: bool = False) -> int:
    """Call `work` and return the exit code of the process.

    Args:
        work: Does the job; an integer it returns is the exit code.
        traceback: Whether to print the traceback of what was raised, before its lines.
    """
    try:
        with nullcontext() if traceback else _quiet_threads():
            result = work()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain again when it flushes at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _tell("interrupted", "", INTERRUPTED)
    except Exception as error:
        if traceback:
            import traceback as tracebacks

            tracebacks.print_exception(error)
        return _tell(*explain(error))
    code = result if isinstance(result, int) else 0
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code itself
        _tell("interrupted", "", INTERRUPTED)
    return code


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Tell in a line what a library's own thread failed with; whoever waits for it hears of it as well."""

    def told(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, Exception):  # not one that is told to end
            _print([printable(f"in a thread: {explain(failed.exc_value)[0]}")])

    before, threading.excepthook = threading.excepthook, told
    try:
        yield
    finally:
        threading.excepthook = before


def explain(error: Exception) -> tuple[str, str, int]:
    """Return (message, hint, exit code) for whatever was raised."""
    if isinstance(error, AdaptifyError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, _ClickException):
        return _explain_usage(error)
    if is_out_of_memory(error):
        return (
            f"out of memory: {_first_line(error) or 'the system gave no more'}",
            "Use a smaller --batch-size, or a --device with more memory.",
            1,
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"a process that reads images was killed ({_first_line(error)})",
            "Memory may be short: use fewer --workers.",
            1,
        )
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("adaptify"):
        package = error.name.partition(".")[0]
        return f"the package '{package}' is not installed", f"Install it: pip install {package}", 1
    if isinstance(error, OSError):
        return _explain_os_error(error)
    return (
        f"{type(error).__name__}: {_first_line(error)} (unexpected)",
        "A bug in adaptify: run again with -vv for the traceback, and report it with `adaptify env`.",
        1,
    )


def wants_traceback(arguments: Sequence[str]) -> bool:
    """Return whether the arguments ask for tracebacks (`-vv`, or `--verbose` twice).

    This reads the words themselves, because parsing them may be what failed.
    """
    level = 0
    for word in arguments:
        if word == "--":
            break
        if word == "--verbose":
            level += 1
        elif re.fullmatch(r"-[qv]+", word):
            level += word.count("v")
    return level >= 2


def _explain_usage(error: Exception) -> tuple[str, str, int]:
    message = error.format_message().replace(": Value error, ", ": ")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "adaptify"
    message = message[:1].lower() + message[1:] if not message.startswith("--") else message
    return message.rstrip("."), f"See `{path} --help`.", getattr(error, "exit_code", 2)


def _explain_os_error(error: OSError) -> tuple[str, str, int]:
    reason = error.strerror or _first_line(error) or type(error).__name__
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    what = f"{name}: {reason}" if name else reason
    if error.errno in _DISK_FULL:
        return (
            f"no space left on the disk ({what})",
            "Free some space, or choose another place with --output.",
            1,
        )
    if error.errno in _NOT_ALLOWED:
        return f"not allowed: {what}", "Check the permissions, or choose another place with --output.", 1
    return what, "Check that the file or folder is there and readable; -vv shows where it was used.", 1


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


def _tell(message: str, hint: str, code: int) -> int:
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    red, plain = ("\033[1;31m", "\033[0m") if colour else ("", "")
    head, *more = message.splitlines() or [""]
    lines = [f"{red}error:{plain} {printable(head)}" if code != INTERRUPTED else printable(head)]
    _print([*lines, *(f"  {printable(line)}" for line in (*more, *hint.splitlines()))])
    return code


def _print(lines: Sequence[str]) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed; the exit code still tells
        print("\n".join(lines), file=sys.stderr, flush=True)
