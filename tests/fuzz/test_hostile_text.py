"""Recipes, reports and names that want to run code, use up memory, or drive a terminal or a page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from adaptify.cli.main import main
from adaptify.errors import AdaptifyError, RecipeError, UsageError
from adaptify.pipeline.unfinished import find_unfinished
from adaptify.recipe import check
from adaptify.reports.html import render_html
from adaptify.reports.schema import parse_report, read_report
from adaptify.settings import parse_overrides

from . import samples
from .little_memory import in_little_memory

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
EVIL = "<script>alert(1)</script>\x1b]0;owned\x07\x1b[2J\n\u202e"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "aliases (*name) are not read"),
        ("method: !!python/object/apply:os.system ['touch executed']\n", "could not determine a constructor"),
        ("method: !!python/name:os.system\n", "could not determine a constructor"),
        ("train: " + "[" * 50_000, "nested too deeply"),
        ("train: " + "{a: " * 500 + "1" + "}" * 500, "nested too deeply"),
        ("".join(f"key{n}: {n}\n" for n in range(10**6)), "larger than 1 MiB"),
        ("".join(f"key{n}: {n}\n" for n in range(10**4)), "unknown key"),
        ("train: {epochs: " + "9" * 5000 + "}\n", "not YAML text"),
        ("method: " + "x" * 10**5 + "\n", "unknown method"),
    ],
)
def test_recipes_cost_no_more_than_they_say(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    said = in_little_memory(lambda: check(tmp_path / "bad.yaml"))
    assert said.startswith(f"RecipeError: {tmp_path / 'bad.yaml'}")
    assert told in said
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "value", ["[" * 50_000, "9" * 5000, "&a [*a]", "!!timestamp 2001-99-99", "!!binary x"]
)
def test_settings_of_the_command_line_are_read_as_recipes_are(value: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.lr: cannot read the value"):
        parse_overrides([f"train.lr={value}"])


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (
            {"arch": "os:system", "arch_kwargs": {"command": "touch executed"}},
            "builds the network by os:system",
        ),
        ({"trust_pickle": True}, "trusts the code that weights.pth names"),
    ],
)
@pytest.mark.parametrize("command", ["retrofit", "prune"])
def test_a_recipe_cannot_ask_to_run_code(
    command: str,
    section: dict[str, Any],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").write_bytes(samples.checkpoints()[0])
    recipe = {
        "method": "gumbel",
        "data": {"source": "digits"},
        "model": {"checkpoint": "weights.pth", **section},
    }
    Path("bad.yaml").write_text(json.dumps(recipe))
    assert main([command, "--recipe", "bad.yaml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"the recipe {told}" in said
    assert "--trust-code" in said
    assert not Path("executed").exists()


@pytest.mark.parametrize("kind", ["recipe of stages", "stopped stages", "stopped sweep"])
@pytest.mark.parametrize("section", [{"arch": "os:system"}, {"trust_pickle": True}])
def test_recipes_of_several_runs_cannot_ask_to_run_code(
    kind: str,
    section: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").write_bytes(samples.checkpoints()[0])
    if "arch" in section:
        section = {**section, "arch_kwargs": {"command": "touch executed"}}
    shared = {"model": {"checkpoint": "weights.pth", **section}, "data": {"source": "digits"}}
    stages = {**shared, "stages": [{"command": "retrofit", "method": "dgate"}]}
    run = tmp_path / "from_others"
    run.mkdir()
    if kind == "recipe of stages":
        (run / "bad.yaml").write_text(json.dumps(stages))
        command = ["retrofit", "--recipe", str(run / "bad.yaml")]
    elif kind == "stopped stages":
        (run / "stages.json").write_text(json.dumps({"version": 1, "recipe": stages}))
        command = ["retrofit", "--resume", str(run)]
    else:
        point = {"name": "a", "command": "retrofit", "status": "open", "error": ""}
        value = {"version": 1, "points": [{**point, "recipe": {"method": "dgate", **shared}}]}
        (run / "sweep.json").write_text(json.dumps(value))
        command = ["sweep", "--resume", str(run)]
    before = sorted(run.iterdir())
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "the recipe " in said
    assert "--trust-code" in said
    assert sorted(run.iterdir()) == before
    assert not Path("executed").exists()


def deep(value: dict[str, Any]) -> str:
    return json.dumps(value | {"notes": ["@deep@"]}).replace('"@deep@"', "[" * 50_000 + "]" * 50_000)


def wide(value: dict[str, Any]) -> str:
    return json.dumps(value | {"created": "9" * 10}).replace('"' + "9" * 10 + '"', "9" * 400)


@pytest.mark.parametrize(("change", "told"), [(deep, "nested too deeply"), (wide, "has more than 64 bits")])
def test_reports_and_notes_of_runs_are_json_within_bounds(
    change: Callable[[dict[str, Any]], str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text(change(json.loads(samples.reports()[0])))
    (tmp_path / "unfinished.json").write_text(change(json.loads(samples.beginnings()[0])))
    said = in_little_memory(lambda: read_report(tmp_path / "report.json"))
    assert said.startswith(f"UsageError: {tmp_path / 'report.json'}")
    assert told in said
    (tmp_path / "report.json").unlink()
    said = in_little_memory(lambda: find_unfinished(tmp_path, "retrofit"))
    assert said.startswith(f"UsageError: {tmp_path / 'unfinished.json'}")
    assert told in said


def test_a_run_cannot_be_resumed_into_another_folder(tmp_path: Path) -> None:
    value = json.loads(samples.beginnings()[0])
    for key in ("output", "folder", "final"):
        (tmp_path / "unfinished.json").write_text(json.dumps(value | {key: "../../elsewhere"}))
        with pytest.raises(UsageError, match=r"unfinished\.json is damaged"):
            find_unfinished(tmp_path, "retrofit")


def evil(value: Any) -> Any:
    """All names in a report replaced by one that drives terminals and pages."""
    if isinstance(value, dict):
        return {
            key: item if key in ("image", "created", "format") else evil(item) for key, item in value.items()
        }
    if isinstance(value, list):
        return [evil(item) for item in value]
    return EVIL + value if isinstance(value, str) and value not in KINDS else value


KINDS = (
    "holdout",
    "layer",
    "channel",
    "gates",
    "saliences",
    "threshold",
    "always-on",
    "stochastic",
    "ensemble",
)


@pytest.mark.parametrize("index", range(3))
def test_no_name_gets_into_a_page_or_onto_a_terminal_as_it_is(index: int) -> None:
    from adaptify.reports.tables import report_tables

    report = parse_report(evil(json.loads(samples.reports()[index])))
    page = render_html(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not [character for character in ("\x1b", "\x07", "\u202e") if character in page]
    shown = io.StringIO()
    for table in report_tables(report, layers=True):
        RichConsole(file=shown, width=200).print(table)
    assert "alert" in shown.getvalue()
    assert not [character for character in ("\x1b", "\x07", "\u202e") if character in shown.getvalue()]


def test_errors_are_printed_without_what_drives_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "\x1b[2J.pth"]) == 2
    said = capsys.readouterr().err
    assert "\\x1b[2J.pth" in said
    assert "\x1b" not in said


def test_recipes_are_found_by_name_in_their_library_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptify.recipe_library import find_recipe

    monkeypatch.chdir(tmp_path)
    for name in (
        "../pyproject",
        "dgate/../../pyproject",
        "/etc/passwd.yaml",
        "dgate/../dgate/resnet56_cifar10",
    ):
        with pytest.raises(AdaptifyError, match="there is no recipe"):
            find_recipe(name)
