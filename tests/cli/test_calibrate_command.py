from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import RUN, Cli, read_report, snapshot

import adaptify


def test_another_target_gives_other_thresholds_without_training(home: Path, cli: Cli) -> None:
    before = read_report(RUN)
    state = adaptify.load(RUN).state_dict()
    records = (RUN / "records.safetensors").read_bytes()
    said = cli("calibrate", "--max-macs", "0.6")
    assert said.code == 0
    assert f"run: {RUN}" in said.err
    after = read_report(RUN)
    assert [row["threshold"] for row in after["exits"]] != [row["threshold"] for row in before["exits"]]
    assert after["calibration"]["request"] == {"max_macs": 0.6}
    assert after["calibration"]["macs"] <= 0.6 * after["before"]["macs"]
    assert after["before"] == before["before"]
    assert after["frontier"] == before["frontier"]
    assert after["after"]["macs"] == pytest.approx(sum(row["share"] * row["macs"] for row in after["exits"]))
    assert "evaluation_s" not in after["timing"]
    model = adaptify.load(RUN)
    assert [row["threshold"] for row in after["exits"][:-1]] == pytest.approx(list(model.policy.thresholds))
    assert all((model.state_dict()[name] == tensor).all() for name, tensor in state.items())
    assert (RUN / "records.safetensors").read_bytes() == records
    recipe = yaml.safe_load((RUN / "recipe.yaml").read_text())
    assert recipe["calibrate"] == {"max_drop": None, "max_macs": 0.6, "thresholds": None}
    assert not list(RUN.glob(".*"))


def test_the_table_compares_before_and_now(home: Path, cli: Cli) -> None:
    before = read_report(RUN)
    said = cli("calibrate", RUN, "--thresholds", "0.5,never")
    now = read_report(RUN)
    rows = {line[:20].strip(): line[20:].split() for line in said.out.splitlines()}
    accuracies = [before["before"]["accuracy"], before["after"]["accuracy"], now["after"]["accuracy"]]
    assert rows["Accuracy"] == [f"{100 * value:.2f}%" for value in accuracies]
    assert rows["kept"] == [f"{100 * report['after']['kept']:.1f}%" for report in (before, now)]
    assert rows["Threshold at layer1"][1] == "0.5"
    assert rows["Threshold at layer2"][1] == "never"
    assert "thresholds given by hand" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_the_figures_are_those_of_running_the_network(home: Path, cli: Cli) -> None:
    report = cli("calibrate", "--max-macs", "0.6", "--json").json
    assert report.pop("run") == str(RUN)
    assert report == read_report(RUN)
    found = cli("evaluate", "--json").json
    assert found["accuracy"] == report["after"]["accuracy"]
    assert found["macs"] == report["after"]["macs"]
    assert [row["samples"] for row in found["exits"]] == [row["samples"] for row in report["exits"]]


def test_there_and_back_again(home: Path, cli: Cli) -> None:
    first = read_report(RUN)
    assert cli("calibrate", "--max-macs", "0.6").code == 0
    assert cli("calibrate", "--max-drop", "1").code == 0
    again = read_report(RUN)
    for part in (
        "before",
        "after",
        "exits",
        "frontier",
        "calibration",
        "classes_per_exit",
        "macs_per_sample",
    ):
        assert again[part] == first[part]


def test_the_recipe_makes_the_calibrated_run(home: Path, cli: Cli) -> None:
    now = cli("calibrate", "--max-macs", "0.6", "--json").json
    again = cli("retrofit", "-r", RUN / "recipe.yaml", "-o", "again", "--json").json
    assert again["exits"] == now["exits"]


def test_a_dry_run_changes_nothing(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("calibrate", "--max-macs", "0.6", "--dry-run")
    assert said.code == 0
    assert "60.0% of the MACs" in said.out
    assert "the run is as it was" in said.err
    assert snapshot(home) == before


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, ["nothing to choose the thresholds by", "--max-drop 0.5", "--max-macs 0.6", "--thresholds"]),
        (["--max-macs", "0.3"], 5, ["down to 30.0%", "The cheapest point keeps 4"]),
        (
            ["--max-drop", "0", "--max-macs", "0.41"],
            5,
            ["drop in accuracy at or below 0 points within 41.0%"],
        ),
        (["--thresholds", "1"], 2, ["1 thresholds for 2 exits"]),
        (["--thresholds", "1,nan"], 2, ["'nan' is no number"]),
        (["--thresholds", "1,2", "--max-drop", "1"], 2, ["leaves nothing to choose"]),
        (["--max-macs", "1.5"], 2, ["--max-macs", "1"]),
        (["runs/digits_resnet-dgate-002", "--max-drop", "1"], 2, ["no run", "digits_resnet-dgate-001"]),
        (["digits.pt", "--max-drop", "1"], 2, ["has no report.json"]),
    ],
)
def test_what_cannot_be_reached_leaves_the_run_as_it_was(
    words: list[str], code: int, told: list[str], home: Path, cli: Cli
) -> None:
    before = snapshot(home)
    said = cli("calibrate", *words)
    assert said.code == code, said.err
    assert said.out == ""
    for text in told:
        assert text in said.err
    assert snapshot(home) == before


def test_a_run_is_found_by_its_name_and_the_newest_by_default(home: Path, cli: Cli) -> None:
    newer = home / "runs/newer"
    shutil.copytree(RUN, newer)
    later = (RUN / "report.json").stat().st_mtime_ns + 10**9
    os.utime(newer / "report.json", ns=(later, later))
    before = snapshot(RUN)
    said = cli("calibrate", "--max-macs", "0.6")
    assert said.err.startswith("run: runs/newer\n")
    assert snapshot(RUN) == before
    assert cli("calibrate", RUN.name, "--max-macs", "0.7").code == 0
    assert read_report(RUN)["calibration"]["request"] == {"max_macs": 0.7}


def test_without_any_run_it_says_how_to_make_one(tmp_path: Path, monkeypatch: Any, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("calibrate", "--max-drop", "1")
    assert said.code == 2
    assert "no finished run in runs/" in said.err
    assert "adaptify retrofit" in said.err


def test_data_that_have_gone_are_not_needed(home: Path, cli: Cli) -> None:
    recipe = (RUN / "recipe.yaml").read_text()
    (RUN / "recipe.yaml").write_text(recipe.replace("source: digits", "source: gone"))
    said = cli("calibrate", "--max-macs", "0.6")
    assert said.code == 0
    assert "the report shows no example images: 'gone' is neither a folder nor" in said.err
    assert read_report(RUN)["examples"] == {"easy": [], "hard": []}


def test_a_full_disk_leaves_the_run_as_it_was(home: Path, cli: Cli, monkeypatch: Any) -> None:
    before = snapshot(home)
    fsync = os.fsync
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr("adaptify.files.os.fsync", full)
    said = cli("calibrate", "--max-macs", "0.6")
    assert said.code == 1
    assert "report.json: No space left on device" in said.err
    assert snapshot(home) == before


def test_a_damaged_run_is_told(home: Path, cli: Cli) -> None:
    records = RUN / "records.safetensors"
    records.write_bytes(records.read_bytes()[:100])
    said = cli("calibrate", "--max-drop", "1")
    assert said.code == 2
    assert f"cannot read the exit records {records}" in said.err
    (RUN / "report.json").write_text("{}")
    said = cli("calibrate", "--max-drop", "1")
    assert said.code == 2
    assert "report.json is no adaptify report" in said.err
