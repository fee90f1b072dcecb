"""Run folders: whole or not there, but weights that were trained stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptify.errors import AdaptifyError
from adaptify.pipeline import folder


def fail(output: Path) -> None:
    with folder.new_run("net", output=output) as run:
        (run.work / folder.REPORT).write_text("{}")
        raise AdaptifyError("no luck", "Try again.")


def test_nothing_is_left_of_a_run_that_trained_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdaptifyError):
        fail(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def fail_with_checkpoints(output: Path) -> None:
    with folder.new_run("net", output=output) as run:
        checkpoint = run.work / folder.CHECKPOINTS / "last.safetensors"
        checkpoint.parent.mkdir()
        checkpoint.write_text("weights")
        raise AdaptifyError("the loss is not finite", f"The last good weights are in {checkpoint}.")


def test_checkpoints_of_a_failed_run_stay_and_are_named(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(AdaptifyError) as caught:
            fail_with_checkpoints(tmp_path / "run")
        named = Path(caught.value.hint.split()[-1].rstrip("."))
        assert named.read_text() == "weights"
    # The second failure did not take the first one's weights away.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.unfinished", "run.unfinished2"]
