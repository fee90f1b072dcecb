from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from report_sample import MACS, sample_report

from adaptify.errors import UsageError
from adaptify.reports.derive import chosen_point, class_rows, spread, target
from adaptify.reports.schema import parse_report, read_report, write_report


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    report = parse_report(sample_report())
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_json()


def test_a_threshold_that_is_never_reached_is_null_in_the_file() -> None:
    value = sample_report()
    value["exits"][0]["threshold"] = math.inf
    value["frontier"][0]["thresholds"][1] = math.inf
    written = parse_report(value).to_json()
    assert written["exits"][0]["threshold"] is None
    assert written["frontier"][0]["thresholds"][1] is None


def test_unknown_keys_are_passed_over() -> None:
    assert parse_report(sample_report(milliseconds={"before": 3.0})).version == 1


def test_a_newer_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="has version 2; this adaptify reads version 1") as caught:
        parse_report(sample_report(version=2), "runs/a/report.json")
    assert "runs/a/report.json" in caught.value.message
    assert "Update adaptify" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"before": {"accuracy": 94.3, "macs": 1}}, "before.accuracy"),
        ({"before": {"accuracy": 0.9}}, "before.macs"),
        ({"exits": None}, "exits"),
        ({"created": "yesterday"}, "created"),
        ({"classes_per_exit": [[1] * 10]}, "1 rows for 4 exits"),
        ({"classes_per_exit": [[1] * 9] * 4}, "not 10 classes long"),
        ({"after": {"accuracy": math.nan, "macs": 1.0, "kept": 0.5}}, "after.accuracy"),
        ({"exits": []}, "exits"),
    ],
)
def test_a_broken_report_is_refused_naming_the_place(changes: dict[str, object], where: str) -> None:
    with pytest.raises(UsageError, match="is broken at") as caught:
        parse_report(sample_report(**changes))
    assert where in caught.value.message


def test_an_image_must_be_embedded() -> None:
    value = sample_report()
    value["examples"]["easy"][0]["image"] = "https://example.org/a.png"
    with pytest.raises(UsageError, match=r"examples\.easy\.0\.image"):
        parse_report(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"format": "adaptify.re', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "is no adaptify report"),
        (b'{"a": 1}', "is no adaptify report"),
    ],
)
def test_a_file_that_is_no_report_is_a_usage_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_report(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_report(tmp_path / "report.json")


def test_the_chosen_point_is_the_one_with_the_exits_thresholds() -> None:
    report = parse_report(sample_report())
    point = chosen_point(report)
    assert point is not None
    assert point.accuracy == 0.9368
    elsewhere = sample_report()
    elsewhere["exits"][0]["threshold"] = 17.0
    assert chosen_point(parse_report(elsewhere)) is None


def test_a_target_on_accuracy_is_judged_on_the_test_samples() -> None:
    met = target(parse_report(sample_report()))
    assert met is not None
    assert met.met is True
    assert met.request == "lose at most 0.5 points of accuracy"
    assert met.achieved == "0.44 points lost"  # 94.12 to 93.68
    assert met.test == "0.42 points lost"  # 94.37 to 93.95
    value = sample_report()
    value["after"]["accuracy"] -= 0.002  # the calibration samples still meet the request
    missed = target(parse_report(value))
    assert missed is not None
    assert (missed.met, missed.achieved) == (False, "0.44 points lost")


def test_a_drop_is_what_leaving_early_costs_and_not_what_training_changed() -> None:
    value = sample_report()
    value["before"]["accuracy"] = 0.1  # random weights
    made = target(parse_report(value))
    assert made is not None
    assert (made.met, made.test) == (True, "0.42 points lost")
    value["after"]["accuracy"] -= 0.002
    missed = target(parse_report(value))
    assert missed is not None
    assert missed.met is False


def test_a_target_on_macs_is_judged_on_what_the_test_samples_keep() -> None:
    value = sample_report()
    value["calibration"] |= {"request": {"max_macs": 0.6}, "macs": 0.59 * MACS}
    value["exits"][0]["threshold"] = 9.0  # not on the frontier: the calibration's own figure counts
    value["after"]["kept"] = 0.61
    missed = target(parse_report(value))
    assert missed is not None
    assert (missed.met, missed.achieved, missed.test) == (False, "59.0% kept", "61.0% kept")
    value["after"]["kept"] = 0.6
    met = target(parse_report(value))
    assert met is not None
    assert met.met is True


def test_thresholds_by_hand_ask_for_nothing() -> None:
    value = sample_report()
    value["calibration"]["request"] = {"thresholds": [1, 2, 3]}
    made = target(parse_report(value))
    assert made is not None
    assert made.met is None
    assert target(parse_report(sample_report(calibration=None))) is None


def test_classes_are_ordered_by_the_compute_they_need() -> None:
    rows = class_rows(parse_report(sample_report()))
    assert [rows[0].name, rows[-1].name] == ["airplane", "truck"]
    costs = [44_000_000, 64_000_000, 85_000_000, MACS + 3_840]
    by_hand = sum(n * c for n, c in zip([300, 250, 150, 300], costs, strict=True)) / 1000 / MACS
    assert rows[0].samples == 1000
    assert rows[0].kept == pytest.approx(by_hand)


def test_a_class_without_samples_is_left_out() -> None:
    counts = [[0] + [1] * 9] * 4
    rows = class_rows(parse_report(sample_report(classes_per_exit=counts)))
    assert len(rows) == 9


def test_spread_keeps_the_ends_and_the_chosen_point() -> None:
    report = parse_report(sample_report())
    chosen = report.frontier[2]
    shown = spread(report.frontier, 5, chosen)
    assert shown[0] is report.frontier[0]
    assert shown[-1] is report.frontier[-1]
    assert any(point is chosen for point in shown)
    assert len(shown) <= 6
    assert spread(report.frontier[:3], 5) == report.frontier[:3]
