from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from report_sample import sample_report

from adaptify.cli.main import main


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("resnet56-dgate-002", "resnet56-dgate-001")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(sample_report()))
        os.utime(folder / "report.json", (1000 - age, 1000 - age))
    (tmp_path / "runs" / "unfinished").mkdir()
    return tmp_path / "runs"


def test_the_newest_run_is_reported_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    shown = capsys.readouterr()
    assert "93.95%" in shown.out
    assert "runs/resnet56-dgate-002" in shown.err
    assert (runs / "resnet56-dgate-002" / "report.html").is_file()


def test_json_is_the_report_and_nothing_more(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"]["accuracy"] == 0.9395


@pytest.mark.parametrize("given", ["resnet56-dgate-001", "runs/resnet56-dgate-001/report.json"])
def test_a_run_is_found_by_name_and_by_file(
    runs: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", given, "--no-layers", "-q", "-o", "page.html"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "Conv2d" not in shown.out
    assert Path("page.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet56-dgate-003"], "no run 'resnet56-dgate-003'; did you mean 'resnet56-dgate-00"),
        (["runs/unfinished"], "has no report.json"),
    ],
)
def test_a_run_that_is_not_there_is_a_usage_error(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_without_any_run_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "adaptify demo" in capsys.readouterr().err
