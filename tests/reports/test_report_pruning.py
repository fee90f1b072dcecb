"""Reports of pruned networks: no exits, perhaps no accuracy, a section of their own."""

from __future__ import annotations

import io
from typing import Any

import pytest
from report_sample import sample_report
from rich.console import Console

from adaptify.errors import UsageError
from adaptify.reports.html import render_html
from adaptify.reports.schema import parse_report
from adaptify.reports.tables import report_tables


def pruned_report(*, measured: bool = True, **changes: Any) -> dict[str, Any]:
    """The JSON value of a report of pruning: two layers that lose channels, one that is gone, one frozen."""
    rows = [("conv1", 16, 12, 400, 300), ("a<b>.conv1", 64, 16, 4000, 750), ("dead", 8, 0, 600, 0)]
    layers = [
        dict(
            zip(("name", "channels_before", "channels_after", "macs_before", "macs_after"), row, strict=True)
        )
        for row in (*rows, ("head", 10, 10, 5000, 3000))
    ]
    report = sample_report(
        method={"name": "importance", "options": {"target": 0.4}},
        before={
            "accuracy": 0.9 if measured else None,
            "macs": 10_000,
            "parameters": 2000,
            "bytes": 8192,
            "milliseconds": 4.0,
        },
        after={
            "accuracy": 0.85 if measured else None,
            "macs": 4050,
            "kept": 0.405,
            "parameters": 1000,
            "bytes": 4096,
            "milliseconds": 3.0,
        },
        macs_per_sample={"mean": 4050, "median": 4050, "p95": 4050},
        pruning={
            "target": 0.4,
            "achieved": 0.405,
            "importance": "l2",
            "round_to": 16,
            "frozen": {"head is the output of the network": ["head"]},
            "layers": layers,
        },
    )
    for key in ("exits", "calibration", "frontier", "classes_per_exit", "examples"):
        del report[key]
    if not measured:
        del report["data"]
    return report | changes


def text_of(value: dict[str, Any]) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=80, highlight=False)
    for table in report_tables(parse_report(value)):
        console.print(table)
    return [" ".join(line.split()) for line in stream.getvalue().splitlines()]


def test_the_tables_say_what_was_removed() -> None:
    text = text_of(pruned_report())
    assert "conv1 12 of 16 400 300 75.0%" in text
    assert "a<b>.conv1 16 of 64 4.00 k 750 18.8%" in text
    assert "dead 0 of 8 gone 600 0 0.0%" in text
    assert "not touched: head (head is the output of the network)" in text
    assert any("asked: 40.0% of the MACs; kept: 40.50%, by l2" in line for line in text)


def test_the_headline_compares_what_was_measured() -> None:
    text = text_of(pruned_report())
    assert "Accuracy 90.00% 85.00% -5.00 points" in text
    assert "Parameters 2.00 k 1.00 k 50.0% kept" in text
    assert "Size 8.0 KiB 4.0 KiB 50.0% kept" in text
    assert "Time, one image 4.00 ms 3.00 ms 75.0% kept" in text
    assert not any(line.startswith(("Exits", "MACs per sample: ", "Frontier")) for line in text)


def test_an_accuracy_that_was_not_measured_is_said_so() -> None:
    value = pruned_report(measured=False)
    assert "Accuracy - - not measured" in text_of(value)
    page = render_html(parse_report(value))
    assert "What that costs in accuracy was not measured." in page
    assert "Top-1 accuracy" not in page
    with pytest.raises(UsageError, match="not measured"):
        _ = parse_report(value).accuracies


def test_the_page_has_a_section_for_pruning_and_none_for_exits() -> None:
    page = render_html(parse_report(pruned_report()))
    assert "<h2>Pruning</h2>" in page
    assert "for <b>5.00 points</b> of accuracy" in page
    assert "a&lt;b&gt;.conv1" in page
    assert "a<b>" not in page
    assert "Not touched: head (head is the output of the network)" in page
    assert "Where samples leave" not in page
    assert "Compute per sample" not in page
    assert "<h2>Pruning</h2>" not in render_html(parse_report(sample_report()))


def test_exits_need_what_they_were_measured_on() -> None:
    value = pruned_report(measured=False, exits=sample_report()["exits"])
    with pytest.raises(UsageError, match="it has exits, but no data"):
        parse_report(value)


def test_it_reads_back_as_it_was_written() -> None:
    report = parse_report(pruned_report(measured=False))
    assert parse_report(report.to_json()) == report
