"""What a report holds of held-out images, and the choice among runs that goes by it."""

from __future__ import annotations

from typing import Any

from gating_sample import training_part
from report_sample import sample_report

from adaptify.reports.held_out import held_out, held_out_front
from adaptify.reports.schema import Report, parse_report


def report(**changes: Any) -> Report:
    return parse_report(sample_report(**changes))


def test_it_is_what_thresholds_were_chosen_on() -> None:
    calibration = {**sample_report()["calibration"], "macs": 5e7}
    assert held_out(report(calibration=calibration)) == (5e7, 0.9368)
    assert held_out(report(calibration={**calibration, "split": "test"})) is None


def test_without_thresholds_it_is_what_was_measured() -> None:
    measured = {"accuracy": 0.9, "macs": 7e7}
    assert held_out(report(calibration=None, held_out=measured)) == (7e7, 0.9)
    # Epochs say what the network was, before statistics were taken anew.
    assert held_out(report(calibration=None, training=training_part(epochs=4))) is None
    assert held_out(report(calibration=None)) is None


def test_test_images_have_no_part_in_the_choice() -> None:
    after = sample_report()["after"]
    without = {"exits": [], "classes_per_exit": [], "frontier": []}
    reports = [
        (name, report(**without, after={**after, "accuracy": accuracy, "macs": macs}))
        for name, accuracy, macs in (
            ("a", 0.5, 5.0),
            ("b", 0.6, 4.0),
            ("c", 0.9, 1.0),
            ("unmeasured", None, 1.0),
        )
    ]
    judged = {"a": (1.0, 0.7), "b": (2.0, 0.8), "c": (2.0, 0.75), "unmeasured": (3.0, 0.9)}
    front = held_out_front(reports, judged)
    assert [(point.run, point.macs, point.accuracy) for point in front] == [("a", 5.0, 0.5), ("b", 4.0, 0.6)]
