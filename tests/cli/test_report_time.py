from __future__ import annotations

from pathlib import Path

from command_line import RUN, Cli, read_report


def test_a_run_says_who_pays_how_long_it_takes_and_what_it_is_of(home: Path, cli: Cli) -> None:
    report = read_report(RUN)
    speed, effects = report["speed"], report["class_effects"]
    assert [row["batch_size"] for row in speed["batches"]] == [1, 32]
    assert (speed["data"], speed["device"]) == ("digits", "cpu")
    assert report["after"]["milliseconds"] == speed["batches"][0]["after"]
    assert sum(row["samples"] for row in effects) == report["data"]["test"]
    for when in ("before", "after"):
        right = sum(row["samples"] * row[when] for row in effects)
        assert abs(right / report["data"]["test"] - report[when]["accuracy"]) < 1e-9
    assert report["recipe"]["method"] == "dgate"
    assert report["file"]["bytes"] == (RUN / "model.safetensors").stat().st_size


def test_the_time_of_another_choice_is_measured_on_demand(home: Path, cli: Cli) -> None:
    assert cli("calibrate", RUN, "--thresholds", "0.5,never").code == 0
    assert read_report(RUN)["speed"] is None
    said = cli("report", RUN, "--time", "--json")
    assert said.code == 0, said.err
    assert said.json["speed"]["batches"][0]["after"] == said.json["after"]["milliseconds"] > 0
    assert read_report(RUN)["speed"] == said.json["speed"]
    assert "<h2>Time</h2>" in (RUN / "report.html").read_text()
