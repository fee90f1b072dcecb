"""Artifacts whose plan asks for more than the file holds, for code, or for a newer adaptify."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NoReturn

import pytest

from adaptify import artifact
from adaptify.errors import ModelError
from adaptify.plan import FORMAT, PLAN_VERSION

from . import samples
from .little_memory import in_little_memory

HUGE = 10**12


def write(path: Path, change: dict[str, Any], sample: int = 0) -> Path:
    """Write a sample with values of its plan replaced, by their dotted places."""
    data = samples.artifacts()[sample]
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    plan = json.loads(header["__metadata__"][FORMAT])
    for place, value in change.items():
        holder: Any = plan
        *parts, last = place.split(".")
        for part in parts:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        holder[int(last) if isinstance(holder, list) else last] = value
    text = json.dumps(plan)
    header["__metadata__"][FORMAT] = text
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[end:])
    return path


@pytest.mark.parametrize(
    ("change", "sample", "told"),
    [
        ({"steps.0.channels": HUGE}, 0, "less than or equal to"),
        ({"steps.0.channels": 1 << 20}, 0, "(1048576 channels)"),
        ({"steps.0.classes": 1 << 24}, 0, "far larger than the tensors"),
        ({"steps.0.head": "convolutional", "steps.0.width": 4096}, 0, "far larger than the tensors"),
        ({"architecture.kwargs": {"widths": [HUGE] * 3}}, 0, f"with the number {HUGE}"),
        ({"architecture.kwargs": {"widths": [1 << 20] * 3}}, 0, "far larger than the tensors"),
        ({"architecture.kwargs": {"widths": [1 << 20] * 3}}, 2, "far larger than the tensors"),
        ({"architecture.kwargs": {"widths": [4] * 100_000}}, 0, "far larger than the tensors"),
        ({"architecture.kwargs": {"num_classes": 1 << 20, "widths": [4, 4, 512]}}, 0, "far larger than"),
        ({"architecture.name": "torchvision:vit_h_14", "architecture.kwargs": {}}, 0, "far larger than"),
        ({"architecture.input.height": HUGE}, 0, "images of 1x1000000000000x8"),
        ({"architecture.input.channels": 10**9, "architecture.input.mean": [0.1] * 9}, 0, "every channel"),
    ],
)
def test_a_network_is_no_larger_than_its_file(
    change: dict[str, Any], sample: int, told: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "model.safetensors", change, sample)
    said = in_little_memory(lambda: artifact.load(path))
    assert said.startswith("ModelError: ")
    assert str(path) in said
    assert told in said


def test_a_network_is_not_taken_apart_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reshape(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("nothing is done before all is counted")

    monkeypatch.setattr("adaptify.assembly.decouple", reshape)
    step = {"op": "decouple_blocks", "blocks": ["layer1.0"]}
    path = write(tmp_path / "model.safetensors", {"steps": [step] * 4096, "policy": None})
    with pytest.raises(ModelError, match="the network was reshaped 4096 times, and 24 are the most"):
        artifact.load(path)


def test_a_billion_sites_are_too_many(tmp_path: Path) -> None:
    step = {"op": "place_exit", "site": "layer1", "channels": 4, "classes": 10}
    path = write(tmp_path / "model.safetensors", {"steps": [step] * 100_000})
    said = in_little_memory(lambda: artifact.load(path))
    assert said.startswith(f"ModelError: the plan in {path} is damaged at steps: ")


def test_lists_within_lists_without_end_are_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"method": "@deep@"})
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].replace(b'\\"@deep@\\"', b"[" * 50_000 + b"]" * 50_000)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[end:])
    with pytest.raises(ModelError, match="nested too deeply"):
        artifact.load(path)


@pytest.mark.parametrize("name", ["os:system", "subprocess:check_output", "builtins:eval", "no.such:thing"])
def test_code_that_a_plan_names_is_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kwargs = {"command": "touch executed"}
    path = write(tmp_path / "model.safetensors", {"architecture.name": name, "architecture.kwargs": kwargs})
    with pytest.raises(ModelError) as caught:
        artifact.load(path)
    assert caught.value.message == f"{path} is built by {name}: loading it runs that code"
    assert not Path("executed").exists()


def test_a_plan_of_a_newer_version_is_refused_with_the_version_that_it_needs(tmp_path: Path) -> None:
    change = {"version": PLAN_VERSION + 1, "adaptify": "9.8.7", "steps": "something new"}
    path = write(tmp_path / "model.safetensors", change)
    with pytest.raises(ModelError) as caught:
        artifact.load(path)
    assert caught.value.message == (
        f"{path} has plan version {PLAN_VERSION + 1}; this adaptify reads version {PLAN_VERSION}"
    )
    assert caught.value.hint == "Update adaptify: the file was written by version 9.8.7."
