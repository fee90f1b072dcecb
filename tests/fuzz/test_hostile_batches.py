"""Batches of CIFAR that are after memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptify.data.cifar import read_batch

from .little_memory import in_little_memory

TERABYTE = (1 << 40).to_bytes(8, "little")


def test_an_object_may_be_remembered_by_any_number(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # an empty dict, as number 2^31 - 1
    assert in_little_memory(lambda: read_batch(path)) == ""
    assert read_batch(path) == {}


@pytest.mark.parametrize("kind", [b"\x8e", b"\x95"], ids=["bytes", "a frame"])
def test_what_a_batch_says_of_sizes_gets_no_memory(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x04" + kind + TERABYTE)
    assert in_little_memory(lambda: read_batch(path)).startswith(f"UsageError: cannot read {path}")
