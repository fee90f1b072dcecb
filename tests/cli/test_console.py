from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest
from rich.text import Text

from adaptify.cli.console import Console
from adaptify.cli.main import main
from adaptify.cli.progress import BarProgress, LineProgress
from adaptify.progress import SILENT, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_silent_progress_takes_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with SILENT.stage("work", 3) as stage, SILENT.stage("inner") as inner:
        stage.advance(loss=1.0)
        inner.advance(2)
    SILENT.note("nothing")
    assert capsys.readouterr() == ("", "")


def test_json_is_all_that_stdout_gets(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.show(Text("a table"))
    console.say("told")
    console.data({"accuracy": 0.5, "name": "näme"})
    with console.stage("work", 2) as stage:
        stage.advance(2)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"accuracy": 0.5, "name": "näme"}
    assert "told" in shown.err
    assert "a table" not in shown.out + shown.err


def test_without_json_stdout_gets_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.data({"a": 1})
    console.show(Text("[b]as it is[/b] :smile:"))
    assert capsys.readouterr() == ("[b]as it is[/b] :smile:\n", "")


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({"quiet": True}, ""),
        ({}, "said\nwarning: careful\nnoted\n"),
        ({"verbose": 1}, "said\ndetail\nwarning: careful\nnoted\n"),
    ],
)
def test_what_is_told_depends_on_the_level(
    options: dict[str, int], heard: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(**options)  # type: ignore[arg-type]
    console.say("said")
    console.detail("detail")
    console.warn("careful")
    console.note("noted")
    assert capsys.readouterr() == ("", heard)


def test_a_console_is_a_progress_and_names_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress: Progress = Console()
    with progress.stage("a\x1b[2J", 1) as stage:
        stage.advance()
    progress.note("b\x1b[2J")
    text = capsys.readouterr().err
    assert "\x1b" not in text
    assert "b\\x1b[2J" in text


def test_lines_are_sparse_and_tell_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress(every=3600).stage("train gates", 100) as stage:
        for _ in range(100):
            stage.advance(loss=0.25)
    quiet = capsys.readouterr().err.splitlines()
    assert len(quiet) == 1
    assert quiet[0].startswith("train gates")
    assert quiet[0].endswith("loss 0.25")


def test_lines_tell_how_long_the_rest_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 110.0, 130.0, 130.0, 140.0, 140.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with LineProgress(every=0).stage("train gates", 4) as stage:
        stage.advance(loss=0.5)
        stage.advance(2)
        stage.advance(0, **{"MACs kept": 0.25})
        stage.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        "train gates: 1/4 (25%), 30.0 s left  loss 0.5",
        "train gates: 3/4 (75%), 10.0 s left  loss 0.5",
        "train gates: 3/4 (75%), 10.0 s left  loss 0.5  MACs kept 0.25",
        "train gates: 4/4 (100%)  loss 0.5  MACs kept 0.25",
    ]


def test_lines_without_a_total_count(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress(every=0).stage("read") as stage:
        stage.advance(1200)
    assert capsys.readouterr().err.splitlines()[0] == "read: 1,200"


def test_a_stage_that_fails_says_nothing_of_being_done(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (LineProgress(), BarProgress()):
        with pytest.raises(ValueError, match="broken"), progress.stage("work", 2):
            raise ValueError("broken")
        assert "work" not in capsys.readouterr().err.split("\n")[-1]


def test_bars_are_drawn_on_a_terminal_and_leave_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    progress = BarProgress()
    with progress.stage("outer [b]", 2) as outer:
        outer.advance(loss=0.5)
        progress.note("[b] a note")
        with progress.stage("inner") as inner:
            inner.advance(7)
        outer.advance()
    drawn = terminal.getvalue()
    assert "outer [b]" in drawn
    assert "[b] a note\n" in drawn
    assert drawn.splitlines()[-1].endswith("loss 0.5")
    assert not any(line.startswith("inner ") for line in drawn.splitlines()[-1:])


def test_env_in_json_is_pure_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert shown.err == ""
    assert set(facts) == {"versions", "platform", "cpu", "memory_bytes", "gpus", "allocator", "cache"}
    assert facts["versions"]["torch"]
    assert facts["cpu"]["torch_threads"] >= 1
    assert facts["memory_bytes"] > 1 << 28


def test_env_names_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "jane.doe"))
    for folder, shown in (("jane.doe/.cache/adaptify", "~/.cache/adaptify"), ("elsewhere", "elsewhere")):
        monkeypatch.setenv("ADAPTIFY_CACHE", str(tmp_path / folder))
        assert main(["env", "--json"]) == 0
        text = capsys.readouterr().out
        assert json.loads(text)["cache"].endswith(shown)
        assert "jane" not in text


def test_env_for_people_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text
    assert "allocator" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    import subprocess

    script = "import sys; from adaptify.cli.main import main; sys.exit(main())"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "no space left" in done.stderr
