"""Several processes at once: each run has a folder of its own, and nobody reads what is half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import RUN, Cli, snapshot
from processes import environment, start

from adaptify.errors import UsageError
from adaptify.pipeline import folder

BUSY = "another process is filling"
TAKE = """
import sys, time
from pathlib import Path
from adaptify.errors import UsageError
from adaptify.pipeline import folder
output = Path(sys.argv[1]) if len(sys.argv) > 1 else None
while not Path("go").exists():
    time.sleep(0.001)
try:
    with folder.new_run("net", output=output) as run:
        (run.work / folder.REPORT).write_text("{}")
        time.sleep(0.2)
    print(run.final)
except UsageError as error:
    print("refused:", error.message)
"""


def together(count: int, home: Path, *words: str) -> list[str]:
    """Let processes take a run folder in the same moment; return what each of them says."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, *words],
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=environment(),
        )
        for _ in range(count)
    ]
    time.sleep(1)
    (home / "go").touch()
    return [process.communicate(timeout=120)[0].strip() for process in started]


def test_runs_of_the_same_second_get_different_folders(tmp_path: Path) -> None:
    said = together(8, tmp_path)
    assert sorted(said) == [f"runs/net-{number:03}" for number in range(1, 9)]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"net-{n:03}" for n in range(1, 9)]


def test_one_of_many_gets_the_folder_that_all_want(tmp_path: Path) -> None:
    said = together(8, tmp_path, "mine")
    assert said.count("mine") == 1
    others = [text for text in said if text != "mine"]
    assert all("another process is filling" in text or "is there already" in text for text in others)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["go", "mine"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_commands_at_once(home: Path) -> None:
    started = [start("retrofit", "digits.pt", "--data", "digits", "train.epochs=1", "-q") for _ in range(8)]
    for process in started:
        process.communicate(timeout=1500)
    assert [process.returncode for process in started] == [0] * 8
    runs = sorted(path.name for path in (home / "runs").iterdir())
    assert runs == [f"digits_resnet-dgate-{number:03}" for number in range(1, 10)]
    models = {(home / "runs" / name / "model.safetensors").read_bytes() for name in runs[1:]}
    assert len(models) == 1


def left(home: Path, name: str = ".net-001.part") -> Path:
    """An unfinished run."""
    run = home / "runs" / name
    (run / folder.STATES).mkdir(parents=True)
    (run / folder.UNFINISHED).write_text("{}")
    return run


@pytest.mark.parametrize("name", [".net-001.part", "net-001.unfinished"])
def test_of_two_that_resume_the_same_run_one_is_refused(name: str, tmp_path: Path) -> None:
    run = left(tmp_path, name)
    with folder.new_run("net", resumed=run) as first:
        second = folder.new_run("net", resumed=run)
        with pytest.raises(UsageError, match=BUSY), second:
            pass
        (first.work / folder.REPORT).write_text("{}")
    assert (tmp_path / "runs/net-001" / folder.REPORT).is_file()
    # Who looked before it was finished is told so.
    with pytest.raises(UsageError, match="is there already"), folder.new_run("net", resumed=run):
        pass


def test_the_lock_of_a_dead_process_holds_nobody(tmp_path: Path) -> None:
    run = left(tmp_path)
    script = (
        "import os, signal, sys; from pathlib import Path; from adaptify.pipeline import folder\n"
        "with folder.new_run('net', resumed=Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(run)], env=environment())
    assert killed.returncode == -9
    assert folder.is_left(run)
    with folder.new_run("net", resumed=run) as again:
        (again.work / folder.REPORT).write_text("{}")
    assert again.final.is_dir()


def test_what_is_being_written_is_no_run_yet(home: Path, cli: Cli) -> None:
    work = home / "runs/.digits_resnet-dgate-002.part"
    shutil.copytree(home / RUN, work)
    (work / folder.UNFINISHED).write_text("{}")
    (work / folder.REPORT).write_text('{"half": ')
    said = cli("report", "-q")
    assert said.code == 0
    assert cli("evaluate", "--json").json["target"] == str(RUN)
    commands = [("report",), ("evaluate",), ("calibrate", "--max-drop", "1"), ("export", "--format", "onnx")]
    for command in commands:
        refused = cli(*command, work)
        assert refused.code == 2, refused.err
        assert "is an unfinished run" in refused.err
        assert "--resume" in refused.err


def test_a_report_beside_calibrations_is_of_one_time(home: Path, cli: Cli) -> None:
    run = home / RUN
    versions = {drop: shutil.copytree(run, home / f"run-{drop}") for drop in ("1", "20")}
    for drop, path in versions.items():
        assert cli("calibrate", path, "--max-drop", drop, "-q").code == 0
    reports = {(path / "report.json").read_bytes() for path in versions.values()}
    assert len(reports) == 2
    stop = threading.Event()
    read: list[bytes] = []

    def reader() -> None:
        while not stop.is_set():
            read.append((run / "report.json").read_bytes())

    thread = threading.Thread(target=reader)
    thread.start()
    for path in [*versions.values()] * 20:
        with folder.changed_run(run) as work:
            for name in ("model.safetensors", "report.json", "recipe.yaml"):
                shutil.copy(path / name, work / name)
    stop.set()
    thread.join()
    # Whole at every moment, whatever moment it was.
    assert all(json.loads(text) for text in {*read})
    assert {*read} <= reports | {next(iter(read))}
    assert not (run / ".changed").exists()


def test_two_cannot_change_a_run_at_once(home: Path) -> None:
    before = snapshot(home / RUN)
    first = folder.changed_run(home / RUN)
    with first, pytest.raises(UsageError, match=BUSY), folder.changed_run(home / RUN):
        pass
    assert snapshot(home / RUN) == before
