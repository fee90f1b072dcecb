"""A recipe of several stages: what each did, and going on between two of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import adaptify
from adaptify.cli.main import main
from adaptify.errors import RecipeError, TargetError, UsageError
from adaptify.models.registry import resolve as resolve_architecture
from adaptify.pipeline import part_run
from adaptify.pipeline.calibrate import calibrate
from adaptify.pipeline.staged import Staged, go_on, newest_stopped, run_stages
from adaptify.recipe_library import find_recipe, list_recipes
from adaptify.reports.html import render_html
from adaptify.reports.schema import read_report
from adaptify.reports.tables.stages import stage_rows
from adaptify.stages import Stages, check_stages, read_stages

NAME = "stages/digits_resnet_digits"
QUICK = {"stage1.prune.finetune": 0, "stage1.train.recalibrate": 0, "stage2.train.epochs": 2}


def quick(folder: Path, **more: Any) -> Stages:
    """The recipe that comes with adaptify, on a network with random weights, without what takes long."""
    checkpoint = folder / "digits.pt"
    torch.manual_seed(0)
    torch.save(resolve_architecture("adaptify:digits_resnet").build().state_dict(), checkpoint)
    options = {"model.checkpoint": str(checkpoint)}
    found = read_stages(find_recipe(NAME), options, {**QUICK, **more})
    assert found is not None
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """A finished run; only to be read."""
    home = tmp_path_factory.mktemp("staged")
    return run_stages(quick(home), output=home / "run")


def test_each_stage_begins_with_what_the_one_before_made(done: Staged) -> None:
    pruned, exits, chosen = done.report.stages
    assert [stage.name for stage in done.report.stages] == [
        "prune (importance)",
        "retrofit (dgate)",
        "calibrate",
    ]
    assert pruned.after.kept == pytest.approx(0.6, abs=0.01)
    assert exits.before.macs == pruned.after.macs
    assert exits.before.accuracy == pytest.approx(pruned.after.accuracy)
    assert chosen.before.accuracy == pytest.approx(exits.after.accuracy)
    assert chosen.after.macs == done.report.after.macs
    # The parts multiply to the whole.
    together = pruned.after.kept * exits.after.kept * chosen.after.kept
    assert together == pytest.approx(done.report.after.macs / pruned.before.macs, rel=1e-6)
    for stage in done.report.stages:
        assert read_report(done.folder / stage.folder / "report.json").after.macs == stage.after.macs


def test_the_folder_is_a_run_folder(done: Staged) -> None:
    assert read_report(done.folder / "report.json") == done.report
    model = adaptify.load(done.folder)
    assert isinstance(model, adaptify.AdaptiveModel)
    assert model.cost.total == done.report.before.macs
    assert adaptify.evaluate(model, "digits").macs == pytest.approx(done.report.after.macs)


def test_the_waterfall_stands_in_the_page(done: Staged) -> None:
    rows = stage_rows(done.report.stages)
    names = ["as it came", "1. prune (importance)", "2. retrofit (dgate)", "3. calibrate", "together"]
    assert [row.name for row in rows] == names
    assert rows[-1].of_all == rows[-2].of_all
    page = render_html(done.report)
    assert "<h2>Stages</h2>" in page
    assert f"After 3 stages, does its work with <b>{rows[-1].of_all} of the compute</b>" in page
    assert all(row.of_all in page for row in rows)


def test_calibrating_the_run_again_keeps_its_stages(done: Staged, tmp_path: Path) -> None:
    run = shutil.copytree(done.folder, tmp_path / "run")
    report = calibrate(run, {"thresholds": [None, None]}).report
    assert [stage.command for stage in report.stages] == ["prune", "retrofit", "calibrate"]
    assert report.stages[:2] == done.report.stages[:2]
    assert report.stages[-1].after.macs == report.before.macs


def test_a_run_that_was_stopped_goes_on_behind_what_is_done(
    done: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    run, stages = tmp_path / "run", quick(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(part_run, "retrofit", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stages(stages, output=run)
    assert sorted(path.name for path in run.iterdir()) == ["stages", "stages.json"]
    assert [path.name for path in (run / "stages").iterdir()] == ["1-prune"]
    monkeypatch.setattr(part_run, "prune", stop)  # it is not to be run again
    found = go_on(run)
    assert [stage.after.macs for stage in found.report.stages] == [
        stage.after.macs for stage in done.report.stages
    ]
    with pytest.raises(UsageError, match="is finished"):
        go_on(run)


def test_what_is_replaced_is_kept_until_all_stages_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    run, stages = tmp_path / "run", quick(tmp_path)
    run.mkdir()
    (run / "report.json").write_text("the old one")
    with monkeypatch.context() as patch:
        patch.setattr(part_run, "prune", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stages(stages, output=run, force=True)
    # Nothing was done: all is as it was.
    assert [path.name for path in run.iterdir()] == ["report.json"]
    assert (run / "report.json").read_text() == "the old one"
    assert not (tmp_path / ".run.old").exists()
    with monkeypatch.context() as patch:
        patch.setattr(part_run, "retrofit", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stages(stages, output=run, force=True)
    assert (tmp_path / ".run.old" / "report.json").read_text() == "the old one"
    assert [path.name for path in (run / "stages").iterdir()] == ["1-prune"]
    assert main(["retrofit", "--resume", str(run), "--max-drop", "1"]) == 2
    assert "max_drop does not go with --resume" in capsys.readouterr().err
    assert main(["retrofit", "--resume", str(run)]) == 0
    assert len(read_report(run / "report.json").stages) == 3
    assert not (tmp_path / ".run.old").exists()


def test_the_newest_that_was_stopped_is_found(tmp_path: Path) -> None:
    def written(name: str, at: int) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        os.utime(path, ns=(at, at))

    assert newest_stopped(tmp_path / "nowhere") is None
    written("a-stages-001/stages.json", 3)
    written("a-stages-001/report.json", 3)  # finished
    assert newest_stopped(tmp_path) is None
    written("a-stages-002/stages.json", 2)
    assert newest_stopped(tmp_path) == tmp_path / "a-stages-002"
    written("b.unfinished/unfinished.json", 1)
    assert newest_stopped(tmp_path) == tmp_path / "a-stages-002"
    written("c.unfinished/unfinished.json", 4)
    assert newest_stopped(tmp_path) is None  # it is that of a single stage


def test_a_stage_that_fails_leaves_the_ones_before(tmp_path: Path) -> None:
    stages = quick(tmp_path, **{"stage2.calibrate.max_macs": 0.001})
    with pytest.raises(TargetError):
        run_stages(stages, output=tmp_path / "run")
    assert (tmp_path / "run" / "stages" / "1-prune" / "report.json").is_file()
    assert not (tmp_path / "run" / "report.json").exists()
    (tmp_path / "run" / "stages.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UsageError, match="version 99"):
        go_on(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"train.epochs": 3}, "train.epochs: of which stage"),
        ({"stage4.train.epochs": 3}, "there is no stage 4"),
        ({"stage2.train.epoch": 3}, r"stage 2 \(retrofit\): train.epoch: unknown key; did you mean"),
        ({"stage2.prune.target": 0.5}, r"stage 2 \(retrofit\): unknown key 'prune'"),
        ({"stage1.command": "shrink"}, "stage 1: unknown command 'shrink'"),
        ({"stage3.calibrate.max_drop": "much"}, r"stage 3 \(calibrate\): calibrate.max_drop"),
        ({"stage1.method": "nothing"}, "unknown method 'nothing'"),
    ],
)
def test_what_is_wrong_is_told_with_its_stage(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises((RecipeError, UsageError), match=told):
        check_stages(find_recipe(NAME), overrides)


def test_the_recipe_is_listed_with_the_methods_of_its_stages() -> None:
    (found,) = (row for row in list_recipes() if row.name == NAME)
    assert (found.method, found.model) == ("importance + dgate + calibrate", "adaptify:digits_resnet")
    assert check_stages(find_recipe("dgate/digits_resnet_digits")) is None


def test_the_command_takes_a_recipe_of_several_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = quick(tmp_path)
    command = ["retrofit", stages.model["checkpoint"], "--recipe", NAME, "--seed", "3", "--json", "--dry-run"]
    assert main([*command, "stage1.prune.target=0.5"]) == 0
    pruning, exits = json.loads(capsys.readouterr().out)
    assert (pruning["method"], pruning["prune"]["target"], pruning["run"]["seed"]) == ("importance", 0.5, 3)
    assert (exits["method"], exits["gates"]["sites"], exits["run"]["seed"]) == (
        "dgate",
        ["layer1", "layer2"],
        3,
    )
    assert main([*command, "--max-drop", "2"]) == 3
    assert "calibrate.max_drop: of which stage" in capsys.readouterr().err
    assert main(["recipes", "validate", NAME]) == 0
    assert main(["prune", stages.model["checkpoint"], "--recipe", NAME]) == 3
    assert "the recipe has several stages" in capsys.readouterr().err


def test_what_stands_beside_stages_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("version: 1\nmethod: dgate\nstages:\n  - command: retrofit\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml:2:1 method stands beside the stages"):
        check_stages(file)
    file.write_text("stages: dgate\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml:1:1 stages is no list"):
        check_stages(file)
