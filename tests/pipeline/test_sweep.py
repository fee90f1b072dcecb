"""A sweep: its points, what fails, going on, and what nothing else beats."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptify.cli.main import main
from adaptify.errors import TargetError, UsageError
from adaptify.models.registry import resolve as resolve_architecture
from adaptify.pipeline import part_run
from adaptify.pipeline.sweep import Sweep, new_sweep, newest_stopped, run_sweep
from adaptify.pipeline.sweep_file import Point
from adaptify.pipeline.sweep_plan import plan_points
from adaptify.reports.pareto import FrontPoint, pareto_front

QUICK = {
    "importance.train.recalibrate": 0,
    "dgate.train.epochs": 2,
    "dgate.gates.sites": ["layer1"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "digits.pt"
    torch.manual_seed(0)
    torch.save(resolve_architecture("adaptify:digits_resnet").build().state_dict(), path)
    return path


def points_on(checkpoint: Path, methods: list[str], targets: list[float], **more: Any) -> tuple[Point, ...]:
    options = {"model.checkpoint": str(checkpoint), "data.source": "digits"}
    return plan_points(methods, targets, options, {**QUICK, **more})


@pytest.fixture(scope="module")
def done(checkpoint: Path) -> Sweep:
    """Exits, two targets that can be met, and one that cannot; only to be read."""
    points = points_on(checkpoint, ["importance", "dgate"], [0.5, 0.8, 1e-6])
    return run_sweep(new_sweep(points, output=checkpoint.parent / "done"))


def test_pruning_has_a_run_for_each_target_and_exits_have_one(checkpoint: Path) -> None:
    points = points_on(checkpoint, ["importance", "dgate", "gumbel"], [0.4, 0.6])
    assert [(point.name, point.command) for point in points] == [
        ("importance-0.4", "prune"),
        ("importance-0.6", "prune"),
        ("dgate", "retrofit"),
        ("gumbel-0.4", "retrofit"),
        ("gumbel-0.6", "retrofit"),
    ]
    assert [point.recipe.prune.target for point in points[:3]] == [0.4, 0.6, None]
    assert points[2].recipe.train.model_dump()["epochs"] == 2
    assert points[4].recipe.train.model_dump()["target"] == 0.6
    with pytest.raises(UsageError, match="importance prunes to a target"):
        points_on(checkpoint, ["importance"], [])
    with pytest.raises(UsageError, match="unknown method 'dgat'"):
        points_on(checkpoint, ["dgat"], [])


def test_what_fails_is_noted_and_the_others_go_on(done: Sweep) -> None:
    told = {point.name: point.status for point in done.points}
    assert told == {
        "importance-0.5": "done",
        "importance-0.8": "done",
        "importance-1e-06": "failed",
        "dgate": "done",
    }
    assert [name for name, _ in done.reports] == ["importance-0.5", "importance-0.8", "dgate"]
    index = json.loads((done.folder / "sweep.json").read_text(encoding="utf-8"))
    assert (index["format"], index["version"]) == ("adaptify.sweep", 1)
    assert index["points"][2]["error"] == done.points[2].error != ""
    assert index["front"] == [point.to_json() for point in done.front]
    assert "importance-0.8" in (done.folder / "sweep.html").read_text(encoding="utf-8")


def test_nothing_beats_what_is_on_the_front(done: Sweep) -> None:
    macs = [point.macs for point in done.front]
    accuracies = [point.accuracy for point in done.front]
    assert macs == sorted(macs)
    assert all(one < other for one, other in pairwise(accuracies))
    for _, report in done.reports:
        accuracy = report.after.accuracy
        assert accuracy is not None
        assert any(point.macs <= report.after.macs and point.accuracy >= accuracy for point in done.front)
    assert pareto_front([]) == []
    assert isinstance(done.front[0], FrontPoint)


def test_what_is_done_is_not_run_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    work = part_run.prune

    def stopped(recipe: Any, **options: Any) -> Any:
        seen.append(options["output"].name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return work(recipe, **options)

    monkeypatch.setattr(part_run, "prune", stopped)
    folder = new_sweep(points_on(checkpoint, ["importance"], [0.5, 0.7]), output=tmp_path / "sweep")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(folder)
    assert newest_stopped(tmp_path) == folder
    found = run_sweep(folder)
    with pytest.raises(UsageError, match="no unfinished sweep"):
        newest_stopped(tmp_path)
    assert seen == ["importance-0.5", "importance-0.7", "importance-0.7"]
    assert [point.status for point in found.points] == ["done", "done"]
    with pytest.raises(UsageError, match="is there already"):
        new_sweep(found.points, output=folder)


def test_a_sweep_of_which_nothing_succeeds_fails(checkpoint: Path, tmp_path: Path) -> None:
    folder = new_sweep(points_on(checkpoint, ["importance"], [1e-6]), output=tmp_path / "sweep")
    with pytest.raises(TargetError, match="none of 1 runs succeeded\nimportance-1e-06: "):
        run_sweep(folder)
    assert json.loads((folder / "sweep.json").read_text())["points"][0]["status"] == "failed"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"version": 2, "points": []}, "has version 2"),
        ({"version": 1}, "is damaged"),
        ({"version": 1, "points": [{"name": "../x", "command": "prune"}]}, "is damaged"),
    ],
)
def test_a_damaged_sweep_is_told(tmp_path: Path, damage: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match="is no sweep"):
        run_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps(damage))
    with pytest.raises(UsageError, match=told):
        run_sweep(tmp_path)


def test_the_command_goes_on_and_shows_the_front(
    done: Sweep, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--resume", str(done.folder)]) == 0
    shown = capsys.readouterr()
    assert "What nothing else beats" in shown.out
    assert "dgate: done before" in shown.err
    assert "importance-1e-06 failed: " in shown.err
    words = ["sweep", str(checkpoint), "--data", "digits", "--dry-run", "--json"]
    assert main([*words, "-m", "dgate,importance", "-t", "0.4,0.6", "dgate.gates.pool=4"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in plan] == ["dgate", "importance-0.4", "importance-0.6"]
    assert plan[0]["recipe"]["gates"]["pool"] == 4
    assert main(["sweep", "--resume", str(done.folder), "--data", "digits"]) == 2
    assert main(["sweep", str(checkpoint)]) == 2
    assert "no data to work with" in capsys.readouterr().err
