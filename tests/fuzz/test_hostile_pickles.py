"""Pickles whose few bytes call for ever more memory or time, and sound ones that must not pass for such."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adaptify.bounds import room
from adaptify.checkpoint import read_checkpoint
from adaptify.checkpoint.pickle_costs import UnboundedError
from adaptify.checkpoint.pickle_scan import scan
from adaptify.checkpoint.pickles import unpickle
from adaptify.errors import ModelError

from .little_memory import in_little_memory

MANY = 100_000


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def named(function: str) -> bytes:
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


NUMBERS = b"](" + b"".join(map(number, range(MANY))) + b"e"
TUPLE = b"(" + b"N" * MANY + b"t"
KEYS = b"}(" + b"".join(number(key) + b"N" for key in range(MANY)) + b"u"
TEXT = text("a" * MANY)
SET = named("builtins.set") + b"q\x02"
# A list of 100 times a list of 100 times a list ... of hardly any bytes, and the same with tuples.
LISTS = b"]q\x05" + (b"](" + b"h\x05" * 100 + b"eq\x05") * 8
TUPLES = b")q\x05" + (b"(" + b"h\x05" * 100 + b"tq\x05") * 8
# A tensor whose 10^9 elements are one.
STORAGE = b"(" + text("storage") + named("torch.FloatStorage") + text("0") + text("cpu") + b"K\x01tQ"
SIDES = b"K\x00" + number(10**9) + b"\x85K\x00\x85\x89" + named("collections.OrderedDict") + b")R"
EXPANDED = named("torch._utils._rebuild_tensor_v2") + b"(" + STORAGE + SIDES + b"tR"

ONE = b"h\x00h\x01\x85R"  # a call with one argument


def calls(function: str, argument: bytes, call: bytes = ONE, times: int = MANY) -> bytes:
    """Put a function and an argument into the memo, and call it many times in a few bytes each."""
    return b"\x80\x02](" + named(function) + b"q\x00" + argument + b"q\x01" + call * times + b"e."


def coded(codec: str, errors: str = "") -> bytes:
    return b"h\x00h\x01" + text(codec) + (text(errors) + b"\x87R" if errors else b"\x86R")


BOMBS: dict[str, tuple[bytes, str]] = {
    "sets": (calls("builtins.set", NUMBERS), "builtins.set"),
    "sets by their old name": (calls("__builtin__.set", NUMBERS), "builtins.set"),
    "sets by another function": (
        calls("torch._tensor._rebuild_from_type_v2", SET + NUMBERS, b"h\x00(h\x02h\x02h\x01\x85NtR"),
        "builtins.set",
    ),
    "ordered dictionaries": (calls("collections.OrderedDict", KEYS), "collections.OrderedDict"),
    "counters": (calls("collections.Counter", NUMBERS), "collections.Counter"),
    "counters of letters": (calls("collections.Counter", TEXT), "collections.Counter"),
    "sizes": (calls("torch.Size", TUPLE), "torch.Size"),
    "tensors": (calls("torch.Tensor", NUMBERS), "torch.Tensor"),
    "float tensors": (calls("torch.FloatTensor", NUMBERS), "torch.FloatTensor"),
    "new tensors": (calls("torch.FloatTensor", NUMBERS, b"h\x00h\x01\x85\x81"), "torch.FloatTensor"),
    "a tensor of lists in lists": (calls("torch.LongTensor", LISTS, times=1), "torch.LongTensor"),
    "a set of a tensor": (calls("builtins.set", EXPANDED, times=1), "builtins.set"),
    "a tensor of another type": (
        calls(
            "torch._utils._rebuild_device_tensor_from_cpu_tensor",
            EXPANDED,
            b"h\x00(h\x01" + named("torch.float64") + text("cpu") + b"\x89tR",
            1,
        ),
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    ),
    "an array": (calls("numpy.ndarray", number(10**9) + b"\x85", times=1), "numpy.ndarray"),
    "types of arrays": (calls("numpy.dtype", text("f4," * MANY)), "numpy.dtype"),
    "bytes": (calls("_codecs.encode", TEXT, coded("latin1")), "_codecs.encode with latin1"),
    "slow bytes": (calls("_codecs.encode", TEXT, coded("punycode"), 1), "_codecs.encode with punycode"),
    "names of letters": (
        calls("_codecs.encode", text("\u0b94" * 10**6), coded("ascii", "namereplace"), 1),
        "_codecs.encode with ascii",
    ),
    "filled bytes": (calls("builtins.bytearray", number(10**8), times=1), "builtins.bytearray"),
    "copied bytes": (calls("builtins.bytearray", NUMBERS), "builtins.bytearray"),
    "attributes": (calls("collections.OrderedDict", KEYS, b"h\x00)Rh\x01b"), "a state"),
    "a key of tuples in tuples": (calls("builtins.set", TUPLES, b"}h\x05Ns", 1), "a key made of tuples"),
    "a set of tuples in tuples": (calls("builtins.set", TUPLES, b"h\x00](h\x05e\x85R", 1), "builtins.set"),
    "a key too deep": (calls("builtins.set", b")" + b"\x85" * MANY, b"}h\x01Ns", 1), "a key made of tuples"),
}


@pytest.mark.parametrize("kind", list(BOMBS))
def test_calls_that_add_up_are_refused(kind: str, tmp_path: Path) -> None:
    content, told = BOMBS[kind]
    (tmp_path / "bad.pth").write_bytes(content)
    said = in_little_memory(lambda: read_checkpoint(tmp_path / "bad.pth"), seconds=60)
    assert said.startswith(f"ModelError: {tmp_path / 'bad.pth'} holds more than tensors: it refers to ")
    assert f"it refers to {told}, which could take any amount of memory" in said


def test_a_storage_is_not_read_once_for_each_way_to_write_its_name(tmp_path: Path) -> None:
    storages = (STORAGE.replace(text("0"), text(name)) for name in ("ab", "aB"))
    content = b"\x80\x02](" + b"".join(storages) + b"e."
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        archive.writestr("bad/data.pkl", content)
        archive.writestr("bad/data/ab", b"\0" * 4)
        archive.writestr("bad/version", "3\n")
    with pytest.raises(ModelError, match="a storage is named 'aB' and otherwise"):
        read_checkpoint(tmp_path / "bad.pth")


@pytest.mark.parametrize("content", [b"\x80\x02R.", b"\x80\x02(\x86.", b"\x80\x02h\x07.", b"\x80\x02t."])
def test_what_takes_more_than_there_is_counts_as_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(ModelError, match="is damaged or cut short"):
        read_checkpoint(tmp_path / "bad.pth")


def trained() -> dict[str, Any]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    return {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


def nested(levels: int) -> dict[str, Any]:
    return {"inner": nested(levels - 1), "values": [1, 2.0, "three"]} if levels else {}


SOUND: dict[str, Any] = {
    "trained": trained(),
    "parameters": nn.ParameterDict({"a": nn.Parameter(torch.ones(3))}).state_dict(keep_vars=True),
    "plain values": {
        "args": argparse.Namespace(lr=0.1, sizes=[1, 2]),
        "seen": {1, 2},
        "raw": bytearray(b"ab"),
    },
    "counted": collections.Counter(range(10_000)),
    "ordered": collections.OrderedDict((str(key), [key]) for key in range(10_000)),
    "keys of tuples": {(row, (column, "x")): None for row in range(100) for column in range(100)},
    "bytes": b"\xff\0" * 900,
    "scalars": [np.float32(2), np.str_("ab"), np.datetime64("2020-01-01"), np.bool_(True)],
    "many scalars": [np.float64(value) for value in range(5_000)],
    "sizes": {"shape": torch.Size([2, 3]), "device": torch.device("cpu"), "type": torch.float16},
    "deep": nested(100),
}


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("kind", list(SOUND))
def test_what_training_leaves_is_read(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    torch.save(SOUND[kind], tmp_path / "good.pth", **how)
    found = unpickle(tmp_path / "good.pth", trust=False)
    assert repr(found) == repr(SOUND[kind])


ARRAYS: dict[str, Any] = {
    "numbers": np.arange(10_000.0),
    "the other byte order": np.arange(6, dtype=">i4").reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "texts": np.array(["a", "bc"]),
    "days": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "fields": np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8", (1,))]),
    "objects": np.array([1, "two", None], dtype=object),
    "one": np.array(3),
}


@pytest.mark.parametrize("kind", list(ARRAYS))
def test_arrays_are_read(kind: str, tmp_path: Path) -> None:
    torch.save({"array": ARRAYS[kind]}, tmp_path / "good.pth")
    found = unpickle(tmp_path / "good.pth", trust=False)["array"]
    assert found.dtype == pickle.loads(pickle.dumps(ARRAYS[kind], 2)).dtype  # in this machine's byte order
    assert found.shape == ARRAYS[kind].shape
    assert found.tolist() == ARRAYS[kind].tolist()


class State:
    """An array or a type with a state that numpy would not have written."""

    def __init__(self, made: Any, state: Any) -> None:
        self.made, self.state = made, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (*self.made.__reduce__()[:2], self.state)


HIDDEN = State(np.dtype("V8"), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))


@pytest.mark.parametrize(
    "state",
    [
        (1, (10**6,), np.dtype("O"), False, [1]),
        (1, (1,), HIDDEN, False, b"\x01" * 8),
        (1, (10**6,), np.dtype("f8"), False, b"\0" * 8),
    ],
)
def test_an_array_takes_no_more_than_its_content(state: tuple[Any, ...], tmp_path: Path) -> None:
    value = {"weight": torch.ones(1), "extra": State(np.empty(0), state)}
    torch.save(value, tmp_path / "bad.pth")
    said = in_little_memory(lambda: read_checkpoint(tmp_path / "bad.pth"))
    assert said.startswith(f"ModelError: {tmp_path / 'bad.pth'} is damaged or cut short: a")


@pytest.mark.parametrize("protocol", [2, 3])
def test_other_protocols_are_read(protocol: int, tmp_path: Path) -> None:
    torch.save(SOUND["trained"], tmp_path / "good.pth", pickle_protocol=protocol)
    found = unpickle(tmp_path / "good.pth", trust=False)
    assert repr(found) == repr(SOUND["trained"])


@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_of_protocols_that_torch_cannot_read_the_scan_says_no_more(protocol: int, tmp_path: Path) -> None:
    torch.save(SOUND["ordered"], tmp_path / "bad.pth", pickle_protocol=protocol)
    with pytest.raises(ModelError, match="is a pickle of a protocol that cannot be read without running it"):
        unpickle(tmp_path / "bad.pth", trust=False)


def test_thousands_of_tensors_are_read(tmp_path: Path) -> None:
    tensors = {f"layer{index}": tensor for index, tensor in enumerate(torch.arange(20_000.0).split(1))}
    torch.save({"numbers": list(range(300_000)), **tensors}, tmp_path / "good.pth")
    found = unpickle(tmp_path / "good.pth", trust=False)
    assert found.pop("numbers") == list(range(300_000))
    assert found == tensors


def test_only_what_adds_up_is_too_much() -> None:
    assert list(scan(io.BytesIO(calls("builtins.set", NUMBERS, times=10)), 1, room(0))) == ["builtins.set"]
    with pytest.raises(UnboundedError, match=r"builtins\.set"):
        list(scan(io.BytesIO(calls("builtins.set", NUMBERS, times=100)), 1, room(0)))
