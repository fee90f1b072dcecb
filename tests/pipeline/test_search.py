"""A search: what is proposed, what a trial is judged by, and going on as if it had never stopped."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptify import load
from adaptify.cli.main import main
from adaptify.data import open_data
from adaptify.errors import TargetError, UsageError
from adaptify.models.registry import resolve as resolve_architecture
from adaptify.pipeline import folder, part_run, sweep
from adaptify.pipeline.search import Trial, propose
from adaptify.pipeline.search_space import Space, parse_space
from adaptify.pipeline.sweep import new_sweep, newest_stopped, run_sweep
from adaptify.pipeline.sweep_file import read_index
from adaptify.pipeline.sweep_plan import plan_search
from adaptify.recipe import Recipe, recipe_type
from adaptify.reports.held_out import held_out
from adaptify.reports.schema import read_report, write_report

WORDS = ["train.lr=1e-2..1e1:log", "gates.pool=1,2,4"]
FIXED = {"train.epochs": 2, "gates.sites": ["layer1"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network; and a search of three trials, as a user types it."""
    path = tmp_path_factory.mktemp("search")
    torch.manual_seed(0)
    torch.save(resolve_architecture("adaptify:digits_resnet").build().state_dict(), path / "digits.pt")
    words = ["sweep", str(path / "digits.pt"), "--data", "digits", "--trials", "3", "-o", str(path / "done")]
    spaces = [part for word in WORDS for part in ("--search", word)]
    assert main([*words, *spaces, "train.epochs=2", "gates.sites=[layer1]", "-q"]) == 0
    return path


