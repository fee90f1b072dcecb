"""Full disks, Ctrl-C and the like leave nothing half-written behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import RUN, Cli, snapshot
from processes import start

from adaptify.cli.main import app


@pytest.mark.parametrize("file", ["model.safetensors", "records.safetensors", "report.json", "report.html"])
def test_a_full_disk_leaves_no_run(file: str, home: Path, cli: Cli, monkeypatch: Any) -> None:
    before = snapshot(home)
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr("adaptify.files.os.replace", full)
    said = cli("retrofit", "digits.pt", "--data", "digits", "train.epochs=1")
    assert said.code == 1
    assert said.out == ""
    assert f"/{file}: No space left on device" in said.err
    assert "Free some space or choose another place with --output." in said.err
    assert snapshot(home) == before
    assert [path.name for path in (home / "runs").iterdir()] == [RUN.name]


@pytest.mark.slow
def test_a_limit_on_file_size_is_no_bug(home: Path) -> None:
    before = snapshot(home)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start("retrofit", "digits.pt", "--data", "digits", "train.epochs=1", preexec_fn=limit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "model.safetensors: " in err
    assert "File too large" in err
    assert "unexpected" not in err
    assert out == ""
    assert snapshot(home) == before


def test_a_place_that_cannot_be_written_is_told_before_the_work(home: Path, cli: Cli) -> None:
    (home / "file").write_text("not a folder")
    said = cli("retrofit", "digits.pt", "--data", "digits", "-o", "file/run")
    assert said.code == 2
    assert "cannot make a run folder in file" in said.err
    assert "train the gate" not in said.err


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [(signal.SIGINT, 130, "interrupted"), pytest.param(signal.SIGTERM, 143, "", marks=pytest.mark.slow)],
)
def test_stopping_in_the_middle_of_training_leaves_nothing(
    sent: signal.Signals, code: int, told: str, home: Path
) -> None:
    before = snapshot(home)
    process = start("retrofit", "digits.pt", "--data", "digits", "train.epochs=1000000", "-o", "out/run")
    scratch = home / "out/.run.part/scratch"
    deadline = time.monotonic() + 120
    while not scratch.is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1:] == ([told] if told else err.splitlines()[-1:])
    assert "Traceback" not in err
    assert out == ""
    assert snapshot(home) == before
    assert list((home / "out").iterdir()) == []


def test_a_run_is_replaced_only_when_the_new_one_is_complete(home: Path, cli: Cli, monkeypatch: Any) -> None:
    before = snapshot(home)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adaptify.pipeline.run_files.write_html", interrupt)
    words = ["--data", "digits", "-o", str(RUN), "--force", "train.epochs=1"]
    said = cli("retrofit", "digits.pt", *words)
    assert said.code == 130
    assert said.err.splitlines()[-1] == "interrupted"
    assert snapshot(home) == before


def test_the_whole_way_as_a_user_types_it(home: Path) -> None:
    process = start("retrofit", "digits.pt", "--data", "fake:60", "--json", "train.epochs=1")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("{\n")
    assert '"run": "runs/digits_resnet-dgate-002"' in out
    assert "run: runs/digits_resnet-dgate-002" in err


def test_no_help_imports_torch() -> None:
    names = [str(command.name) for command in app.registered_commands]
    shown = [
        "demo",
        "inspect",
        "retrofit",
        "prune",
        "calibrate",
        "evaluate",
        "bench",
        "sweep",
        "report",
        "export",
        "env",
    ]
    assert names[: len(shown)] == shown
    script = (
        "import sys; from adaptify.cli.main import main\n"
        "codes = [main([name, '--help']) for name in sys.argv[1:]]\n"
        "heavy = [name for name in ('torch', 'numpy', 'rich', 'yaml') if name in sys.modules]\n"
        "print(codes, heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert done.stderr.split() == f"{[0] * len(names)} []".split()
    assert max(map(len, done.stdout.splitlines())) <= 80
