"""Terminals that close, pipes that nobody reads, losses that are no numbers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import RUN, Cli, snapshot
from processes import start

from adaptify.cli.progress import LineProgress

WORDS = ("retrofit", "digits.pt", "--data", "digits", "--method", "gumbel")
STATE = "out/.run.part/states/network/epoch-000001.safetensors"


def after_an_epoch(home: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not (home / STATE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_a_terminal_that_closes(home: Path) -> None:
    process = start(*WORDS, "train.epochs=100000", "-o", "out/run")
    after_an_epoch(home, process)
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGHUP
    assert out == ""
    assert "adaptify retrofit --resume out/run.unfinished\n" in err
    assert [path.name for path in (home / "out").iterdir()] == ["run.unfinished"]


@pytest.mark.slow
def test_nohup_is_heeded_and_nobody_has_to_listen(home: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(*WORDS, "train.epochs=2", "-o", "out/run", preexec_fn=ignore)
    assert process.stderr is not None
    process.stderr.close()
    after_an_epoch(home, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=300) == 0
    assert (home / "out/run/report.json").is_file()


def test_a_reader_that_goes(home: Path) -> None:
    process = start("report", str(RUN), "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_progress_that_nobody_reads_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    progress = LineProgress(every=0.0)
    done = 0
    with progress.stage("work", 2) as stage:
        for _ in range(2):
            stage.advance()
            done += 1
    assert done == 2


def test_a_loss_that_is_no_number(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli(*WORDS, "train.epochs=2", "train.lr=1e30", "train.gate_lr=1e30", "-q")
    assert said.code == 1
    assert said.err.startswith("error: training diverged: ")
    assert "at step " in said.err
    assert "Lower train.lr, or set train.clip=1" in said.err
    assert "There is no good checkpoint yet." in said.err
    assert snapshot(home) == before


def test_weights_from_before_the_loss_was_no_number_are_kept(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptify.training.gate_loss import GateObjective

    loss = GateObjective.__call__

    def breaks(self: GateObjective, model: object, images: object, labels: object, moment: object) -> object:
        found = loss(self, model, images, labels, moment)  # type: ignore[arg-type]
        if moment.epoch == 1:  # type: ignore[attr-defined]
            found.total.data.fill_(float("nan"))
        return found

    monkeypatch.setattr(GateObjective, "__call__", breaks)
    said = cli(*WORDS, "train.epochs=2", "-q")
    assert said.code == 1
    assert "training diverged: the loss is nan at step " in said.err
    good = Path("runs/digits_resnet-gumbel-001.unfinished/checkpoints/last.safetensors")
    assert f"The last good checkpoint is {good}." in said.err
    assert good.is_file()
    assert "--resume" not in said.err  # it would diverge again
