from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adaptify.cli.main import main
from adaptify.version import VERSION

HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "jinja2", "rich", "yaml")


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["--version"], ["report", "--help"], ["recipes", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from adaptify.cli.main import main; code = main(sys.argv[2:]); "
        "print('heavy:', [name for name in sys.argv[1].split(',') if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, ",".join(HEAVY), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.rstrip().endswith("heavy: []")
    assert done.stderr == ""


def test_alone_it_shows_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"adaptify {command}") for command in ("demo", "retrofit", "calibrate", "report")]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adaptify {VERSION}\n"


@pytest.mark.parametrize(("word", "meant"), [("reprot", "report"), ("Report", "report"), ("evn", "env")])
def test_an_unknown_command_is_answered_with_the_nearest(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        f"error: unknown command '{word}'; did you mean '{meant}'?",
        "  `adaptify --help` lists the commands.",
    ]


def test_a_word_far_from_every_command_gets_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["env", "--jsn"], ["calibrate", "a", "b"], ["--nonsense"]])
def test_wrong_arguments_are_two_lines_and_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert "--help" in second


def test_mistakes_in_arguments_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    wrong = [
        "calibrate",
        "calibrate --budget 0.5K",
        "calibrate --confidence 0.9",
        "calibrate nowhere --budget 0.5",
        "evaluate nowhere",
        "evaluate --budget half",
        "retrofit",
        "retrofit x.pth --data d --budget 0.5K",
        "retrofit x.pth --input-size large",
        "prune nowhere",
        "prune --importance l2 --method gumbel",
        "export nowhere",
        "bench nowhere",
    ]
    script = (
        "import sys; from adaptify.cli.main import main; "
        "print([(main(line.split()), 'torch' in sys.modules) for line in sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *wrong], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == f"{[(2, False)] * len(wrong)}\n"
    assert done.stderr.count("error: ") == len(wrong)
