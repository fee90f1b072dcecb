"""Files of tensors: what is written, and that it does not depend on chance."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from adaptify.files import OLD, replace_all, write_tensors


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.int8), "ü": torch.zeros(0)}
    metadata = {name: f'"{name}"\n\u2028é' for name in ("version", "format", "more", "x")}
    found = set()
    for number in range(20):  # the library draws the order of metadata anew each time
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, tensors, metadata)
        found.add(path.read_bytes())
    assert len(found) == 1
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == metadata
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without"])
def test_a_killed_replacement_is_done_again(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    new, old = [tmp_path / "new" / name for name in "ab"], [tmp_path / name for name in "ab"]
    (tmp_path / "new").mkdir()
    for file in (*new, *old):
        file.write_text(f"{file.parent.name} {file.name}")
    # What a process leaves that is killed after it gave the old file a second name, or wrote half of a copy.
    (tmp_path / "new" / f"a{OLD}").write_text("half")
    if not links:
        monkeypatch.setattr(os, "link", refused)
    replace_all(new, old)
    assert [file.read_text() for file in old] == ["new a", "new b"]
    assert not any((tmp_path / "new").iterdir())
