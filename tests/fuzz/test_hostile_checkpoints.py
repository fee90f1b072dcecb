"""Checkpoints that want to run code, or to use up memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptify.checkpoint import read_checkpoint
from adaptify.errors import ModelError

from .little_memory import in_little_memory

CANARY = "executed"


class Calls:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.how = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.how


def bombs() -> dict[str, tuple[Any, str]]:
    """What is to be called, and the name of what of it a reader meets first."""
    system = Calls(os.system, f"touch {CANARY}")
    code = f"open('{CANARY}', 'w').close()"
    return {
        "a shell": (system, "posix.system"),
        "eval": (Calls(eval, code), "builtins.eval"),
        "exec": (Calls(exec, code), "builtins.exec"),
        "one in another": (Calls(list, [Calls(print, [system])]), "builtins.list"),
        "an attribute": (Calls(getattr, Path, "touch"), "getattr"),
        "a class": (Calls(Path, system), "pathlib.Path"),
    }


def zipped(value: Any, path: Path) -> None:
    torch.save({"state_dict": {"a.weight": torch.ones(2)}, "extra": value}, path)


def legacy(value: Any, path: Path) -> None:
    torch.save({"a.weight": torch.ones(2), "extra": value}, path, _use_new_zipfile_serialization=False)


def plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({"a.weight": value}, protocol=2))


def newest(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({"a.weight": value}, protocol=5))


@pytest.mark.parametrize("save", [zipped, legacy, plain, newest])
@pytest.mark.parametrize("kind", ["a shell", "eval", "exec", "one in another", "an attribute", "a class"])
def test_code_is_refused_by_its_name(
    kind: str, save: Callable[[Any, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value, name = bombs()[kind]
    save(value, tmp_path / "bad.pth")
    with pytest.raises(ModelError) as caught:
        read_checkpoint("bad.pth")
    assert caught.value.message.startswith("bad.pth holds more than tensors: it refers to ")
    assert name.rpartition(".")[2] in caught.value.message
    assert "nothing of it was executed" in caught.value.message
    assert "--trust-pickle" in caught.value.hint
    assert not Path(CANARY).exists()


def test_the_canary_lives_where_code_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zipped(bombs()["a shell"][0], tmp_path / "bad.pth")
    read_checkpoint("bad.pth", trust_pickle=True)
    assert Path(CANARY).exists()


def test_code_in_an_archive_of_the_oldest_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Calls(os.system, f"touch {CANARY}"), protocol=2)
    with tarfile.open("bad.pth", "w") as archive:
        for name in ("\x80", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(bomb)
            archive.addfile(entry, io.BytesIO(bomb))
    with pytest.raises(ModelError, match="is a tar archive"):
        read_checkpoint("bad.pth", trust_pickle=True)
    assert not Path(CANARY).exists()


def deflated(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(10)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            with archive.open(name, "w") as entry:
                for _ in range(128 if name.endswith("data/0") else 1):
                    entry.write(b"\0" * (1 << 20) if name.endswith("data/0") else content)


def expanded(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1).expand(10**6, 10**6)}, path)


def filled(path: Path) -> None:
    # A call of bytearray with a number, which fills as many bytes.
    path.write_bytes(pickle.dumps({"a.weight": Calls(bytearray, 1 << 36)}, protocol=2))


LATIN1, HEX = b"X\x06\x00\x00\x00latin1\x86R", b"X\x03\x00\x00\x00hex\x86R"
# Bytes, and 40 times twice as many.
TEXT = b"X\x01\x00\x00\x00a"
DOUBLED = b"\x80\x02}" + TEXT + b"c_codecs\nencode\n" * 41 + TEXT + LATIN1 + HEX * 40 + b"s."


def encoded(path: Path) -> None:
    torch.save({"a.weight": torch.ones(1)}, path)
    with_pickles(path, (("data.pkl", DOUBLED),))


def encoded_in_one_of_two(path: Path) -> None:
    torch.save({"a.weight": torch.ones(1)}, path)
    with_pickles(path, (("data.pkl", DOUBLED), ("data.pkl", pickle.dumps({}, protocol=2))))


def encoded_under_another_case(path: Path) -> None:
    torch.save({"a.weight": torch.ones(1)}, path)
    with_pickles(path, (("DATA.PKL", DOUBLED), ("data.pkl", pickle.dumps({}, protocol=2))))


def encoded_before_an_archive(path: Path) -> None:
    torch.save({"a.weight": torch.ones(1)}, path)
    path.write_bytes(DOUBLED + path.read_bytes())


def with_pickles(path: Path, pickles: tuple[tuple[str, bytes], ...]) -> None:
    """Put other pickles into an archive of torch.save."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    root = entries[0][0].partition("/")[0]
    kept = [(name, content) for name, content in entries if not name.endswith("data.pkl")]
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are two entries of one name is the point
        for name, content in [*((f"{root}/{name}", content) for name, content in pickles), *kept]:
            archive.writestr(name, content)


def scalar(path: Path) -> None:
    # numpy would fill a number of any width with zeros.
    call = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\x00\x00\x00V2000000000\x85R\x85R"
    path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s.")


def long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2 << 30) + b"{" + b" " * 100)


def sparse(path: Path) -> None:
    """64 GiB that take no place on the disk, of which all would be a header."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", (64 << 30) - 8) + b"{")
        file.truncate(64 << 30)


def overlapping(path: Path) -> None:
    half = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": half, "b": {**half, "data_offsets": [4, 12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 12)


def beyond_the_end(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (deflated, "unpacks to 128.0 MiB from"),
        (expanded, "repeats its values: 'weight' has the shape 1000000x1000000"),
        (filled, "bytearray, which could take any amount of memory"),
        (encoded, "_codecs.encode with hex, which could take any amount of memory"),
        (encoded_in_one_of_two, "_codecs.encode with hex, which could take any amount of memory"),
        (encoded_under_another_case, "_codecs.encode with hex, which could take any amount of memory"),
        (encoded_before_an_archive, "_codecs.encode with hex, which could take any amount of memory"),
        (scalar, "is damaged or cut short"),
        (long_header, "bad.pth"),
        (sparse, "its header would take 64.0 GiB"),
        (overlapping, "is damaged or cut short"),
        (beyond_the_end, "is damaged or cut short"),
    ],
)
def test_memory_is_not_taken_on_a_files_word(make: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    make(tmp_path / "bad.pth")
    said = in_little_memory(lambda: read_checkpoint(tmp_path / "bad.pth"))
    assert said.startswith("ModelError: ")
    assert str(tmp_path / "bad.pth") in said
    assert told in said


def test_dictionaries_that_hold_each_other_are_looked_through_once(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"weight": torch.ones(1)}
    for _ in range(6):
        inner = {f"key{index}": inner for index in range(50)}
    torch.save(inner, tmp_path / "bad.pth")
    said = in_little_memory(lambda: read_checkpoint(tmp_path / "bad.pth"), seconds=60)
    assert "holds more than 1000 sets of weights" in said


def test_a_name_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"a." * 500_000 + "weight": torch.ones(1)}, tmp_path / "bad.pth")
    said = in_little_memory(lambda: read_checkpoint(tmp_path / "bad.pth"), seconds=60)
    assert "whose name has 1000006 characters" in said
