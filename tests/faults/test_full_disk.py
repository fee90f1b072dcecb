"""A disk that is full at any write: commands say so, what was there stays, and nothing looks finished.

Default: commands that write little, at each of their writes. Slow: all commands, and real disks of all sizes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import RUN, snapshot
from disk import Disk, Fault

GUMBEL = ("retrofit", "digits.pt", "--data", "digits", "--method", "gumbel", "train.epochs=2", "-q")
LITTLE = {
    "cp": ("recipes", "cp", "dgate/resnet56_cifar10", "mine.yaml"),
    "report": ("report", str(RUN), "-q"),
    "calibrate": ("calibrate", str(RUN), "--max-drop", "2", "-q"),
}
MUCH = {
    "retrofit": ("retrofit", "digits.pt", "--data", "digits", "train.epochs=1", "-q"),
    "gumbel": GUMBEL,
    "replaced": (
        "retrofit",
        "digits.pt",
        "--data",
        "digits",
        "train.epochs=1",
        "-q",
        "--force",
        "-o",
        str(RUN),
    ),
    "prune": ("prune", "digits.pt", "-t", "0.6", "--importance", "l2", "-q"),
    "onnx": ("export", str(RUN), "--format", "onnx"),
    "python": ("export", "pruned", "--format", "python"),
    "safetensors": ("export", "pruned", "--format", "safetensors"),
    "demo": ("demo", "-q"),
}
# What is finished and has its name before the rest of a command begins.
FIRST = {"demo": "adaptify-demo/digits_resnet.pt"}


def unfinished(name: str) -> bool:
    """Whether a file belongs to a run that is known to be unfinished."""
    return re.search(r"(^|/)(\.[^/]+\.part|[^/]+\.unfinished\d*)/", name) is not None


def named(fault: Fault) -> bool:
    """Whether the message names the file that failed, by the name that it was to have, or its folder."""
    path = Path(fault.failed.partition(" ")[2])
    temporary = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", path.name)
    name = temporary.group(1) if temporary else path.name.removesuffix(".old")
    return f"{name}: " in fault.err or f"{path.parent.name}: " in fault.err or ".tmp" in name


def harm(fault: Fault) -> list[str]:
    """What is lost, and what is new and looks finished, or as if adaptify did not know what happened."""
    words = [word for word in ("Traceback", "unexpected") if word in fault.err]
    return [*fault.lost, *(name for name in fault.new if not unfinished(name)), *words]


@pytest.mark.parametrize(
    "stays", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["once", "for good"]
)
@pytest.mark.parametrize("command", ["cp", "report", pytest.param("calibrate", marks=pytest.mark.slow)])
def test_a_full_disk_at_any_write(command: str, stays: bool, home: Path, disk: Disk) -> None:
    faults = 0
    for fault in disk.failures(home, *LITTLE[command], error=errno.ENOSPC, stays=stays):
        faults += 1
        assert fault.code == 1, fault
        assert "No space left on device" in fault.err
        assert "Free some space" in fault.err
        assert named(fault), fault
        assert harm(fault) == [], fault
    assert faults >= 5


@pytest.mark.parametrize("error", [errno.EROFS, pytest.param(errno.EACCES, marks=pytest.mark.slow)])
def test_a_folder_that_must_not_be_written(error: int, home: Path, disk: Disk) -> None:
    for words in (LITTLE["report"], LITTLE["cp"], MUCH["retrofit"]):
        fault = disk.run(home, *words, at=1, error=error, stays=True)
        assert fault.code in (1, 2)
        assert os.strerror(error) in fault.err
        assert "permissions" in fault.err or "another --output" in fault.err
        assert fault.before == fault.after


@pytest.mark.slow
def test_a_run_goes_on_when_there_is_room_again(home: Path, disk: Disk) -> None:
    left = home.with_name("left")
    shutil.copytree(home, left)
    # The state of the second epoch finds no room: the first one's is there.
    fault = disk.run(left, *GUMBEL[:-1], at=1, of="epoch-000002", error=errno.ENOSPC)
    assert fault.code == 1
    assert "epoch-000002.safetensors: No space left on device" in fault.err
    assert "adaptify retrofit --resume runs/digits_resnet-gumbel-001.unfinished" in fault.err
    assert harm(fault) == [], fault
    goes_on = disk.run(left, "retrofit", "--resume")
    assert goes_on.code == 0, goes_on.err
    assert "1 of 2 epochs are done" in goes_on.err
    whole = disk.run(home, *GUMBEL)
    assert whole.code == 0
    model = "runs/digits_resnet-gumbel-001/model.safetensors"
    assert goes_on.after[model] == whole.after[model]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("stays", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("command", MUCH)
def test_a_full_disk_at_any_write_of_long_commands(command: str, stays: bool, home: Path, disk: Disk) -> None:
    made = disk.run(home, "prune", "digits.pt", "-t", "0.6", "--importance", "l2", "-q", "-o", "pruned")
    assert made.code == 0
    first = FIRST.get(command)
    copy = home.with_name("whole")
    shutil.copytree(home, copy)
    whole = disk.run(copy, *MUCH[command])
    assert whole.code == 0
    faults = 0
    for fault in disk.failures(home, *MUCH[command], error=errno.ENOSPC, stays=stays):
        faults += 1
        assert fault.code in (1, 2), fault  # 2: there was no room for a folder, and no work began
        assert "No space left on device" in fault.err
        assert first not in fault.after or fault.after[first] == whole.after[first]
        assert [item for item in harm(fault) if item != first] == [], fault
    assert faults >= 5


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount a real disk of a few kilobytes on; skips where that is not allowed."""
    place = tmp_path / "small"
    place.mkdir()
    trial = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True
    )
    if trial.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(small: Path, home: Path, disk: Disk) -> None:
    fault = disk.run(home, "report", RUN, "-q", "-o", small / "page.html")
    assert fault.code == 1
    assert "page.html: No space left on device" in fault.err
    assert list(small.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    fault = disk.run(home, "report", RUN, "-q", "-o", small / "page.html")
    assert fault.code == 1
    assert "page.html: Read-only file system" in fault.err
    assert "Check the permissions" in fault.err


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_real_disks_of_all_sizes(small: Path, home: Path, disk: Disk) -> None:
    sizes = range(100, 8000, 300)
    codes = []
    for kilobytes in sizes:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(small)], check=True)
        fault = disk.run(home, *GUMBEL, "-o", small / "run")
        codes.append(fault.code)
        assert fault.before == fault.after
        assert (small / "run").exists() == (fault.code == 0)
        assert fault.code == 0 or "No space left on device" in fault.err
        for entry in small.iterdir():
            shutil.rmtree(entry)
    assert codes[0] == 1
    assert codes[-1] == 0


@pytest.mark.parametrize("of", [".changed", pytest.param("", marks=pytest.mark.slow)])
def test_a_calibration_that_is_killed_is_done_or_not(of: str, home: Path, disk: Disk) -> None:
    before = snapshot(home / RUN)
    done = disk.run(home, *LITTLE["calibrate"])
    assert done.code == 0
    after = json.loads((home / RUN / "report.json").read_text())["calibration"]
    for name, content in before.items():
        (home / RUN / name).write_bytes(content)
    seen = set()
    for fault in disk.failures(home, *LITTLE["calibrate"], of=of, error=0):
        assert fault.code == -9
        shown = disk.run(fault.root, "report", RUN, "-q")
        assert shown.code == 0, shown.err
        found = json.loads(shown.after[f"{RUN}/report.json"])["calibration"]
        moved = shown.after[f"{RUN}/model.safetensors"] != before["model.safetensors"]
        # The network and what is said of it are of one time: both the old ones, or both the new ones.
        assert moved == (found == after)
        assert not any(".changed" in name for name in shown.after)
        seen.add(moved)
    assert seen == {False, True}
