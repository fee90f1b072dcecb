"""Runs that are killed anywhere go on, and end with the same file, bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import Cli, snapshot
from processes import environment, start

from adaptify.cli.main import main

KILLING = Path(__file__).with_name("killing.py")
# Gates with noise, an average of weights, a target that follows the batches, a guide: all that is carried.
GUMBEL = ("--method", "gumbel", "train.epochs=3", "train.ema=0.9", "train.target_schedule.kind=variable")
SGAD = ("--method", "sgad", "train.epochs=2", "train.guide_epochs=1", "train.keep=best")
QUICK = ("digits.pt", "--data", "digits", "-q")
MODEL = "model.safetensors"


def killed(where: str, count: int, *words: str, cwd: Path | None = None) -> str:
    """Run a command that kills itself; return what it said."""
    process = subprocess.run(
        [sys.executable, str(KILLING), where, str(count), *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=environment(),
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    return process.stderr


def whole(cli: Cli, command: str = "retrofit", *words: str) -> bytes:
    """The network of a run that never stopped."""
    assert cli(command, *QUICK, *words, "-o", "whole").code == 0
    return Path("whole", MODEL).read_bytes()


def test_a_run_that_is_killed_three_times_ends_the_same(home: Path, cli: Cli) -> None:
    expected = whole(cli, "retrofit", *GUMBEL)
    killed("state", 1, "retrofit", *QUICK, *GUMBEL)
    part = home / "runs/.digits_resnet-gumbel-001.part"
    assert [path.name for path in (part / "states/network").iterdir()] == ["epoch-000001.safetensors"]
    # Without a name: the newest that is unfinished.
    assert "1 of 3 epochs are done" in killed("epoch", 2, "retrofit", "--resume")
    assert "2 of 3 epochs are done" in killed("publish", 1, "retrofit", "--resume")
    said = cli("retrofit", "--resume", "--json")
    assert said.code == 0
    assert "3 of 3 epochs are done" in said.err
    run = home / "runs/digits_resnet-gumbel-001"
    assert said.json["run"] == "runs/digits_resnet-gumbel-001"
    assert len(said.json["training"]["epochs"]) == 3
    assert (run / MODEL).read_bytes() == expected
    # Nothing is left of having been unfinished.
    assert {path.name for path in run.iterdir()} == {path.name for path in (home / "whole").iterdir()}
    assert not part.exists()
    refused = cli("retrofit", "--resume", run)
    assert (refused.code, refused.err.splitlines()[0]) == (2, f"error: {run} is finished")
    assert cli("retrofit", "--resume").code == 2


@pytest.mark.slow
def test_a_guide_goes_on_too(home: Path, cli: Cli) -> None:
    expected = whole(cli, "retrofit", *SGAD)
    killed("state", 2, "retrofit", *QUICK, *SGAD, "-o", "out/run")
    assert cli("retrofit", "--resume", "out/run", "-q").code == 0
    assert (home / "out/run" / MODEL).read_bytes() == expected


@pytest.mark.slow
def test_pruning_goes_on_between_gates_and_training_on(home: Path, cli: Cli) -> None:
    words = ("-t", "0.6", "--method", "gumbel", "--finetune", "2", "train.epochs=1")
    expected = whole(cli, "prune", *words)
    killed("state", 2, "prune", *QUICK, *words, "-o", "out/run")
    refused = cli("retrofit", "--resume", "out/run")
    assert (refused.code, "adaptify prune --resume out/.run.part" in refused.err) == (2, True)
    assert cli("prune", "--resume", "out/run", "-q").code == 0
    assert (home / "out/run" / MODEL).read_bytes() == expected
    assert (home / "out/run/finetune/metrics.csv").is_file()


@pytest.mark.slow
def test_what_has_no_epochs_starts_again(home: Path, cli: Cli) -> None:
    words = ("train.epochs=2",)
    expected = whole(cli, "retrofit", *words)
    killed("publish", 1, "retrofit", *QUICK, *words, "-o", "out/run")
    assert cli("retrofit", "--resume", "out/run", "-q").code == 0
    assert (home / "out/run" / MODEL).read_bytes() == expected


@pytest.fixture(scope="module")
def after_kill(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unfinished run after one epoch of three; only to be copied."""
    home = tmp_path_factory.mktemp("killed") / "home"
    shutil.copytree(finished, home)
    killed("state", 1, "retrofit", *QUICK, *GUMBEL, "-o", "out/run", cwd=home)
    return home


