from __future__ import annotations

import io
from typing import Any

import pytest
from report_sample import sample_report
from rich.console import Console

from adaptify.reports.schema import parse_report
from adaptify.reports.tables import report_tables


def lines(value: dict[str, Any], width: int = 80, **options: Any) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for table in report_tables(parse_report(value), **options):
        console.print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def row(text: list[str], start: str) -> str:
    return " ".join(next(line for line in text if line.startswith(start)).split())


def test_the_tables_say_the_figures_in_80_columns() -> None:
    text = lines(sample_report())
    assert all(len(line) <= 80 for line in text)
    assert row(text, "Accuracy") == "Accuracy 94.37% 93.95% -0.42 points"
    assert row(text, "MACs per sample ") == "MACs per sample 125.5 M 86.9 M 69.3% kept"
    assert row(text, "FLOPs per sample") == "FLOPs per sample 251.0 M 173.9 M 2 x MACs"
    assert row(text, "layer2.3 ") == "layer2.3 25.0% 64.0 M 51.0% 0.5 82.30% 98.10%"
    assert row(text, "output") == "output 39.0% 125.5 M 100.0% - 94.37% 86.90%"
    assert row(text, "layer3.8.conv2") == "layer3.8.conv2 Conv2d 64x8x8 36.9 k 2.36 M 36.0% 849.3 k"
    assert row(text, "truck") == "truck 12% 25% 15% 48% 75.1%"
    joined = " ".join(text)
    assert "mean 86.9 M, median 64.0 M, p95 125.5 M" in joined
    assert "met on test" in " ".join(joined.split())


def test_the_chosen_point_of_the_frontier_is_marked() -> None:
    marked = [line for line in lines(sample_report()) if "chosen" in line]
    assert len(marked) == 1
    assert marked[0].split()[:2] == ["69.6%", "87.3"]


def test_the_headline_comes_last_and_layers_can_be_left_out() -> None:
    text = lines(sample_report(), layers=False)
    assert not any("Conv2d" in line for line in text)
    titles = [
        line.split()[0] for line in text if line.startswith(("Frontier", "Classes", "Exits", "adaptify:"))
    ]
    assert titles == ["Frontier", "Classes", "Exits", "adaptify:cifar_resnet56,"]


def test_long_names_are_cut_off_and_numbers_are_not() -> None:
    value = sample_report()
    for exit_ in value["exits"]:
        exit_["name"] = "features." * 9 + exit_["name"]
    value["layers"][0] |= {"name": "block." * 20, "macs": 10**12, "shape": [1000, 224, 224]}
    value["data"]["classes"] = ["a class with a very long name indeed, or two of them, even " * 2] * 10
    text = lines(value)
    assert all(len(line) <= 80 for line in text)
    joined = "\n".join(text)
    for number in ("1000x224x224", "1.00 T", "99.20%", "0.75", "44.0 M", "35.1%", "71.20%", "75.1%"):
        assert number in joined, number


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/nonsense]", "\x1b[31mred", "a\nb\rc", ":smile:"])
def test_names_are_shown_as_they_are(name: str) -> None:
    value = sample_report()
    value["exits"][0]["name"] = name
    value["layers"][0]["name"] = name
    value["data"]["classes"] = [name, *value["data"]["classes"][1:]]
    value["data"]["name"] = name
    joined = "\n".join(lines(value))
    assert "\x1b" not in joined
    assert "\r" not in joined
    if name.isprintable():
        assert joined.count(name) >= 4


def test_many_classes_and_exits_still_fit() -> None:
    value = sample_report(frontier=[], calibration=None)
    value["exits"] = [value["exits"][0] | {"name": f"exit{i}"} for i in range(8)] + [value["exits"][-1]]
    value["data"]["classes"] = [f"class {i}" for i in range(100)]
    value["classes_per_exit"] = [[1 + i] * 100 for i in range(9)]
    text = lines(value)
    assert all(len(line) <= 80 for line in text)
    assert any(line.startswith("88 more classes") for line in text)
