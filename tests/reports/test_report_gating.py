"""Reports of networks with learned gates: their parts, the page's section and the terminal's table."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from gating_sample import gated_report, gating_part
from report_sample import sample_report
from test_report_html import HOSTILE, Page
from test_report_pruning import pruned_report, text_of
from test_report_tables import lines

from adaptify.errors import UsageError
from adaptify.reports.html import render_html
from adaptify.reports.learned import gating_line, site_labels, thinned
from adaptify.reports.plots.gating import (
    activity_figure,
    histogram_figure,
    sites_figure,
    sweep_figure,
    sweep_modes,
)
from adaptify.reports.schema import Gating, parse_report


def gating(**changes: Any) -> Gating:
    return Gating.model_validate(gating_part(**changes))


def page(value: dict[str, Any]) -> Page:
    return Page(render_html(parse_report(value)))


def shapes(figure: str, tag: str, cls: str) -> list[Page]:
    return [Page(found) for found in re.findall(rf"<{tag}[^>]*class=\"{cls}\".*?</{tag}>", figure)]


def number(shape: Page, attribute: str) -> float:
    return float(shape.elements[0][1][attribute] or "")


def test_gates_read_back_as_they_were_written() -> None:
    report = parse_report(gated_report())
    assert report.gating is not None
    assert parse_report(report.to_json()) == report
    assert report.gating.modes[1].tau is None
    assert parse_report(sample_report()).gating is None


def test_the_share_of_open_gates_counts_gates_and_not_sites() -> None:
    sites = [
        {"name": "a", "position": "channels", "gates": 30, "channels": 30, "open": 0.9},
        {"name": "b", "position": "layer", "gates": 10, "channels": 64, "open": 0.5},
    ]
    part = gating(sites=sites, activity=[])
    assert part.gates == 40
    assert part.open == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"polarised": 1.2}, "gating.polarised"),
        ({"granularity": "row"}, "gating.granularity"),
        ({"histogram": [3, -1]}, "gating.histogram.1"),
        (
            {"activity": [{"epoch": 4, "open": 0.5, "sites": [0.5]}]},
            "epoch 4 of activity has 1 figures for 36",
        ),
    ],
)
def test_broken_gates_are_refused_naming_the_place(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError, match="is broken at") as caught:
        parse_report(gated_report(gating=gating_part(**changes)))
    assert where in caught.value.message


def test_the_page_says_what_the_gates_do() -> None:
    text = page(gated_report()).text
    for figure in (
        "with channel gates that decide for each image",
        "1,344 channel gates at 36 sites",
        "polarised 92.5%",
        "1.42 M (1.13%)",  # MACs of the gates
        "95th percentile 82.8 M",
        "always-on all gates are open — 94.21% \N{MINUS SIGN}0.16 101.1%",
        "stochastic \N{MULTIPLICATION SIGN} 5",
        "93.41% \N{PLUS-MINUS SIGN} 0.11",
        "36 sites with gates, channels and the share that is open",
        "19 thresholds with accuracy and the MACs kept",
        "layer3.8 input 64 64 80.0%",
    ):
        assert figure in text, figure
    for title in ("Accuracy against compute", "How sure the gates are", "Where gates are open"):
        assert title in text


def test_what_is_absent_has_no_place_on_the_page() -> None:
    bare = gating_part(2, activity=[], modes=[], sweep=[], histogram=[], data_dependent=False, gate_macs=0)
    parsed = page(gated_report(gating=bare, training=None))
    assert "42 channel gates" not in parsed.text
    assert "the same for all images" in parsed.text
    absent = (
        "Accuracy against",
        "How sure",
        "over training",
        "ways to decide",
        "MACs per image",
        "thresholds",
    )
    for words in (*absent, "Training", "MACs of the gates"):
        assert words not in parsed.text, words
    alone = page(gated_report(gating=bare | {"sites": bare["sites"][:1]}))
    assert "<svg" not in alone.text
    assert "Where gates are open" not in alone.text
    for value in (sample_report(), pruned_report(measured=False)):
        assert not {"Gates", "Training"} & {" ".join(word.split()) for word in page(value).words}


def test_gates_without_a_measured_accuracy_are_shown() -> None:
    part = gating_part(4, data_dependent=False)
    text = page(pruned_report(measured=False, gating=part)).text
    assert "93.61%" in text
    assert "points" not in text.split("ways to decide")[1].split("Pruning")[0]
    assert "Gates (ways to decide, on the test samples)" in text_of(
        pruned_report(measured=False, gating=part)
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    value = gated_report()
    honest = page(value)
    for site in value["gating"]["sites"]:
        site["name"] = site["position"] = name
    for mode in (*value["gating"]["modes"], *value["gating"]["sweep"]):
        mode["name"] = name
    for epoch in value["training"]["epochs"]:
        epoch["terms"] = {name: 1.0, f"{name}2": 2.0}
    value["training"]["options"] = {name: {name: name}}
    html = render_html(parse_report(value))
    parsed = Page(html)
    assert parsed.tags() <= honest.tags()
    known = {key for _, attributes in honest.elements for key in attributes}
    assert {key for _, attributes in parsed.elements for key in attributes} <= known
    assert "\x1b" not in html
    assert re.search(r"(https?:)?//\w", html) is None
    assert "\x1b" not in "\n".join(lines(value))
    if name.isprintable():
        assert name in "".join(parsed.words)


def test_figures_take_their_colours_from_the_page() -> None:
    html = render_html(parse_report(gated_report()))
    drawn = "".join(re.findall(r"<svg.*?</svg>", html))
    assert not re.search(r"#[0-9a-f]{3,6}|rgb\(|nan|inf", drawn)
    assert len(re.findall(r'class="narrow"', html)) == len(re.findall(r'class="wide"', html)) == 4
    assert all(
        re.findall(r'<svg[^>]*role="img" aria-label="[^"]{20,}"', svg) for svg in drawn.split("</svg>")[:-1]
    )


def test_bars_are_as_high_as_sites_are_open() -> None:
    part = gating(blocks=4)
    bars = shapes(str(sites_figure(part, 520)), "rect", "bar s[0-9]")
    heights = [number(bar, "height") for bar in bars]
    assert len(heights) == len(part.sites)
    for site, height in zip(part.sites, heights, strict=True):
        assert height / heights[0] == pytest.approx(site.open / part.sites[0].open, rel=0.01)


def test_the_histogram_is_split_at_tau() -> None:
    part = gating(histogram=[60, 20, 0, 0, 0, 0, 0, 0, 20, 100], tau=0.17)
    figure = str(histogram_figure(part, 520))
    assert len(shapes(figure, "rect", "bar shut")) == 2  # the bin around tau counts by its middle
    assert len(shapes(figure, "rect", "bar s0")) == 2
    assert "0.9 to 1: 50.0% of the probabilities" in figure
    assert "\u03c4 = 0.17" in figure


def test_the_sweep_shows_the_choice_and_leaves_out_what_would_hide_it() -> None:
    part = gating()
    chosen, curve, others = sweep_modes(part, 0.9437)
    assert [mode.tau for mode in chosen] == [0.5]
    assert [mode.name for mode in others] == ["always-on", "stochastic"]  # the ensemble costs 283%
    assert len(part.sweep) > len(curve) >= 10
    assert min(mode.accuracy for mode in curve) > 0.85
    figure = str(sweep_figure(part, 0.9437, 520))
    assert "chosen: threshold \u03c4 = 0.5: 55.5% of the MACs, accuracy 93.61%" in figure
    assert len(shapes(figure, "circle", "point")) == len(curve)
    unknown = gating(tau=0.123)
    assert sweep_modes(unknown, None)[0] == []
    assert "chosen" not in str(sweep_figure(unknown, None, 520))


def test_a_large_deviation_stays_within_its_figure() -> None:
    part = gating()
    modes = [mode.model_copy(update={"accuracy_std": mode.accuracy_std and 0.5}) for mode in part.modes]
    assert any(mode.accuracy_std for mode in modes)
    figure = str(sweep_figure(part.model_copy(update={"modes": modes}), 0.9437, 520))
    heights = [float(found) for found in re.findall(r'\by[12]?="([-0-9.]+)"', figure)]
    assert min(heights) >= 0
    lines = re.findall(r'<line[^>]*y1="([-0-9.]+)"[^>]*y2="([-0-9.]+)"[^>]*class="axis"', figure)
    assert lines
    assert max(float(y) for line in lines for y in line) <= 260


def test_few_sites_are_lines_and_many_a_heat_map() -> None:
    few = str(activity_figure(gating(blocks=3), 520))
    assert len(shapes(few, "polyline", "series s[0-9]")) == 4
    assert "heat" not in few
    part = gating(blocks=30, epochs=500)
    many = str(activity_figure(part, 520))
    assert "polyline" not in many
    assert len(shapes(many, "rect", "touch")) == 1 + len(part.sites)
    assert "epoch 500" in many
    assert len(many) < 100_000


def test_a_row_of_the_heat_map_changes_where_the_gates_do() -> None:
    epochs = [{"epoch": e, "open": 0.5, "sites": [1.0 if e < 5 else 0.0] * 5} for e in range(10)]
    part = gating(blocks=4, activity=epochs)
    cells = shapes(str(activity_figure(part, 520)), "rect", "heat h[0-9]+")
    rows = [cell for cell in cells if cell.elements[0][1]["class"] != "heat h10"]
    assert [cell.elements[0][1]["class"] for cell in rows] == ["heat h20", "heat h0"] * 5
    left, middle = number(rows[0], "x"), number(rows[1], "x")
    assert middle - left == pytest.approx(number(rows[1], "width"), abs=0.2)


def test_sites_of_one_layer_are_told_apart() -> None:
    assert site_labels(gating(blocks=3))[2:] == ["layer3.0 channels", "layer3.0 input"]


def test_thinning_keeps_the_ends() -> None:
    assert thinned(range(5), 8) == [0, 1, 2, 3, 4]
    shown = thinned(range(1000), 60)
    assert (len(shown), shown[0], shown[-1]) == (60, 0, 999)


def test_the_table_compares_the_ways_to_decide() -> None:
    text = lines(gated_report())
    assert all(len(line) <= 80 for line in text)
    rows = [" ".join(line.split()) for line in text]
    assert "threshold 0.5 1 93.61% - -0.76 55.5% <- chosen" in rows
    assert "stochastic - 5 93.41% 0.11 -0.96 56.6%" in rows
    assert "MACs per sample: mean 69.6 M, median 67.8 M, p95 82.8 M" in rows
    plain = [" ".join(line.split()) for line in lines(gated_report(gating=gating_part(modes=[], sweep=[])))]
    assert "Gates" in plain
    assert not any("MACs kept" in line for line in plain)


def test_one_sentence_says_the_state_of_the_gates() -> None:
    report = parse_report(gated_report())
    assert report.gating is not None
    assert gating_line(report, report.gating) == (
        "1,344 channel gates at 36 sites, for each image: 68.3% open at tau 0.5, 92.5% polarised; "
        "the gates take 1.42 M MACs (1.13%)"
    )
    one = {"name": "a", "position": "layer", "gates": 1, "channels": 8, "open": 0.25}
    part = gating(sites=[one], activity=[], granularity="layer", data_dependent=False, gate_macs=0, tau=0.4)
    said = "1 layer gate at 1 site, the same for all images: 25.0% open at tau 0.4, 92.5% polarised"
    assert gating_line(report, part) == said


def test_infinity_is_no_figure_of_a_gate() -> None:
    with pytest.raises(UsageError, match=r"gating\.tau"):
        parse_report(gated_report(gating=gating_part(tau=math.inf)))
