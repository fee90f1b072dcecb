from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_sample import sample_report

from adaptify.reports.html import render_html, write_html
from adaptify.reports.plots.exits import palette
from adaptify.reports.schema import parse_report
from adaptify.reports.svg import Svg, apart, ticks

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements and the text of a page; fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def page(**changes: Any) -> Page:
    return Page(render_html(parse_report(sample_report(**changes))))


def test_the_page_says_the_figures() -> None:
    text = page().text
    for figure in (
        "93.95%",  # accuracy after
        "was 94.37%",
        "\N{MINUS SIGN}0.42 points",
        "86.9 M",  # mean MACs
        "was 125.5 M",
        "69.3% kept",
        "173.9 M",  # FLOPs
        "2 \N{MULTIPLICATION SIGN} MACs",
        "855.4 k",  # parameters and gates
        "lose at most 0.5 points of accuracy",
        "met on test",
        "99.20%",  # accuracy of those that left at layer1
        "71.20%",  # accuracy of layer1 on all
        "4bfd9763" * 8,
        "adaptify retrofit resnet56-4bfd9763.th --data 'my images' --max-drop 0.5",
        "loss=hinge",
        "torch 2.15.0",
        "24.0 GiB",
        "2 min 11 s",
        "64.0 M",  # median
        "125.5 M",  # p95
    ):
        assert figure in text, figure


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = render_html(parse_report(sample_report()))
    parsed = Page(html)
    assert re.search(r"(https?:)?//\w", html) is None
    assert "@import" not in html
    assert "url(" not in html
    assert parsed.tags().isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:image/png;base64,"[:5])
    policy = next(a["content"] for t, a in parsed.elements if t == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_page_suits_a_phone_and_the_dark() -> None:
    html = render_html(parse_report(sample_report()))
    assert 'name="viewport" content="width=device-width' in html
    assert "prefers-color-scheme: dark" in html
    assert len(re.findall(r'class="narrow"', html)) == len(re.findall(r'class="wide"', html)) == 3
    drawn = "".join(re.findall(r"<svg.*?</svg>", html))
    assert not re.search(r"#[0-9a-f]{3,6}|rgb\(", drawn)  # colours come from the page


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</title></svg><b>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "\x1b[2J\u202egnp.exe",
    "]]><!--",
    "&lt;script&gt;",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    value = sample_report()
    honest = Page(render_html(parse_report(value)))
    value["data"]["classes"] = [f"{name}{i}" for i in range(10)]
    value["data"]["name"] = value["model"]["architecture"] = value["model"]["checkpoint"] = name
    value["model"]["kwargs"] = {name: name}
    value["method"] = {"name": name, "options": {name: [name]}}
    value["notes"] = value["data"]["notes"] = value["command"] = [name]
    value["environment"] = value["environment"] | {name: {name: name}}
    value["calibration"]["split"] = name
    value["adaptify"] = name
    for part in (*value["exits"], *value["layers"]):
        part["name"] = name
    for example in (*value["examples"]["easy"], *value["examples"]["hard"]):
        example["label"] = example["predicted"] = example["exit"] = name
    html = render_html(parse_report(value))
    parsed = Page(html)
    assert parsed.tags() <= honest.tags()
    known = {key for _, attributes in honest.elements for key in attributes}
    assert {key for _, attributes in parsed.elements for key in attributes} <= known
    assert "\x1b" not in html
    assert "\u202e" not in html
    if name.isprintable():
        assert name in "".join(parsed.words)


def test_a_thousand_classes_are_shown_by_their_ends() -> None:
    names = [f"class {i:04d}" for i in range(1000)]
    counts = [[1000 - i for i in range(1000)], [0] * 1000, [0] * 1000, list(range(1000))]
    data = sample_report()["data"] | {"classes": names}
    text = page(data=data, classes_per_exit=counts).text
    assert "976 classes lie between" in text
    assert "class 0000" in text
    assert "class 0999" in text
    assert "class 0500" not in text


def test_a_report_without_exits_leaves_their_sections_out() -> None:
    value = sample_report(frontier=[], classes_per_exit=[], calibration=None, examples={}, layers=[])
    value["exits"] = [value["exits"][-1] | {"share": 1.0}]
    text = Page(render_html(parse_report(value))).text
    assert "93.95%" in text
    for title in ("Where samples leave", "Which classes", "Easy and hard", "Accuracy against", "Layers"):
        assert title not in text


def test_an_exit_that_nobody_takes_is_shown_as_such() -> None:
    value = sample_report()
    value["exits"][1] |= {"share": 0.0, "samples": 0, "accuracy_left": None, "threshold": None}
    assert "never" in Page(render_html(parse_report(value))).text


def test_a_missed_target_says_so() -> None:
    value = sample_report()
    value["calibration"]["request"] = {"max_drop": 0.1}
    text = Page(render_html(parse_report(value))).text
    assert "missed on test" in text
    assert "met on test" not in text


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (0.9395, "for 0.42 points of accuracy"),
        (0.9437, "at the same accuracy"),
        (0.9453, "gains 0.16 points"),
    ],
)
def test_the_first_sentence_tells_what_it_cost(after: float, sentence: str) -> None:
    value = sample_report()
    value["after"]["accuracy"] = after
    assert sentence in Page(render_html(parse_report(value))).text


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    write_html(parse_report(sample_report()), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_svg_escapes_what_it_is_given() -> None:
    svg = Svg(10, 10, 'a "label" <b>')
    svg.text(1, 2, "<script>", 'x" onload="y')
    svg.circle(1, 2, 3, "dot", "</title>")
    drawn = Page(str(svg.markup()))
    assert [tag for tag, _ in drawn.elements] == ["svg", "text", "circle", "title"]
    assert drawn.elements[1][1]["class"] == 'x" onload="y'
    assert drawn.elements[0][1]["aria-label"] == 'a "label" <b>'


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.9123, 0.9441), (0.3, 1.03), (0.94, 0.9401)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 6)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1
    assert ticks(0.5, 0.5) == [0.5]


def test_labels_are_moved_apart_and_stay_inside() -> None:
    assert apart([10, 50, 90], 20, 0, 100) == [10, 50, 90]
    assert apart([40, 41, 42], 20, 0, 100) == [40, 60, 80]
    assert apart([95, 96, 97], 20, 0, 100) == [60, 80, 100]


def test_each_exit_has_its_own_colour() -> None:
    for count in (1, 2, 3, 9):
        colours = palette(count)
        assert len(colours) == count
        assert len({light for light, _ in colours}) == count
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for pair in colours for colour in pair)
