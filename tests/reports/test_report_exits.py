"""Reports of networks with exits: curves on test samples, images of the same class, exits over training."""

from __future__ import annotations

import re

import pytest
from exits_sample import jointly_trained, same_class
from report_sample import MACS, sample_report
from test_report_html import HOSTILE, Page
from test_report_tables import lines, row

from adaptify.errors import UsageError
from adaptify.reports.curves import anytime, anytime_within, budgeted, budgeted_within
from adaptify.reports.html import render_html
from adaptify.reports.plots.curves import anytime_figure, draws_backbone
from adaptify.reports.plots.training import exit_loss_curves, exit_share_curves
from adaptify.reports.schema import parse_report


def section(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


def test_the_new_parts_read_back_as_they_were_written() -> None:
    report = parse_report(jointly_trained())
    assert len(report.anytime) == 10
    assert len(report.budgeted) == 21
    assert report.examples.classes[0].last[1].predicted == "truck"
    assert parse_report(report.to_json()) == report


def test_an_older_report_has_none_of_them_and_loads() -> None:
    value = sample_report()
    assert "anytime" not in value
    report = parse_report(value)
    assert (report.anytime, report.budgeted, report.examples.classes) == ([], [], [])
    assert anytime(report) == [(exit_.macs, exit_.accuracy_all) for exit_ in report.exits]
    assert budgeted(report) == []
    text = Page(render_html(report)).text
    assert "one exit for all (anytime)" in text
    assert "thresholds (budgeted batch)" not in text
    assert "The same class" not in text


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"anytime": [{"accuracy": 0.5, "macs": 1}]}, "anytime has 1 figures for 10 exits"),
        ({"budgeted": [{"accuracy": 0.5, "macs": 1}]}, "budgeted has 1 figures for 21 points"),
        ({"anytime": [{"accuracy": 50, "macs": 1}] * 10}, "anytime.0.accuracy"),
        ({"examples": {"classes": [{"name": "cat", "first": [], "last": []}]}}, "examples.classes.0.first"),
    ],
)
def test_parts_that_do_not_fit_are_refused(part: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_report(jointly_trained(**part))


def test_within_a_budget_held_out_samples_choose_and_test_samples_judge() -> None:
    value = jointly_trained()
    value["budgeted"][3]["accuracy"] = 0.99  # luck on the test samples, not seen in the choice
    report = parse_report(value)
    budget = report.frontier[5].macs
    assert budgeted_within(report, budget) == report.budgeted[5].accuracy
    assert budgeted_within(report, 0.99 * report.frontier[0].macs) is None
    assert budgeted_within(report, MACS) == report.budgeted[-1].accuracy


def test_a_single_exit_answers_within_what_it_takes() -> None:
    report = parse_report(jointly_trained())
    third = report.anytime[2]
    assert anytime_within(report, third.macs) == third.accuracy
    assert anytime_within(report, third.macs - 1) == report.anytime[1].accuracy
    assert anytime_within(report, report.anytime[0].macs - 1) is None


def test_the_figure_has_every_exit_every_policy_and_the_choice() -> None:
    report = parse_report(jointly_trained())
    drawn = str(anytime_figure(report, 520))
    assert len(re.findall(r'class="peak x\d"', drawn)) == 10
    assert "all samples leave at classifier.3: 40.0% of the MACs, accuracy 69.88%" in drawn
    curve = re.search(r'<polyline points="([^"]*)" class="curve"', drawn)
    assert curve is not None
    assert len(curve[1].split()) == 21
    assert "chosen: 50.0% of the MACs, accuracy 75.00%" in drawn


def test_random_weights_do_not_press_the_figure_into_a_corner() -> None:
    from_nothing = parse_report(jointly_trained())
    assert not draws_backbone(from_nothing)
    assert 'class="came"' not in str(anytime_figure(from_nothing, 520))
    assert "as it came: 10.00%, not drawn" in Page(render_html(from_nothing)).text
    value = jointly_trained()
    value["before"]["accuracy"] = 0.74
    pretrained = parse_report(value)
    assert draws_backbone(pretrained)
    assert "as it came: 100.0% of the MACs, accuracy 74.00%" in str(anytime_figure(pretrained, 520))


def test_the_page_says_what_each_exit_and_thresholds_give_for_its_compute() -> None:
    text = Page(render_html(parse_report(jointly_trained()))).text
    rows = section(text, "For the compute of each exit", "Where samples leave")
    assert "classifier.4 62.7 M 50.0% 71.12% 67.10% \N{MINUS SIGN}4.02" in rows
    assert "output 125.5 M 100.0% 73.52% 76.10% +2.58" in rows


def test_the_table_of_the_frontier_says_what_each_point_gives_on_test() -> None:
    value = jointly_trained(exits=4)
    value["budgeted"][0]["accuracy"] = 0.4321
    text = lines(value)
    assert all(len(line) <= 80 for line in text)
    assert row(text, "    10.0%") == "10.0% 12.5 M 60.00% -34.12 75.0% 43.21%"
    assert not any("on test" in line.split("MACs kept")[-1] for line in lines(sample_report())[:20])


def test_images_of_the_same_class_stand_side_by_side() -> None:
    page = Page(render_html(parse_report(jointly_trained())))
    rows = section(page.text, "The same class, easy and hard", "Training")
    assert "airplane classifier.0 0.90 output 0.90 \N{BALLOT X} truck 0.90 automobile classifier.0" in rows


def test_losses_of_ten_exits_have_the_colours_of_exits() -> None:
    html = render_html(parse_report(jointly_trained()))
    text = Page(html).text
    assert "Loss of each exit" in text
    assert "Left to learn Training images with a loss above the 10th percentile" in text
    training = section(html, "<h2>Training</h2>", "<details")
    for index in range(10):
        assert training.count(f'class="series x{index}"') == 2
    assert training.count('class="key line series x9"') == 2
    assert 'aria-label="Loss of each exit over 12 epochs: classifier.0 from 2.3 to 0.198' in training


def test_where_gates_let_training_images_go_is_drawn() -> None:
    text = Page(render_html(parse_report(jointly_trained(exits=3, kind="leave")))).text
    assert "Where training images leave" in text
    assert "Left to learn" not in text


def test_only_what_was_told_for_every_exit_becomes_a_curve() -> None:
    value = jointly_trained(exits=3)
    names = ["classifier.0", "classifier.1", "output"]
    whole = parse_report(value).training
    assert whole is not None
    assert [name for name, _ in exit_loss_curves(whole, names)] == names
    assert exit_loss_curves(whole, ["elsewhere", *names]) == []
    assert exit_loss_curves(whole, []) == []
    assert exit_share_curves(whole, names, "valid")[2][1][2] == pytest.approx(0.88)
    assert exit_share_curves(whole, names, "leave") == []
    del value["training"]["epochs"][1]["figures"]["valid.output"]
    partly = parse_report(value).training
    assert partly is not None
    assert exit_share_curves(partly, names, "valid") == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_exits_and_classes_stay_text(name: str) -> None:
    def report(first: str, label: str) -> Page:
        value = jointly_trained(exits=3)
        value["exits"][0]["name"] = first
        value["examples"]["classes"] = [same_class([first, "output"], label)]
        for epoch in value["training"]["epochs"]:
            epoch["terms"][first] = epoch["terms"].pop("classifier.0")
            epoch["figures"][f"valid.{first}"] = epoch["figures"].pop("valid.classifier.0")
        return Page(render_html(parse_report(value)))

    honest, hostile = report("classifier.0", "cat"), report(name, name)
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in honest.elements]
    assert [set(attributes) for _, attributes in hostile.elements] == [
        set(attributes) for _, attributes in honest.elements
    ]
    if name.isprintable():
        assert "".join(hostile.words).count(name) >= 3
