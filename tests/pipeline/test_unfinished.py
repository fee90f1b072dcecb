"""Folders of runs that were stopped: how they are told from others, taken up again, and left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptify.errors import AdaptifyError, OutsideError, UsageError
from adaptify.pipeline import folder
from adaptify.pipeline.unfinished import differences


def begin(run: folder.NewRun) -> None:
    """Fill a run as one that has trained an epoch and is writing its results."""
    (run.work / folder.STATES / "network").mkdir(parents=True)
    (run.work / folder.STATES / "network/epoch-000001.safetensors").write_text("state")
    (run.work / folder.UNFINISHED).write_text("{}")
    (run.work / folder.REPORT).write_text("half")
    (run.work / "scratch").mkdir()
    (run.work / "scratch/cache").write_text("large")


def fail(stem: str, error: BaseException, **given: Any) -> None:
    with folder.new_run(stem, **given) as run:
        begin(run)
        raise error


def stopped(output: Path, error: BaseException) -> list[Path]:
    told: list[Path] = []
    with pytest.raises(type(error)):
        fail("net", error, output=output, left=told.append)
    return told


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_what_is_stopped_keeps_what_was_trained(tmp_path: Path) -> None:
    kept = tmp_path / "run.unfinished"
    assert stopped(tmp_path / "run", KeyboardInterrupt()) == [kept]
    assert names(kept) == {folder.STATES, folder.UNFINISHED}
    assert folder.is_left(kept)
    assert folder.left_behind(tmp_path / "run") == [kept]


def test_what_would_fail_again_is_not_recommended(tmp_path: Path) -> None:
    assert stopped(tmp_path / "run", AdaptifyError("the loss is not finite", "Lower it.")) == []
    full = OutsideError("cannot write", "Free some space.")
    assert stopped(tmp_path / "run", full) == [tmp_path / "run.unfinished2"]


def test_what_goes_on_gets_its_name_and_leaves_nothing(tmp_path: Path) -> None:
    (kept,) = stopped(tmp_path / "run", KeyboardInterrupt())
    with folder.new_run("net", resumed=kept) as run:
        assert run.work == tmp_path / ".run.part"
        assert run.final == tmp_path / "run"
        assert (run.work / folder.STATES / "network/epoch-000001.safetensors").read_text() == "state"
        (run.work / folder.REPORT).write_text("whole")
    assert names(tmp_path) == {"run"}
    assert names(tmp_path / "run") == {folder.REPORT}
    assert not folder.is_left(tmp_path / "run")


def test_a_folder_that_was_moved_keeps_its_new_name(tmp_path: Path) -> None:
    (kept,) = stopped(tmp_path / "run", KeyboardInterrupt())
    moved = kept.rename(tmp_path / "mine")
    assert folder.is_left(moved)
    with folder.new_run("net", resumed=moved) as run:
        (run.work / folder.REPORT).write_text("whole")
    assert names(tmp_path) == {"mine"}


def test_a_run_that_was_killed_while_it_got_its_name_is_whole(tmp_path: Path) -> None:
    # The name is there, and so is what is removed after that.
    begin(folder.NewRun(tmp_path / "run", tmp_path / "run"))
    assert not folder.is_left(tmp_path / "run")
    assert folder.left_behind(tmp_path / "run") == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with folder.new_run("net", output=tmp_path / "run") as run:
        begin(run)
        assert not folder.is_left(run.work)
        with (
            pytest.raises(UsageError, match="another process is filling"),
            folder.new_run("net", resumed=run.work),
        ):
            raise AssertionError
        with (
            pytest.raises(UsageError, match="another process is filling"),
            folder.new_run("net", output=tmp_path / "run"),
        ):
            raise AssertionError
    assert names(tmp_path) == {"run"}


def test_a_name_that_is_taken_is_told_before_the_work(tmp_path: Path) -> None:
    (kept,) = stopped(tmp_path / "run", KeyboardInterrupt())
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="is there already"), folder.new_run("net", resumed=kept):
        raise AssertionError
    assert folder.is_left(kept)


def test_numbers_of_what_was_stopped_are_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail("net", KeyboardInterrupt())
    assert names(tmp_path / "runs") == {"net-001.unfinished", "net-002.unfinished"}


def test_differences_name_the_key_and_both_values() -> None:
    before = {"train": {"lr": 0.1, "epochs": 2, "distill": None}, "words": {}, "gone": 1}
    now = {"train": {"lr": 0.2, "epochs": 2, "distill": {"weight": 1.0}}, "words": {}, "list": ["a" * 90]}
    assert differences(before, before) == []
    assert differences(before, now) == [
        "train.lr: 0.1, now 0.2",
        "train.distill: null, now nothing",
        "gone: 1, now nothing",
        "train.distill.weight: nothing, now 1.0",
        f'list: nothing, now ["{"a" * 55}...',
    ]
