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


def test_a_format_goes_to_stdout_or_to_a_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--format", "csv"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith("run,architecture,method,data,")
    assert row.startswith("resnet56-dgate-002,")
    assert main(["report", "--format", "md", "--output", "summary.md"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("summary.md").read_text().startswith("## adaptify:cifar")
    assert not list(runs.glob("*/report.html"))


def test_several_runs_become_several_rows(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["runs/resnet56-dgate-001", "runs/resnet56-dgate-002"]
    assert main(["report", *named, "--format", "csv", "--table", "layers"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 2 * len(sample_report()["layers"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "pdf"], "there is no format 'pdf'"),
        (["--format", "md", "--json"], "--json and --format md are two formats"),
        (["--table", "layers"], "--table says which table --format csv writes"),
        (["--format", "csv", "--table", "nets"], "there is no table 'nets'"),
    ],
)
def test_formats_that_are_none(
    runs: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *words]) == 2
    assert told in capsys.readouterr().err
