"""Reports of networks that were trained: curves and the table of epochs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gating_sample import gated_report, training_part
from test_report_html import Page
from test_report_pruning import pruned_report
from test_report_tables import lines

from adaptify.errors import UsageError
from adaptify.reports.html import render_html
from adaptify.reports.learned import training_line
from adaptify.reports.plots.training import accuracy_figure, kept_figure, loss_figure
from adaptify.reports.schema import Training, parse_report


def training(epochs: int = 30, **options: Any) -> Training:
    return Training.model_validate(training_part(epochs, **options))


def without_holdout(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"epochs": [epoch | {"holdout_accuracy": None} for epoch in part["epochs"]]}


def test_training_reads_back_as_it_was_written() -> None:
    report = parse_report(pruned_report(training=training_part(3, kept=False)))
    assert parse_report(report.to_json()) == report
    assert report.training is not None
    assert report.training.epochs[0].kept is None


def test_the_epoch_that_was_kept_must_be_one() -> None:
    with pytest.raises(UsageError, match="epoch 9 was chosen, which is none of its epochs"):
        parse_report(gated_report(training=training_part(5, chosen=9)))
    assert parse_report(gated_report(training=training_part(5, chosen=0))).training is not None


def test_the_page_shows_the_course_of_training() -> None:
    text = Page(render_html(parse_report(gated_report()))).text
    for figure in (
        "30 epochs; the weights of epoch 28 are kept",
        "Loss",
        "loss task budget epoch 28",
        "held-out train epoch 28",
        "30 epochs with learning rate, loss and accuracy",
        "optimizer=sgd, epochs=30, target=0.55, schedule.warmup=2",
        "95.28% 93.06% 56.1%",
    ):
        assert figure in text, figure


def test_figures_that_were_not_taken_are_left_out() -> None:
    part = without_holdout(training_part(8, kept=False))
    for epoch in part["epochs"]:
        epoch["images_per_second"] = None
        epoch["terms"] = {"task": epoch["loss"]}
    section = Page(render_html(parse_report(pruned_report(training=part)))).text.split("Training")[1]
    section = section.split("Layers")[0]
    assert "held-out" not in section
    assert "MACs kept" not in section
    assert "loss task" not in section.split("with learning rate")[0]  # one term is the loss itself
    assert "94.51%" in section


def test_a_single_epoch_makes_no_curve() -> None:
    html = render_html(parse_report(pruned_report(training=training_part(1))))
    assert "<svg" not in html
    assert '<details class="card below" open>' in html
    assert "1 epoch; the weights of epoch 1 are kept" in Page(html).text
    none = {"options": {"epochs": 0}, "epochs": [], "chosen": 0}
    assert "<h2>Training" not in render_html(parse_report(pruned_report(training=none)))


def test_the_kept_epoch_is_marked_on_each_curve() -> None:
    part = training()
    for draw, curves in ((loss_figure, 3), (accuracy_figure, 2), (kept_figure, 1)):
        figure = str(draw(part, 340))
        assert len(re.findall(r"<polyline", figure)) == curves
        assert len(re.findall(r'class="peak s\d"', figure)) == curves
        assert len(re.findall(r"epoch 28: [^<]*\(kept\)", figure)) == curves
    start = str(loss_figure(training(chosen=0), 340))
    assert "peak" not in start


def test_a_curve_skips_epochs_that_were_not_measured() -> None:
    part = training_part(6)
    for epoch in part["epochs"][::2]:
        epoch["holdout_accuracy"] = None
    figure = str(accuracy_figure(Training.model_validate(part), 340))
    counts = [len(points.split()) for points in re.findall(r'<polyline points="([^"]*)"', figure)]
    assert sorted(counts) == [3, 6]


def test_no_share_above_the_whole_is_on_an_axis() -> None:
    part = training_part(4)
    for epoch in part["epochs"]:
        epoch["train_accuracy"] = epoch["holdout_accuracy"] = 1.0
    ticks = re.findall(r">([\d.]+)%</text>", str(accuracy_figure(Training.model_validate(part), 340)))
    assert ticks
    assert max(map(float, ticks)) <= 100


def test_the_terminal_says_it_in_one_line() -> None:
    assert training_line(training()) == (
        "trained: 30 epochs, loss 1.42 -> 0.145; epoch 28 is kept: train 95.28%, held-out 93.06%, "
        "56.1% of the MACs"
    )
    assert training_line(training(1, kept=False)).startswith("trained: 1 epoch, loss")
    assert "the weights from before the first epoch are kept" in training_line(training(5, chosen=0))
    assert training_line(Training(epochs=[], chosen=0)) == "trained: 0 epochs"
    assert any(
        line.startswith("trained: 5 epochs") for line in lines(pruned_report(training=training_part(5)))
    )