@pytest.fixture
def cheap(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what puts in the place of runs something that takes no time, and can stop or fail at some."""
    template = read_report(home / "done" / "dgate-001" / folder.REPORT)

    def use(stop: str = "", fail: str = "") -> None:
        def run(command: str, recipe: Recipe, target: Path, progress: Any) -> None:
            if target.name == stop:
                raise KeyboardInterrupt
            if target.name == fail:
                raise TargetError("it is out of reach", "Ask for less.")
            lr = float(recipe.train.model_dump()["lr"])
            pool = int(recipe.gates.model_dump()["pool"])
            assert template.calibration is not None
            seen = {"macs": 1000.0 * pool, "accuracy": 1 / (1 + abs(lr - 1)) * pool / 4}
            target.mkdir()
            calibration = template.calibration.model_copy(update=seen)
            write_report(template.model_copy(update={"calibration": calibration}), target / folder.REPORT)

        monkeypatch.setattr(sweep, "run_part", run)

    return use


def begin(home: Path, output: Path, trials: int = 14, **more: Any) -> Path:
    options = {"model.checkpoint": str(home / "digits.pt"), "data.source": "digits", **more}
    search, common = plan_search("dgate", None, WORDS, trials, options, FIXED)
    return new_sweep([common], search, output=output)


def settings_of(path: Path) -> list[dict[str, Any]]:
    return [dict(point.settings) for point in read_index(path)[0]]


def space_of(*words: str) -> Space:
    return parse_space(words, recipe_type("dgate"))


def test_a_proposal_depends_on_the_trials_and_the_seed_alone() -> None:
    space = space_of(*WORDS, "train.epochs=1..30")
    trials: list[Trial] = []
    for number in range(14):
        settings = propose(space, trials, seed=5)
        assert settings is not None
        assert all(space[key].holds(value) for key, value in settings.items())
        assert settings == propose(space, trials, seed=5) != propose(space, trials, seed=6)
        held_out = None if number == 3 else (float(number % 5), number / 20)
        trials.append(Trial(settings, held_out))
    assert len({json.dumps(trial.settings) for trial in trials}) == 14


def test_the_sampler_learns_from_held_out_figures() -> None:
    space = space_of("train.lr=1e-3..1e1:log")
    trials: list[Trial] = []
    away: list[float] = []  # from 0.1, in orders of magnitude
    while len(trials) < 40:
        settings = propose(space, trials, seed=0)
        assert settings is not None
        away.append(abs(math.log10(settings["train.lr"]) + 1))
        trials.append(Trial(settings, (1 + away[-1], 1 / (1 + away[-1]))))
    assert statistics.median(away[10:]) < 0.7  # drawn at random, it would be 1


def test_nothing_is_tried_twice() -> None:
    space = space_of("gates.pool=1,2,4")
    trials: list[Trial] = []
    while (settings := propose(space, trials, seed=0)) is not None:
        trials.append(Trial(settings, (1.0, 0.5)))
    assert sorted(trial.settings["gates.pool"] for trial in trials) == [1, 2, 4]


def test_a_search_that_was_stopped_proposes_what_it_would_have(
    home: Path, tmp_path: Path, cheap: Callable[..., None]
) -> None:
    cheap()
    whole = run_sweep(begin(home, tmp_path / "whole"))
    path = begin(home, tmp_path / "stopped")
    for name in ("dgate-002", "dgate-012"):
        cheap(stop=name)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(path)
        assert newest_stopped(tmp_path) == path
        assert read_index(path)[0][-1].name == name
    cheap()
    # Killed after a run, and before what came of it was noted.
    shutil.copytree(tmp_path / "whole" / "dgate-012", path / "dgate-012")
    gone_on = run_sweep(path)
    assert len(whole.points) == len(gone_on.points) == 14
    assert gone_on.points == whole.points
    assert gone_on.front == whole.front
    with pytest.raises(UsageError, match="no unfinished sweep"):
        newest_stopped(tmp_path)
    other = run_sweep(begin(home, tmp_path / "other", 3, **{"run.seed": 1}))
    assert settings_of(other.folder) != settings_of(path)[:3]


def test_a_trial_that_fails_is_noted_and_the_others_go_on(
    home: Path, tmp_path: Path, cheap: Callable[..., None]
) -> None:
    cheap(fail="dgate-002")
    found = run_sweep(begin(home, tmp_path / "search", 4))
    assert [point.status for point in found.points] == ["done", "failed", "done", "done"]
    assert found.points[1].error == "it is out of reach Ask for less."
    assert found.points[1].held_out is None
    assert [name for name, _ in found.reports] == ["dgate-001", "dgate-003", "dgate-004"]
    cheap()
    again = run_sweep(found.folder)
    assert [point.status for point in again.points] == ["done"] * 4
    assert settings_of(found.folder) == [dict(point.settings) for point in found.points]


def test_a_trial_whose_settings_do_not_go_together_fails(
    home: Path, tmp_path: Path, cheap: Callable[..., None]
) -> None:
    cheap()
    options = {"model.checkpoint": str(home / "digits.pt"), "data.source": "digits"}
    words = ["calibrate.max_drop=null,1", "calibrate.confidence=null,0.9", "gates.pool=1,2"]
    search, common = plan_search("dgate", None, words[::2], 4, options)
    path = new_sweep([common], search, output=tmp_path / "search")
    index = json.loads((path / "sweep.json").read_text())
    index["search"]["space"] = words
    index["points"][0]["settings"] = {
        "calibrate.max_drop": None,
        "calibrate.confidence": 0.9,
        "gates.pool": 1,
    }
    index["search"]["trials"] = 2
    (path / "sweep.json").write_text(json.dumps(index))
    found = run_sweep(path)
    assert [point.status for point in found.points] == ["failed", "done"]
    assert "confidence is about max_drop" in found.points[0].error


def test_a_run_that_says_nothing_of_held_out_images_is_no_trial(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = read_report(home / "done" / "dgate-001" / folder.REPORT)

    def run(command: str, recipe: Recipe, target: Path, progress: Any) -> None:
        target.mkdir()
        write_report(report.model_copy(update={"calibration": None}), target / folder.REPORT)

    monkeypatch.setattr(sweep, "run_part", run)
    with pytest.raises(TargetError, match="dgate-001: its report says nothing of held-out images"):
        run_sweep(begin(home, tmp_path / "search", 1))


@pytest.mark.parametrize(
    "change",
    [
        {"search": None},
        {"search": {"trials": 3, "space": ["train.lr=1e-2..1e1:log"]}},
        {"search": {"trials": 3, "space": [*WORDS[:1], "gates.pool=8,16"]}},
        {"search": {"trials": 3, "space": WORDS}, "points": []},
        {"search": {"trials": "many", "space": WORDS}},
    ],
)
def test_a_damaged_search_is_told(home: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    value = json.loads((home / "done" / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(value | change))
    with pytest.raises(UsageError, match=r"sweep\.json is damaged"):
        run_sweep(tmp_path)


def test_without_optuna_it_is_told_what_to_install(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = begin(home, tmp_path / "search", 2)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match="optuna, which is not installed") as raised:
        run_sweep(path)
    assert raised.value.hint == "Install it: pip install 'adaptify[search]'."
    words = ["sweep", str(home / "digits.pt"), "--data", "digits", "--search", WORDS[0]]
    assert main([*words, "-o", str(tmp_path / "other")]) == 2
    assert "pip install 'adaptify[search]'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*words, "--dry-run"]) == 0  # nothing is proposed
    assert main(["sweep", "--resume", str(home / "done"), "-q"]) == 0  # nothing is left to propose


def test_the_command_shows_what_was_chosen_on_held_out_images(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = home / "done"
    assert main(["sweep", "--resume", str(done)]) == 0
    shown = capsys.readouterr()
    assert "What nothing else beats on held-out samples (figures: test samples)" in shown.out
    assert "dgate-003: done before" in shown.err
    index = json.loads((done / "sweep.json").read_text(encoding="utf-8"))
    assert (index["version"], index["search"]) == (1, {"trials": 3, "space": WORDS})
    assert [point["name"] for point in index["points"]] == ["dgate-001", "dgate-002", "dgate-003"]
    reports = {point["name"]: read_report(done / point["name"] / folder.REPORT) for point in index["points"]}
    for point in index["points"]:
        report = reports[point["name"]]
        assert held_out(report) == (point["held_out"]["macs"], point["held_out"]["accuracy"])
        assert report.recipe["train"]["lr"] == point["settings"]["train.lr"]
        assert report.recipe["gates"]["pool"] == point["settings"]["gates.pool"]
        assert report.recipe["train"]["epochs"] == 2
    page = (done / "sweep.html").read_text(encoding="utf-8")
    assert "no other one beats on held-out images, by which they were chosen" in page
    assert main(["sweep", "--resume", str(done), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [point["held_out"] for point in told["points"]] == [point["held_out"] for point in index["points"]]
    assert [point["settings"] for point in told["points"]] == [point["settings"] for point in index["points"]]
    best = {point["run"] for point in index["front"]}
    assert {run["name"] for run in told["comparison"]["runs"][: len(best)]} == best != set()
    for point in index["front"]:
        assert point["accuracy"] == reports[point["run"]].after.accuracy


def test_a_real_search_that_was_stopped_makes_the_same_networks(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = part_run.retrofit, []

    def stopped(recipe: Recipe, **options: Any) -> Any:
        seen.append(options["output"].name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return work(recipe, **options)

    monkeypatch.setattr(part_run, "retrofit", stopped)
    path = begin(home, tmp_path / "search", 3)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(path)
    found = run_sweep(path)
    assert seen == ["dgate-001", "dgate-002", "dgate-002", "dgate-003"]
    assert found.points == read_index(home / "done")[0]


def test_the_command_takes_one_method_and_shows_the_space(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(home / "digits.pt"), "--data", "digits"]
    searched = [*words, "--search", "train.target=0.4..0.8", "--search", "train.lr=1e-3..1e-1:log"]
    assert main([*searched, "-m", "gumbel", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "20 trials of gumbel: retrofit",
        "train.target: from 0.4 to 0.8",
        "train.lr: from 0.001 to 0.1, on a log scale",
    ]
    assert main([*searched, "-m", "gumbel", "--dry-run", "--trials", "4", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["trials"], plan["command"], plan["recipe"]["method"]) == (4, "retrofit", "gumbel")
    assert main([*searched, "-m", "gumbel,dgate", "--dry-run"]) == 2
    assert "a search is of one method" in capsys.readouterr().err
    assert main([*words, "--search", "train.lr=1..2", "-t", "0.4,0.6"]) == 2
    assert "has one target at most" in capsys.readouterr().err
    assert main([*words, "--trials", "4"]) == 2
    assert "--trials is of a search" in capsys.readouterr().err
    assert main([*words, "--search", "train.lrate=1..2"]) == 3
    assert "train.lrate: unknown key; did you mean 'train.lr'?" in capsys.readouterr().err
    assert main(["sweep", "--resume", str(home / "done"), "--trials", "9"]) == 2


@pytest.mark.parametrize(
    ("method", "words", "fixed"),
    [
        ("gumbel", ["train.lr=1e-3..1e-1:log"], {"train.epochs": 1, "train.target": 0.9}),
        ("lcnet", ["train.lr=1e-3..1e-1:log"], {"train.epochs": 1}),
        ("importance", ["prune.target=0.5..0.8"], {"prune.finetune": 1, "prune.round_to": 4}),
    ],
)
def test_what_has_no_thresholds_is_judged_as_it_was_written(
    home: Path, tmp_path: Path, method: str, words: list[str], fixed: dict[str, Any]
) -> None:
    options = {"model.checkpoint": str(home / "digits.pt"), "data.source": "digits"}
    search, common = plan_search(method, None, words, 1, options, fixed)
    found = run_sweep(new_sweep([common], search, output=tmp_path / "search"))
    model = load(found.folder / f"{method}-001")
    data = open_data("digits", input=resolve_architecture("adaptify:digits_resnet").input)
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in data.holdout.batches(64))
    assert found.points[0].held_out == (
        found.reports[0][1].after.macs,
        pytest.approx(right / len(data.holdout)),
    )
