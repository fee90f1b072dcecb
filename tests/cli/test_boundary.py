from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from adaptify.cli import boundary
from adaptify.errors import AdaptifyError, ModelError, RecipeError, TargetError, UsageError


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("kind", "code"),
    [(AdaptifyError, 1), (UsageError, 2), (RecipeError, 3), (ModelError, 4), (TargetError, 5)],
)
def test_each_kind_of_error_has_its_exit_code_and_two_lines(
    kind: type[AdaptifyError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boundary.run(raising(kind("layer9 is no site", "Use layer1."))) == code
    shown = capsys.readouterr()
    assert shown.err == "error: layer9 is no site\n  Use layer1.\n"
    assert shown.out == ""


def test_names_in_errors_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    boundary.run(raising(ModelError("cannot read a\x1b[2J.pth", "see\nbelow\x07")))
    text = capsys.readouterr().err
    assert text == "error: cannot read a\\x1b[2J.pth\n  see\n  below\\x07\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), ["out of memory", "--batch-size"]),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ["2 GiB", "--batch-size"]),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ["out of memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), ["no space left", "runs/a", "--output"]),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            ["not allowed", "/root/x", "permissions"],
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.pth"), ["x.pth: No such file"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"x.pth"), [" x.pth: No such file"]),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), ["'onnx'", "pip install onnx"]),
        (KeyError("layer1"), ["KeyError: 'layer1'", "-vv", "adaptify env"]),
        (ValueError("one\ntwo"), ["ValueError: one (unexpected)"]),
    ],
)
def test_other_errors_are_explained(
    error: Exception, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert boundary.run(raising(error)) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 2
    assert "Traceback" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("error", [KeyError("x"), UsageError("x", "y")])
def test_with_traceback_it_comes_before_the_lines(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    boundary.run(raising(error), traceback=True)
    text = capsys.readouterr().err
    assert text.startswith("Traceback")
    assert text.index("in work") < text.index("error: ")


def in_a_thread() -> None:
    thread = threading.Thread(target=raising(OSError(errno.ENOSPC, "No space left on device", "runs/a")))
    thread.start()
    thread.join()


def test_what_fails_in_a_thread_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.excepthook
    assert boundary.run(in_a_thread) == 0
    text = capsys.readouterr().err
    assert text == "in a thread: no space left on the disk (runs/a: No space left on device)\n"
    assert threading.excepthook is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_with_traceback_that_of_a_thread_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    before, threading.excepthook = threading.excepthook, seen.append
    try:
        boundary.run(in_a_thread, traceback=True)
    finally:
        threading.excepthook = before
    assert len(seen) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["env", "-vv"], True),
        (["env", "-v", "-v"], True),
        (["env", "--verbose", "-v"], True),
        (["env", "-v"], False),
        (["env"], False),
        (["env", "--", "-vv"], False),
        (["-o", "vv"], False),
    ],
)
def test_traceback_is_wanted_by_vv(arguments: list[str], wanted: bool) -> None:
    assert boundary.wants_traceback(arguments) is wanted


def test_the_result_of_the_work_is_the_exit_code() -> None:
    assert boundary.run(lambda: None) == 0
    assert boundary.run(lambda: 5) == 5


def test_an_interrupt_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert boundary.run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


WAITING = """
import sys, time, typer
from adaptify.cli import main
@main.app.command("wait")
def wait() -> None:
    print("ready", flush=True)
    time.sleep(30)
sys.exit(main.main(["wait"]))
"""


def test_ctrl_c_ends_a_command_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told.strip() == "interrupted"


def test_being_terminated_cleans_up() -> None:
    # "ready" is said inside the block that cleans up: the signal may come right after it.
    script = WAITING.replace(
        '    print("ready", flush=True)\n    time.sleep(30)',
        "    try: print('ready', flush=True); time.sleep(30)\n    finally: print('cleaned')",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    shown, told = process.communicate(timeout=20)
    assert (shown, told) == ("cleaned\n", "")
    assert process.returncode == 143


def test_a_closed_pipe_is_no_error() -> None:
    script = (
        "import sys, typer\nfrom adaptify.cli import main\n"
        "@main.app.command('much')\ndef much() -> None:\n    print('x\\n' * 1_000_000)\n"
        "sys.exit(main.main(['much']))"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    os.close(reader)
    _, told = process.communicate(timeout=20)
    assert told == ""
    assert process.returncode == 1
