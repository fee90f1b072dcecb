"""Several runs side by side: what is held against what, on the page and in the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from exits_sample import jointly_trained
from gating_sample import gated_report
from report_sample import MACS, sample_report
from rich.console import Console
from test_report_html import HOSTILE, Page
from test_report_pruning import pruned_report

from adaptify.reports.compare import Comparison, best_of, compare
from adaptify.reports.compare_html import render_comparison
from adaptify.reports.plots.curves import comparison_figure
from adaptify.reports.schema import parse_report
from adaptify.reports.tables.comparison import comparison_tables


def comparison(**values: dict[str, Any]) -> Comparison:
    return compare([(name, parse_report(value)) for name, value in values.items()])


def boosted_and_plain() -> Comparison:
    boosted, plain = jointly_trained(), jointly_trained()
    boosted["method"] = {"name": "boostnet", "options": {"gates": {"ensemble": "boosted", "pool": 1}}}
    plain["method"] = {"name": "boostnet", "options": {"gates": {"ensemble": "none", "pool": 1}}}
    for point in plain["budgeted"]:
        point["accuracy"] -= 0.05
    plain["after"]["accuracy"] = 0.71
    return comparison(boosted=boosted, plain=plain)


def lines(found: Comparison, width: int = 80) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for table in comparison_tables(found):
        console.print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_settings_that_differ_are_told_and_others_are_not() -> None:
    found = boosted_and_plain()
    assert [dict(run.settings) for run in found.runs] == [
        {"gates.ensemble": "boosted"},
        {"gates.ensemble": "none"},
    ]
    elsewhere = comparison(a=jointly_trained(), b=gated_report())
    assert elsewhere.runs[0].settings == {}


def test_a_budget_is_the_same_for_all_runs() -> None:
    found = boosted_and_plain()
    costs = [row.macs for row in found.budgets]
    assert costs == sorted(costs)
    assert costs[-1] == MACS + 1000
    for row in found.budgets:
        boosted, plain = row.budgeted
        assert boosted is not None
        assert plain is not None
        assert boosted == pytest.approx(plain + 0.05)
        assert row.anytime[0] == row.anytime[1]


def test_a_run_with_one_policy_is_a_point() -> None:
    found = comparison(exits=jointly_trained(), pruned=pruned_report())
    pruned = found.runs[1].report
    for row in found.budgets:
        assert row.anytime[1] is None
        assert row.budgeted[1] == (pruned.after.accuracy if row.macs >= pruned.after.macs else None)
    drawn = str(comparison_figure(found.runs, 520))
    assert "pruned, chosen" in drawn
    assert "pruned, one exit" not in drawn
    assert drawn.count('class="number"') == 2


def test_gates_have_the_curve_of_their_thresholds() -> None:
    value = gated_report()
    found = comparison(gates=value, exits=jointly_trained())
    told = found.to_json()["runs"][0]["budgeted"]
    assert len(told) == len(value["gating"]["sweep"])
    assert told == sorted(told, key=lambda item: item["macs"])


def test_other_data_are_flagged_and_compared_all_the_same() -> None:
    other = jointly_trained()
    other["data"] = other["data"] | {"name": "svhn"}
    found = comparison(a=jointly_trained(), b=other, c=jointly_trained())
    assert found.warnings == (
        "measured on different images: a [1], c [3] on cifar10 (10,000 test samples, 10 classes); "
        "b [2] on svhn (10,000 test samples, 10 classes). Their accuracies say nothing about each other",
    )
    assert "svhn" in " ".join(lines(found))
    page = Page(render_comparison(found))
    assert "careful measured on different images: a [1], c [3] on cifar10" in page.text
    assert page.text.count("75.00%") >= 3


def test_other_classes_of_the_same_data_are_other_data() -> None:
    other = jointly_trained()
    other["data"] = other["data"] | {"classes": [*other["data"]["classes"][:-1], "lorry"]}
    assert len(comparison(a=jointly_trained(), b=other).warnings) == 1
    assert comparison(a=jointly_trained(), b=jointly_trained()).warnings == ()


def test_a_run_that_was_not_measured_is_in_the_table_only() -> None:
    unmeasured = pruned_report(data=None)
    unmeasured["before"]["accuracy"] = unmeasured["after"]["accuracy"] = None
    found = comparison(exits=jointly_trained(), pruned=unmeasured)
    assert found.warnings == ("pruned [2] was not measured: it is in the table only",)
    assert "chosen" in str(comparison_figure(found.runs, 520))
    assert "pruned, chosen" not in str(comparison_figure(found.runs, 520))
    alone = comparison(a=unmeasured, b=unmeasured)
    assert alone.budgets == ()
    assert "<svg" not in render_comparison(alone)
    assert any(line.split()[:2] == ["[1]", "a"] for line in lines(alone))


def test_other_checkpoints_and_older_reports_are_noted() -> None:
    other = jointly_trained()
    other["model"] = other["model"] | {"sha256": "0" * 64, "checkpoint": "other.pt"}
    old = sample_report()
    found = comparison(a=jointly_trained(), b=other, old=old)
    assert any("b [2] of other.pt" in note for note in found.notes)
    assert any(note.startswith("old [3]: no curve on the test samples") for note in found.notes)


def test_the_page_and_the_json_hold_the_curves() -> None:
    found = boosted_and_plain()
    html = render_comparison(found)
    page = Page(html)
    assert "2 runs side by side" in page.text
    assert re.search(r"(https?:)?//\w", html) is None
    assert page.tags().isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    drawn = re.findall(r"<svg.*?</svg>", html)
    assert len(drawn) == 2  # for a desk and for a phone
    for index, run in enumerate(found.runs):
        curve = re.search(rf'<polyline points="([^"]*)" class="series s{index}"', drawn[0])
        assert curve is not None
        assert len(curve[1].split()) == len(run.report.budgeted)
        assert drawn[0].count(f'class="hollow s{index}"') == len(run.report.exits)
    value = found.to_json()
    assert (value["format"], value["version"]) == ("adaptify.comparison", 1)
    assert value["runs"][1]["budgeted"][0]["accuracy"] == pytest.approx(0.561)
    assert value["runs"][0]["after"]["parameters"] == 853_018 + 2_340
    assert len(value["budgets"]) == len(found.budgets)


def test_the_tables_fit_into_80_columns() -> None:
    found = boosted_and_plain()
    text = lines(found)
    assert all(len(line) <= 80 for line in text)
    row = " ".join(next(line for line in text if line.startswith("[2]  plain")).split())
    assert row == "[2] plain boostnet 10.00% 71.00% 62.7 M 50.0% 855.4 k"
    assert "[1] gates.ensemble=boosted" in text
    long = compare([("run" * 20 + str(i), run.report) for i, run in enumerate((*found.runs, *found.runs))])
    text = lines(long)
    assert all(len(line) <= 80 for line in text)
    shown = " ".join(" ".join(text).split())
    assert shown.count("62.7 M 50.0% 855.4 k") == 4
    # Names of runs differ at their ends: these go on in other lines.
    assert all(any(re.fullmatch(f"[run]*{i}", line.strip()) for line in text) for i in range(4))
    assert "125.5 M 76.10% 71.10% 76.10% 71.10%" in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_runs_stay_text(name: str) -> None:
    def page(first: str) -> Page:
        one, other = jointly_trained(), jointly_trained()
        one["data"] = one["data"] | {"name": first}
        one["method"] = {"name": "m", "options": {first: first}}
        other["method"] = {"name": "m", "options": {first: 1}}
        one["model"] = one["model"] | {"checkpoint": first, "sha256": "1"}
        return Page(render_comparison(compare([(first, parse_report(one)), ("b", parse_report(other))])))

    honest, hostile = page("honest"), page(name)
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in honest.elements]
    assert [set(attributes) for _, attributes in hostile.elements] == [
        set(attributes) for _, attributes in honest.elements
    ]
    if name.isprintable():
        assert "".join(hostile.words).count(name) >= 4


def test_best_is_told_where_there_is_something_to_compare() -> None:
    assert best_of([0.3, None, 0.5]) == 0.5
    assert best_of([0.3, None]) is None
