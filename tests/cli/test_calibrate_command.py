from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import RUN, Cli, read_report, snapshot, target

import adaptify
from adaptify.data import open_data
from adaptify.data.identity import fingerprint
from adaptify.models.registry import resolve
from adaptify.training.records import ExitRecords, load_records
from adaptify.training.risk import drop_is_below, halves


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
    assert recipe["calibrate"] == target(max_macs=0.6)
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


def test_notes_are_about_the_choice_of_now(home: Path, cli: Cli) -> None:
    def doubts() -> list[str]:
        return [note for note in read_report(RUN)["notes"] if "held-out samples are" in note]

    assert cli("calibrate", "--max-drop", "1").code == 0
    (first,) = doubts()
    assert first.startswith("1 point of")
    assert cli("calibrate", "--max-drop", "2").code == 0
    (second,) = doubts()
    assert second.startswith("2 points of")
    assert cli("calibrate", "--budget", "0.6").code == 0
    assert doubts() == []


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
        "exits",
        "frontier",
        "calibration",
        "class_effects",
        "classes_per_exit",
        "macs_per_sample",
    ):
        assert again[part] == first[part]
    # The time was measured under the first thresholds; under others it would have been another one.
    assert again["after"] == first["after"] | {"milliseconds": None}
    assert again["speed"] is None


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
        ([], 2, ["nothing to choose the thresholds by", "--max-drop 0.5", "--budget 0.6", "--thresholds"]),
        (["--rule", "quota"], 2, ["nothing to choose the thresholds by"]),
        (["--rule", "quotas", "--max-drop", "1"], 2, ["quotas", "search", "quota"]),
        (["--rule", "quota", "--budget", "0.3"], 5, ["down to 30.0%", "The cheapest point keeps 41.0%"]),
        (["--max-macs", "0.3"], 5, ["down to 30.0%", "The cheapest point keeps 4"]),
        (["--max-drop", "0", "--max-macs", "0.41"], 5, ["down to 41.0%", "The cheapest point keeps 41.0%"]),
        (["--thresholds", "1"], 2, ["1 thresholds for 2 exits"]),
        (["--thresholds", "1,nan"], 2, ["'nan' is no number"]),
        (["--thresholds", "1,2", "--max-drop", "1"], 2, ["leaves nothing to choose"]),
        (["--max-macs", "45"], 2, ["'45' is neither a fraction of the MACs nor", "--budget 45M"]),
        (["--budget", "300K"], 5, ["down to 40.2%", "The cheapest point keeps 41.0%"]),
        (["--confidence", "0.95"], 2, ["--confidence is about a drop", "--max-drop"]),
        (["--max-drop", "1", "--confidence", "1"], 2, ["a confidence of 1 is not between 0 and 1"]),
        (
            ["--max-drop", "0.5", "--confidence", "0.95"],
            5,
            ["0.5 points cannot be promised with 95%", "half of the held-out images, 72;", "656, so 1,312"],
        ),
        (
            ["--max-drop", "10", "--confidence", "0.9", "--budget", "0.41"],
            5,
            ["can be promised for", "and not for 41.0%"],
        ),
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


def test_a_budget_in_macs_is_the_fraction_that_it_is_of_the_network(home: Path, cli: Cli) -> None:
    whole = read_report(RUN)["before"]["macs"]
    said = cli("calibrate", "--budget", "450K")
    assert said.code == 0
    report = read_report(RUN)
    assert report["calibration"]["request"] == {"max_macs": pytest.approx(450_000 / whole)}
    assert report["calibration"]["macs"] <= 450_000
    assert "60.2% of the MACs" in said.out
    assert yaml.safe_load((RUN / "recipe.yaml").read_text())["calibrate"] == target(max_macs=450_000.0)
    assert cli("calibrate", "--max-macs", str(450_000 / whole)).code == 0
    assert read_report(RUN)["exits"] == report["exits"]


def test_thresholds_by_quota_meet_a_budget(home: Path, cli: Cli) -> None:
    searched = cli("calibrate", "--budget", "0.6", "--json").json
    report = cli("calibrate", "--budget", "0.6", "--rule", "quota", "--json").json
    assert report["calibration"]["request"] == {"max_macs": 0.6, "rule": "quota"}
    assert report["calibration"]["macs"] <= 0.6 * report["before"]["macs"]
    assert report["frontier"] != searched["frontier"]
    assert yaml.safe_load((RUN / "recipe.yaml").read_text())["calibrate"]["rule"] == "quota"
    found = cli("evaluate", "--json").json
    assert found["macs"] == report["after"]["macs"]


def test_a_promise_is_tested_on_images_that_thresholds_were_not_chosen_on(home: Path, cli: Cli) -> None:
    said = cli("calibrate", "--max-drop", "10", "--confidence", "0.9")
    assert said.code == 0
    report = read_report(RUN)
    calibration, promise = report["calibration"], report["calibration"]["promise"]
    assert calibration["request"] == {"max_drop": 10.0, "confidence": 0.9}
    assert (calibration["samples"], promise["samples"]) == (72, 72)
    # Counted again, from the records of the exits.
    records = load_records(RUN / "records.safetensors")["holdout"]
    chosen, tested = (records.take(torch.from_numpy(half)) for half in halves(144, seed=0))
    policy = adaptify.load(RUN).policy

    def right(part: ExitRecords) -> torch.Tensor:
        return part.correct.gather(0, part.exit_index(policy)[None])[0]

    assert promise["lost"] == int((tested.correct[-1] & ~right(tested)).sum())
    assert promise["gained"] == int((~tested.correct[-1] & right(tested)).sum())
    assert promise["drop"] == pytest.approx(100 * (promise["lost"] - promise["gained"]) / 72)
    assert calibration["accuracy"] == pytest.approx(float(right(chosen).double().mean()))
    assert drop_is_below(0.1, promise["lost"], promise["gained"], 72, 0.1)
    assert report["after"]["kept"] < 1
    words = "at most 10 points lost on new images, with 90% confidence; tested on 72 other held-out images"
    assert words in " ".join(said.out.split())
    assert words in (RUN / "report.html").read_text()
    assert "promised" in cli("report").out
    again = cli("retrofit", "-r", RUN / "recipe.yaml", "-o", "again", "--json").json
    assert again["calibration"] == calibration


def test_what_was_calibrated_on_is_known_by_its_fingerprint(home: Path, cli: Cli) -> None:
    data = open_data("digits", input=resolve("adaptify:digits_resnet").input, workers=0)
    assert read_report(RUN)["calibration"]["images"] == fingerprint(data.holdout)
    assert cli("calibrate", "--budget", "0.6").code == 0
    assert read_report(RUN)["calibration"]["images"] == fingerprint(data.holdout)


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
    assert read_report(RUN)["examples"] == {"easy": [], "hard": [], "classes": []}


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
