"""`adaptify report A B`, and what reports of trained exits hold: real runs on digits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import RUN, Cli, read_report

from adaptify.cli.main import main

QUICK = ("train.epochs=2", "train.lr=0.1", "-q")


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of boosted exits, one of the plain sum of their losses, and one of d-gates."""
    home = tmp_path_factory.mktemp("trained")
    words = ["retrofit", "adaptify:digits_msdnet", "--data", "digits", "--method", "boostnet", *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main([*words, "-o", "boosted"]) == 0
        assert main([*words, "-o", "plain", "gates.ensemble=none"]) == 0
    shutil.copytree(finished / RUN, home / "dgate")
    return home


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = set(trained.iterdir())
    monkeypatch.chdir(trained)
    yield trained
    for path in set(trained.iterdir()) - before:
        path.unlink()


@pytest.mark.parametrize("run", ["boosted", "plain", "dgate"])
def test_a_report_holds_every_point_of_the_frontier_on_test_samples(trained: Path, run: str) -> None:
    report = read_report(trained / run)
    assert len(report["budgeted"]) == len(report["frontier"]) > 0
    thresholds = [exit_["threshold"] for exit_ in report["exits"][:-1]]
    at = next(i for i, point in enumerate(report["frontier"]) if point["thresholds"] == thresholds)
    # What is replayed from the records is what was measured by running the file; a sample may tip over.
    assert report["budgeted"][at]["accuracy"] == pytest.approx(report["after"]["accuracy"], abs=0.003)
    assert report["budgeted"][at]["macs"] == pytest.approx(report["after"]["macs"], rel=0.003)
    assert [item["accuracy"] for item in report["anytime"]] == [
        item["accuracy_all"] for item in report["exits"]
    ]
    assert all(
        point["macs"] >= exit_["macs"]
        for point, exit_ in zip(report["anytime"], report["exits"], strict=True)
    )


@pytest.mark.parametrize("run", ["boosted", "plain", "dgate"])
def test_images_of_a_class_left_at_both_ends(trained: Path, run: str) -> None:
    report = read_report(trained / run)
    taken = [exit_["name"] for exit_ in report["exits"] if exit_["samples"]]
    rows = report["examples"]["classes"]
    counts = report["classes_per_exit"]
    first, last = (
        counts[next(i for i, e in enumerate(report["exits"]) if e["name"] == name)]
        for name in (taken[0], taken[-1])
    )
    both = [min(a, b) for a, b in zip(first, last, strict=True)] if len(taken) > 1 else []
    assert len(rows) == min(4, sum(count > 0 for count in both))
    for row in rows:
        label = report["data"]["classes"].index(row["name"])
        assert both[label] >= sorted(both)[-4]
        for side, name, count in (("first", taken[0], first[label]), ("last", taken[-1], last[label])):
            assert len(row[side]) == min(4, count)
            assert {image["label"] for image in row[side]} == {row["name"]}
            assert {image["exit"] for image in row[side]} == {name}
        scores = [image["score"] for image in row["first"]]
        assert scores == sorted(scores, reverse=True)


def test_exits_over_training_are_on_the_page(trained: Path) -> None:
    page = (trained / "boosted" / "report.html").read_text()
    assert "Loss of each exit" in page
    assert "Left to learn" in page
    assert "Loss of each exit over 2 epochs: classifier.0 from" in page
    assert "Anytime and budgeted batch" in page
    assert "<h2>Training" not in (trained / "dgate" / "report.html").read_text()


def test_runs_are_compared_on_a_page_and_in_tables(here: Path, cli: Cli) -> None:
    said = cli("report", "boosted", "plain", "dgate")
    assert said.code == 0
    assert "page: compare-boosted-plain-dgate.html" in said.err
    assert [path.name for path in here.glob("*.html")] == ["compare-boosted-plain-dgate.html"]
    page = (here / "compare-boosted-plain-dgate.html").read_text()
    for run in ("boosted", "plain", "dgate"):
        report = read_report(here / run)
        assert f"{100 * report['after']['accuracy']:.2f}%" in said.out
        assert f"{run}, one exit for all: " in page
        assert f"{run}, chosen: " in page
    assert "[1] gates.ensemble=boosted" in said.out
    assert "[2] gates.ensemble=none" in said.out
    assert "not made of the same checkpoint" in said.out


def test_a_comparison_as_json_is_one_value(here: Path, cli: Cli) -> None:
    said = cli("report", "boosted", "plain", "--json", "-o", "both.html")
    value = said.json
    assert value["format"] == "adaptify.comparison"
    assert [run["name"] for run in value["runs"]] == ["boosted", "plain"]
    assert [run["settings"] for run in value["runs"]] == [
        {"gates.ensemble": "boosted"},
        {"gates.ensemble": "none"},
    ]
    for run in value["runs"]:
        report = read_report(here / run["name"])
        assert run["before"]["accuracy"] == report["before"]["accuracy"]
        assert run["after"]["macs"] == report["after"]["macs"]
        assert run["anytime"] == [
            {"macs": item["macs"], "accuracy": item["accuracy"]} for item in report["anytime"]
        ]
    assert (here / "both.html").is_file()


def test_runs_on_other_data_are_compared_with_a_warning(here: Path, cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "boosted"
    other.mkdir()
    value = read_report(here / "boosted")
    value["data"]["name"] = "other digits"
    (other / "report.json").write_text(json.dumps(value))
    said = cli("report", "boosted", other, "-o", "both.html")
    assert said.code == 0
    assert "warning: measured on different images" in " ".join(said.out.split())
    assert "both.html" in said.err
    page = (here / "both.html").read_text()
    assert "careful" in page
    assert str(other) in page  # two folders of the same name are told apart by their paths


def test_a_run_is_not_compared_with_itself(here: Path, cli: Cli) -> None:
    said = cli("report", "boosted", here / "boosted" / "report.json")
    assert said.code == 2
    assert "is named twice" in said.err
    assert list(here.glob("*.html")) == []


def test_one_run_that_is_not_there_stops_the_comparison(here: Path, cli: Cli) -> None:
    said = cli("report", "boosted", "plane")
    assert said.code == 2
    assert "no run 'plane'" in said.err
    assert list(here.glob("*.html")) == []
