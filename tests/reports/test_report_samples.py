"""What gates make of single images, classes and blocks: in the file, on the page and in the terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gating_sample import gated_report, gating_part, samples_part
from test_report_gating import number, page, shapes
from test_report_html import HOSTILE
from test_report_tables import lines

from adaptify.errors import UsageError
from adaptify.reports.html import render_html
from adaptify.reports.learned import gates_in_words, kinds_in_words
from adaptify.reports.plots.gating import histogram_figure
from adaptify.reports.plots.samples import blocks_figure, channels_figure, macs_figure
from adaptify.reports.schema import Gating, Samples, parse_report

PARTS = ("What images take", "MACs per image", "Which blocks run", "Classes", "Gates by class", "fewest MACs")


def samples(**changes: Any) -> Samples:
    return Samples.model_validate(samples_part(**changes))


def report(**changes: Any) -> dict[str, Any]:
    return gated_report(gating=gating_part(samples=samples_part(**changes)))


def test_samples_read_back_as_they_were_written() -> None:
    read = parse_report(report())
    assert parse_report(read.to_json()) == read
    assert read.gating is not None
    assert read.gating.samples == samples()


def test_reports_from_before_there_were_samples_still_parse() -> None:
    read = parse_report(gated_report())
    assert read.gating is not None
    assert read.gating.samples is None
    assert read.gating.kind == "gates"
    assert "What images take" not in page(gated_report()).text


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"macs": {"low": 0, "high": 1, "counts": []}}, "samples.macs.counts"),
        ({"classes": [{"name": "a", "samples": 0, "accuracy": 1, "kept": 1}]}, "samples.classes.0.samples"),
        ({"blocks": [{"name": "a", "executed": 1.1, "gradient": 0}]}, "samples.blocks.0.executed"),
        (
            {"channels": [{"name": "a", "position": "channels", "gates": 2, "classes": [], "open": [[1]]}]},
            "a has 1 rows for 0 classes",
        ),
        (
            {
                "channels": [
                    {"name": "a", "position": "input", "gates": 1, "classes": ["x"], "open": [[1, 0]]}
                ]
            },
            "a has rows that do not fit 1 gates",
        ),
    ],
)
def test_broken_samples_are_refused_naming_the_place(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError, match="is broken at") as caught:
        parse_report(report(**changes))
    assert where in caught.value.message


def test_the_page_says_what_images_take() -> None:
    text = page(report()).text
    for words in (
        *PARTS,
        "airplane 50.0% 97.0%",
        "truck 60.8% 88.0%",
        "cross-entropy of 512 training images",
        "opens each gate; the first 50 of 64",
        "Gates by class at layer3.8.conv1",
        "airplane \N{BALLOT X} cat 68.8%",
    ):
        assert words in text, words
    assert text.count("\N{BALLOT X}") == 1


def test_what_there_is_not_is_not_drawn() -> None:
    bare = {"macs": None, "classes": [], "examples": {}, "channels": [], "blocks": []}
    full = render_html(parse_report(report()))
    for part, title in zip(("macs", "blocks", "classes", "channels"), PARTS[1:5], strict=True):
        html = render_html(parse_report(report(**{part: bare[part]})))
        assert title in full
        assert f"<h3>{title}" not in html
    assert html.count("<svg") == full.count("<svg") - 4  # two heat maps, wide and narrow
    empty = page(report(**bare))
    assert "What images take" not in empty.text
    assert not any(title in empty.text for title in PARTS[1:] if title != "MACs per image")
    # One block is no series.
    assert "Which blocks run" not in page(report(blocks=samples_part()["blocks"][:1])).text


def test_of_many_classes_both_ends_are_shown() -> None:
    many = [{"name": f"class {i}", "samples": 5, "accuracy": 0.5, "kept": i / 100} for i in range(100)]
    text = page(report(classes=many)).text
    assert "76 classes lie between" in text
    assert "class 11 11.0%" in text
    assert "class 88 88.0%" in text
    assert "class 12 " not in text
    rows = [" ".join(line.split()) for line in lines(report(classes=many))]
    assert "88 more classes" in rows
    assert "class 5 5 50.00% 5.0%" in rows
    assert "class 94 5 50.00% 94.0%" in rows


def test_the_terminal_has_a_table_of_classes() -> None:
    text = lines(report())
    assert all(len(line) <= 80 for line in text)
    rows = [" ".join(line.split()) for line in text]
    assert rows.index("airplane 1,000 97.00% 50.0%") < rows.index("truck 1,000 88.00% 60.8%")
    assert not any("airplane" in line for line in lines(gated_report()))


def test_bars_of_the_histogram_are_as_high_as_their_counts() -> None:
    read = parse_report(report())
    part = samples(macs={"low": 10.0, "high": 20.0, "counts": [40, 0, 10, 50]})
    assert part.macs is not None
    figure = str(macs_figure(part.macs, read.macs_per_sample, 40.0, 520))
    bars = shapes(figure, "rect", "bar s0")
    heights = [number(bar, "height") for bar in bars]
    assert heights[0] / heights[1] == pytest.approx(4, rel=0.01)
    assert heights[2] / heights[1] == pytest.approx(5, rel=0.01)
    assert "25.0% to 31.2% of the MACs: 40 images (40.0%)" in figure


def test_blocks_are_bars_and_a_line_of_gradients() -> None:
    figure = str(blocks_figure(samples().blocks, 520))
    bars = [number(bar, "height") for bar in shapes(figure, "rect", "bar s0")]
    assert bars == pytest.approx([bars[0] * (1 - i / 12) for i in range(9)], abs=0.2)
    at = [number(dot, "cy") for dot in shapes(figure, "circle", "peak s3")]
    top, bottom = at[0], at[0] + bars[0]  # the first gradient is the largest, and its block always runs
    assert at == pytest.approx([bottom - (bottom - top) / (1 + i % 3) for i in range(9)], abs=0.2)
    silent = [block.model_copy(update={"gradient": 0.0}) for block in samples().blocks]
    assert "nan" not in str(blocks_figure(silent, 520))


def test_the_heat_map_has_a_row_for_each_class_and_a_cell_for_each_gate() -> None:
    use = (
        samples()
        .channels[0]
        .model_copy(update={"classes": ["a", "b"], "open": [[0.0, 1.0, 1.0, 0.5], [1.0, 0.0, 0.25, 0.0]]})
    )
    figure = str(channels_figure(use, 520))
    cells = shapes(figure, "rect", "heat h[0-9]+")
    levels = [cell.elements[0][1]["class"] for cell in cells]
    assert levels == [f"heat h{level}" for level in (0, 20, 10, 20, 0, 5, 0)]
    assert number(cells[1], "width") == pytest.approx(2 * number(cells[0], "width"), rel=0.02)
    assert ">a</text>" in figure
    assert ">gate 4</text>" in figure
    assert "a: opens 62.5% of these gates" in figure


def test_the_page_of_many_gates_and_classes_stays_small() -> None:
    rows = [[(7 * c + 3 * g) % 20 / 20 for g in range(50)] for c in range(24)]
    use = {"name": "a", "position": "channels", "gates": 512, "classes": ["x" * 30] * 24, "open": rows}
    assert len(str(channels_figure(samples(channels=[use]).channels[0], 520))) < 150_000


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_classes_and_sites_stay_text(name: str) -> None:
    value = report()
    honest = page(value)
    part = value["gating"]["samples"]
    for row in (*part["classes"], *part["blocks"], *part["channels"]):
        row["name"] = name
    for use in part["channels"]:
        use["classes"] = [name] * 10
    for image in (*part["examples"]["easy"], *part["examples"]["hard"]):
        image["label"] = name
    html = render_html(parse_report(value))
    parsed = page(value)
    assert parsed.tags() <= honest.tags()
    assert "\x1b" not in html
    assert re.search(r"(https?:)?//\w", html) is None
    assert "\x1b" not in "\n".join(lines(value))


def test_gates_that_scale_are_told_of_by_their_saliences() -> None:
    text = page(gated_report(gating=gating_part(kind="saliences", tau=0.0))).text
    assert "A gate is open where its salience is above" in text
    assert "what they leave open is multiplied with them" in text
    assert "of the saliences" in text
    assert "How open the gates are" in text
    at_zero = Gating.model_validate(gating_part(kind="saliences", tau=0.0, histogram=[70, 20, 10]))
    assert len(shapes(str(histogram_figure(at_zero, 520)), "rect", "bar shut")) == 1
    assert "probabilit" not in text.split("Gates 1,344")[1].split("ways to decide")[0]
    assert "A gate is open where its probability is above" in page(gated_report()).text


def test_gates_of_layers_and_of_channels_are_counted_apart() -> None:
    sites = [
        {"name": "a", "position": "layer", "gates": 1, "channels": 1, "open": 0.5},
        {"name": "a.conv1", "position": "channels", "gates": 64, "channels": 64, "open": 0.5},
    ]
    part = Gating.model_validate(gating_part(sites=sites, activity=[]))
    assert gates_in_words(part) == "1 layer gate and 64 channel gates at 2 sites"
    assert kinds_in_words(part) == "layer and channel"
    assert "with layer and channel gates that decide" in page(gated_report(gating=part.model_dump())).text