@pytest.fixture
def left(after_kill: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unfinished run, in a copy of one's own that is the working directory."""
    shutil.copytree(after_kill, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home/out/.run.part"


def test_what_does_not_fit_is_refused_and_harms_nothing(left: Path, cli: Cli) -> None:
    before = snapshot(left)

    def refusal(*words: str) -> tuple[int, str]:
        said = cli("retrofit", "--resume", "out/run", *words)
        assert snapshot(left) == before
        return said.code, said.err

    code, text = refusal("train.epochs=9", "--seed", "3")
    assert code == 3
    assert "train.epochs: 3, now 9\n" in text
    assert "run.seed: 0, now 3\n" in text
    assert refusal("--force")[0] == refusal("-o", "else")[0] == refusal("--dry-run")[0] == 2

    recipe = left / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("ema: 0.9", "ema: 0.5"))
    said = cli("retrofit", "--resume", "out/run")
    assert (said.code, "train.ema: 0.9, now 0.5" in said.err) == (3, True)
    recipe.unlink()
    said = cli("retrofit", "--resume", "out/run")
    assert (said.code, "recipe.yaml is missing" in said.err) == (2, True)
    recipe.write_text(text)
    assert snapshot(left) == before

    noted = left / "unfinished.json"
    original = noted.read_text()
    facts = json.loads(original)
    for change, told in (
        ({"version": 2, "adaptify": "9.9"}, "has version 2; this adaptify reads version 1"),
        ({"source": {**facts["source"], "sha256": "0" * 64}}, "checkpoint.sha256"),
        ({"data": {**facts["data"], "train": 5}}, "train: 5, now "),
        ({"recipe": "?"}, "is damaged"),
    ):
        noted.write_text(json.dumps({**facts, **change}))
        said = cli("retrofit", "--resume", "out/run")
        assert (said.code, told in said.err) == (2, True), said.err
    noted.write_text(original)

    checkpoint = Path("digits.pt")
    checkpoint.rename("elsewhere.pt")
    code, text = refusal()
    assert code != 0
    assert "digits.pt" in text


def test_a_damaged_state_is_told_of_and_another_machine_too(left: Path, cli: Cli) -> None:
    (state,) = (left / "states/network").iterdir()
    state.write_bytes(state.read_bytes()[:-100])
    noted = left / "unfinished.json"
    facts = json.loads(noted.read_text())
    noted.write_text(json.dumps({**facts, "machine": {**facts["machine"], "torch": "1.0"}}))
    said = cli("retrofit", "--resume", "out/run", "train.epochs=3")  # as it is already
    assert said.code == 0
    assert f"{state.name} is damaged" in said.err
    assert re.search(r'began on another machine.*torch: "1\.0", now ', said.err)


def test_a_new_run_of_that_name_keeps_what_was_trained(left: Path, cli: Cli) -> None:
    assert cli("retrofit", *QUICK, "train.epochs=1", "-o", "out/run").code == 0
    kept = left.with_name("run.unfinished")
    assert (kept / "states/network/epoch-000001.safetensors").is_file()
    said = cli("retrofit", "--resume", kept)
    assert (said.code, "out/run is there already" in said.err) == (2, True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize(
    ("sent", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_what_is_stopped_says_how_to_go_on(sent: signal.Signals, code: int, home: Path, cli: Cli) -> None:
    words = ("digits.pt", "--data", "digits", "--method", "gumbel", "train.epochs=100000")
    process = start("retrofit", *words, "-o", "out/run")
    wait_for(home / "out/.run.part/states/network/epoch-000001.safetensors", process)
    # It is not to be had while it is running.
    busy = cli("retrofit", "--resume", "out/run")
    assert (busy.code, "another process is filling out/.run.part" in busy.err) == (2, True)
    process.send_signal(sent)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert "unfinished: out/run.unfinished\n" in err
    assert "adaptify retrofit --resume out/run.unfinished\n" in err
    assert [path.name for path in (home / "out").iterdir()] == ["run.unfinished"]
    names = {path.name for path in (home / "out/run.unfinished").iterdir()}
    assert names == {"checkpoints", "metrics.csv", "recipe.yaml", "states", "unfinished.json"}


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(KILLING), "leave", "0", "retrofit", *QUICK, *GUMBEL, "train.epochs=100000"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    part = home / "runs/.digits_resnet-gumbel-001.part"
    wait_for(part / "states/network/epoch-000001.safetensors", process)
    process.send_signal(signal.SIGINT)
    wait_for(home / "hanging", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (part / "unfinished.json").is_file()  # and so it can go on


def forked(words: tuple[str, ...], output: str) -> int:
    """Start a command in a copy of this process, where all that takes long to import is there already."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with Path(f"{output.replace('/', '-')}.err").open("a") as said:
            sys.stderr = said
            begun = Path(output).with_name(f".{Path(output).name}.part") / "unfinished.json"
            again = ["--resume", output, "-q"] if begun.is_file() else [*QUICK, *words, "-o", output]
            code = main(["retrofit", *again])
    finally:
        os._exit(code)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd does not work in copies of a process then")
def test_fifty_kills_at_random(home: Path, cli: Cli) -> None:
    words = (*GUMBEL, "train.epochs=8")
    started = time.monotonic()
    expected = whole(cli, "retrofit", *words)
    longest = time.monotonic() - started
    chance = random.Random(0)
    kills, runs = 0, 0
    while kills < 50:
        child = forked(words, f"out/{runs}")
        # From so soon that there is no folder yet, to so late that some of them end.
        deadline = time.monotonic() + chance.uniform(0, longest)
        while time.monotonic() < deadline and Path("/proc", str(child), "stat").read_text().split()[2] != "Z":
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)  # nothing happens to one that has ended
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        assert status in (0, signal.SIGKILL), Path(f"out-{runs}.err").read_text()
        # A run that was killed when it had its name already is complete, too.
        if Path("out", str(runs)).is_dir():
            assert Path("out", str(runs), MODEL).read_bytes() == expected
            runs += 1
        else:
            assert status == signal.SIGKILL
    _, status = os.waitpid(forked(words, f"out/{runs}"), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert Path("out", str(runs), MODEL).read_bytes() == expected
    print(f"{kills} kills, {runs + 1} runs that ended with the same network")
