"""Files of tensors: what is written, and that it does not depend on chance."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from adaptify.files import write_tensors


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
