"""Batches of CIFAR that are after memory."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from adaptify.data.cifar import CIFAR10, read_batch, read_images
from adaptify.errors import UsageError

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


def test_bytes_are_not_encoded_over_and_over(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    longer = b"X\x03\x00\x00\x00hex\x86R"
    text = b"X\x10\x00\x00\x00" + b"a" * 16 + b"X\x06\x00\x00\x00latin1\x86R"
    path.write_bytes(b"\x80\x02" + b"c_codecs\nencode\n" * 41 + text + longer * 40 + b".")
    assert "it encodes text as 'hex'" in in_little_memory(lambda: read_batch(path))


def test_a_text_that_is_asked_for_often_is_encoded_once(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    size = 1 << 20
    begin = b"\x80\x02c_codecs\nencode\nq\x00X" + size.to_bytes(4, "little") + b"a" * size
    begin += b"q\x01X\x06\x00\x00\x00latin1q\x02000"
    again = b"h\x00h\x01h\x02\x86R"
    path.write_bytes(begin + b"}X\x01\x00\x00\x00a](" + again * 4096 + b"es.")
    assert in_little_memory(lambda: read_batch(path)) == ""  # 4 GiB, were each a copy
    assert len(read_batch(path)["a"]) == 4096


def test_an_array_takes_no_more_than_its_values(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    path.write_bytes(b"\x80\x02}U\x04data" + make + b"I" + b"9" * 12 + b"\n\x85U\x01b\x87Rs.")
    assert "an array without its values" in in_little_memory(lambda: read_batch(path))


def test_a_batch_of_any_size_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.touch()
    os.truncate(path, 64 << 30)
    assert "it is larger than 1 GiB" in in_little_memory(lambda: read_batch(path))


def test_labels_may_be_anything_but_labels(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    for labels in ([[1]], [{}], [None], [2.5], ["1"], [10**30], {0: 1}):
        path.write_bytes(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": labels}))
        with pytest.raises(UsageError, match="has no list 'labels' of 1 numbers below 10"):
            read_images(path, CIFAR10, 10)
