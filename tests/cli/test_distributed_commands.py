"""Commands in two processes: one run folder, one voice, and the end of all if one fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import RUN, Cli, read_report, snapshot
from launching import free_port, launch
from safetensors.torch import load_file

FAILING = Path(__file__).with_name("failing.py")
MODEL = "model.safetensors"
DIGITS = ("retrofit", "digits.pt", "--data", "digits")
GUMBEL = (*DIGITS, "--method", "gumbel", "train.epochs=3", "train.lr=0.02")
DGATE = (*DIGITS, "train.augment=1", "train.epochs=5", "-o", "out")
NAME = "digits_resnet-gumbel-001"


@pytest.fixture(scope="module")
def together(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes made a run with gates; only to be looked at."""
    home = tmp_path_factory.mktemp("together") / "home"
    shutil.copytree(finished, home)
    main, other = launch("-m", "adaptify", *GUMBEL, "--json", cwd=home)
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    texts = {"main": [main.stdout, main.stderr], "other": [other.stdout, other.stderr]}
    (home / "said.json").write_text(json.dumps(texts))
    return home


def test_one_process_writes_and_speaks(together: Path) -> None:
    said = json.loads((together / "said.json").read_text())
    assert said["other"] == ["", ""]
    out, err = said["main"]
    assert json.loads(out)["run"] == f"runs/{NAME}"
    assert "2 processes share the work\n" in err
    assert sorted(path.name for path in (together / "runs").iterdir()) == [RUN.name, NAME]


def test_the_result_is_that_of_one_process(together: Path, home: Path, cli: Cli) -> None:
    assert cli(*GUMBEL, "-q").code == 0
    name = f"runs/{NAME}"
    tensors = [load_file(place / name / MODEL) for place in (home, together)]
    assert tensors[0].keys() == tensors[1].keys()
    # Sums in another order: a step is equal to six digits (tests/training), and runs drift apart from there.
    alone, shared = (torch.cat([own[key].float().flatten() for key in sorted(own)]) for own in tensors)
    assert float((shared - alone).norm()) < 0.01 * float(alone.norm())
    files = [{path.name for path in (place / name).iterdir()} for place in (home, together)]
    assert files[0] == files[1]
    reports = [read_report(place / name) for place in (home, together)]
    for part in ("before", "data"):
        assert _untimed(reports[0][part]) == _untimed(reports[1][part])
    for figure in ("accuracy", "kept"):
        assert reports[1]["after"][figure] == pytest.approx(reports[0]["after"][figure], abs=0.01)
    losses = [[row["loss"] for row in report["training"]["epochs"]] for report in reports]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
def test_what_is_trained_on_features_is_the_same_to_the_bit(home: Path, cli: Cli) -> None:
    done = launch("-m", "adaptify", *DGATE, "-q", cwd=home)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    shutil.move("out", "shared")
    assert cli(*DGATE, "-q").code == 0
    for file in (MODEL, "records.safetensors"):
        assert Path("shared", file).read_bytes() == Path("out", file).read_bytes()
    alone, shared = read_report(Path("out")), read_report(Path("shared"))
    for part in ("before", "after", "macs_per_sample", "exits", "frontier", "data"):
        assert _untimed(shared[part]) == _untimed(alone[part])


@pytest.mark.slow
def test_stages_are_for_one_process(home: Path) -> None:
    before = snapshot(home)
    words = ("retrofit", "digits.pt", "--recipe", "stages/digits_resnet_digits", "-q")
    main, other = launch("-m", "adaptify", *words, cwd=home)
    assert (main.returncode, other.returncode) == (2, 2)
    assert main.stderr.startswith("error: several processes cannot share a recipe of several stages\n")
    assert other.stderr == ""
    assert snapshot(home) == before


@pytest.mark.slow
def test_a_mistake_is_told_once(home: Path) -> None:
    before = snapshot(home)
    main, other = launch("-m", "adaptify", *GUMBEL, "train.batch_size=63", "-q", cwd=home)
    assert (main.returncode, other.returncode) == (2, 2)
    assert main.stderr.startswith("error: train.batch_size=63 cannot be shared by 2 processes\n")
    assert other.stderr == ""
    assert snapshot(home) == before


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("refuse", "process 1 of 2: no more\n  Stop here."),
        pytest.param("break", "ValueError: broken (unexpected)", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_fails_ends_the_other(how: str, told: str, home: Path) -> None:
    started = time.monotonic()
    main, other = launch(FAILING, 1, how, *GUMBEL, "-q", cwd=home)
    assert (main.returncode, other.returncode) == (1, 1)
    assert other.stderr.startswith(f"error: {told}")
    assert re.match("error: process 1 of 2 failed: .*(no more|broken)\n", main.stderr)
    assert time.monotonic() - started < 500
    assert [path.name for path in (home / "runs").iterdir()] == [RUN.name]


@pytest.mark.slow
def test_a_run_goes_on_when_a_process_was_killed(together: Path, home: Path) -> None:
    main, other = launch(FAILING, 1, "kill", *GUMBEL, "-q", cwd=home)
    assert (main.returncode, other.returncode) == (1, -signal.SIGKILL)
    assert "another process of this run is gone" in main.stderr
    left = home / f"runs/{NAME}.unfinished"
    assert [path.name for path in (left / "states/network").iterdir()] == ["epoch-000001.safetensors"]
    done = launch("-m", "adaptify", "retrofit", "--resume", cwd=home)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    assert "1 of 3 epochs are done" in done[0].stderr
    assert done[1].stderr == ""
    name = f"runs/{NAME}/{MODEL}"
    assert (home / name).read_bytes() == (together / name).read_bytes()


@pytest.mark.slow
def test_other_commands_are_run_by_one_process(home: Path) -> None:
    main, other = launch("-m", "adaptify", "recipes", "ls", cwd=home)
    assert (main.returncode, other.returncode, other.stdout) == (0, 0, "")
    assert "dgate" in main.stdout


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2", "--master-port"),
    "accelerate": (
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher: str, together: Path, home: Path) -> None:
    """The real ones: what they start ends as it should, and a process that fails ends it all."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *LAUNCHERS[launcher], str(free_port()), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**_without_ranks(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    done = run("-m", "adaptify", *GUMBEL, "-q")
    assert done.returncode == 0, done.stderr
    name = f"runs/{NAME}/{MODEL}"
    assert (home / name).read_bytes() == (together / name).read_bytes()
    evaluated = run("-m", "adaptify", "evaluate", f"runs/{NAME}", "--json")
    assert json.loads(evaluated.stdout)["accuracy"] == read_report(Path(name).parent)["after"]["accuracy"]
    failed = run(FAILING, 1, "refuse", *GUMBEL, "-q")
    assert failed.returncode != 0
    assert "error: process 1 of 2: no more" in failed.stderr


def _without_ranks() -> dict[str, str]:
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in ranks}


def _untimed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _untimed(item) for key, item in value.items() if "seconds" not in key}
