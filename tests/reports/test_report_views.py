"""Who pays, how long it takes, the recipe and the file: on the page, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from report_sample import sample_report

from adaptify.errors import UsageError
from adaptify.reports.csv_tables import TABLES, render_csv
from adaptify.reports.derive import payers
from adaptify.reports.html import render_html
from adaptify.reports.markdown import render_markdown
from adaptify.reports.schema import Report, parse_report
from adaptify.reports.tables import report_tables

SPEED = {
    "machine": "a processor",
    "device": "cpu",
    "threads": 2,
    "rounds": 3,
    "data": "cifar10",
    "batches": [
        {"batch_size": 1, "images": 64, "before": 8.0, "after": 6.0, "low": 0.7, "high": 0.8, "kept": 0.69},
        {
            "batch_size": 32,
            "images": 64,
            "before": 150.0,
            "after": 120.0,
            "low": 0.79,
            "high": 0.81,
            "kept": 0.69,
        },
    ],
}


def full_report(**changes: Any) -> Report:
    value = sample_report()
    names = value["data"]["classes"]
    effects = [
        {"name": name, "samples": 1000, "before": 0.94, "after": 0.94 - 0.01 * (index - 1)}
        for index, name in enumerate(names)
    ]
    value |= {
        "class_effects": effects,
        "speed": SPEED,
        "recipe": {"method": "dgate", "train": {"epochs": 30}},
        "file": {"bytes": 3_500_000, "sha256": "ab" * 32},
    }
    value["before"] |= {"milliseconds": 8.0, "parameters": 853_018, "bytes": 3_400_000}
    value["after"] |= {"milliseconds": 6.0, "parameters": 855_358, "bytes": 3_409_360}
    return parse_report(value | changes)


def test_the_class_that_loses_most_comes_first() -> None:
    found = payers(full_report())
    assert found is not None
    assert [row.name for row in found.rows][:2] == ["truck", "ship"]
    assert found.rows[-1].name == "airplane"
    assert (found.lose, found.gain) == (8, 1)
    assert found.one_image == 0.001
    assert found.most == pytest.approx(0.08)
    assert payers(parse_report(sample_report())) is None


def test_a_network_of_random_weights_has_nothing_to_lose() -> None:
    report = full_report()
    came = report.model_copy(update={"before": report.before.model_copy(update={"accuracy": 0.1})})
    assert payers(came) is None
    assert "Who pays" not in render_html(came)


def test_the_page_says_who_pays_how_long_it_takes_and_of_which_file() -> None:
    page = render_html(full_report())
    for told in (
        "<h2>Who pays</h2>",
        "8 of 10 classes lose accuracy, 1 gains",
        "one image is 0.1 points",
        "<h3>Time, one image</h3>",
        "6.00 ms",
        "75.0% kept",
        "a processor, 2 threads",
        "120 ms",
        "2.34 k in gates",
        "(3,500,000 bytes)",
        "ab" * 32,
        "epochs: 30",
    ):
        assert told in page, told
    assert "The rounds do not agree" not in page


def test_an_older_report_has_no_such_sections() -> None:
    page = render_html(parse_report(sample_report()))
    for missing in ("<h2>Who pays</h2>", "<h2>Time</h2>", "written file", "recipe.yaml"):
        assert missing not in page


def test_times_that_contradict_each_other_are_doubted() -> None:
    busy = dict(SPEED["batches"][0], low=0.5, high=1.9)
    page = render_html(full_report(speed=SPEED | {"batches": [busy]}))
    assert "The rounds do not agree: the machine was busy." in page
    assert "<b>unsteady</b>" in page


def test_random_images_are_said_to_tell_little() -> None:
    page = render_html(full_report(speed=SPEED | {"data": None}))
    assert "over random values, which say nothing of networks that decide image by image" in page


def test_what_gates_leave_of_a_layer_is_not_how_many_run_it() -> None:
    layer = {"name": "conv", "type": "Conv2d", "shape": [1], "parameters": 1, "macs": 1000, "executed": 1.0}
    (row,) = full_report(layers=[layer | {"kept": 0.25}]).layers
    assert row.macs_kept == 250
    (row,) = full_report(layers=[layer | {"executed": 0.5}]).layers
    assert row.macs_kept == 500


def test_markdown_has_a_heading_and_a_table_for_each_part() -> None:
    text = render_markdown(list(reversed(report_tables(full_report()))))
    lines = text.splitlines()
    assert lines[0].startswith("## adaptify:cifar\\_resnet56, dgate, cifar10")
    assert "| Accuracy | 94.37% | 93.95% | -0.42 points |" in lines
    assert "| Time, one image | 8.00 ms | 6.00 ms | 75.0% kept |" in lines
    titles = [line for line in lines if line.startswith("## ")]
    assert len(titles) == 7
    for index, line in enumerate(lines):
        if line.startswith("| ---") or line.startswith("|  |"):
            assert lines[index].count("|") == lines[index - 1].count("|") or not lines[index - 1]


def test_markdown_obeys_no_name() -> None:
    value = full_report().to_json()
    for row in value["class_effects"]:
        row["name"] = "<b>|a`b`[x](y)"
    text = render_markdown(report_tables(parse_report(value)))
    assert "\\<b\\>\\|a\\`b\\`\\[x\\](y)" in text
    assert "<b>" not in text


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_for_each_run() -> None:
    rows = rows_of(render_csv([("one", full_report()), ("two", parse_report(sample_report()))]))
    assert [row["run"] for row in rows] == ["one", "two"]
    assert [row["milliseconds_after"] for row in rows] == ["6.0", ""]
    assert rows[0]["accuracy_after"] == "0.9395"
    assert rows[0]["file_sha256"] == "ab" * 32


@pytest.mark.parametrize(("table", "count"), [("classes", 10), ("exits", 4), ("times", 2)])
def test_csv_has_the_tables_of_a_report(table: str, count: int) -> None:
    rows = rows_of(render_csv([("one", full_report())], table))
    assert len(rows) == count
    assert all(row["run"] == "one" for row in rows)


def test_csv_refuses_a_table_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no table 'layer'; did you mean 'layers'") as refused:
        render_csv([("one", full_report())], "layer")
    assert all(name in refused.value.hint for name in TABLES)
    with pytest.raises(UsageError, match="the report has no pruning"):
        render_csv([("one", full_report())], "pruning")
