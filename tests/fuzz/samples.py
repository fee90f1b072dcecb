"""Valid files of every kind that adaptify reads, small ones, as bytes."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tempfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from adaptify import artifact
from adaptify.assembly import assemble
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.methods import find_method
from adaptify.models.registry import resolve
from adaptify.plan import PlaceExit, Plan, RemoveChannels
from adaptify.recipe import dump_recipe
from adaptify.recipe import resolve as resolve_recipe
from adaptify.runtime.policy import ThresholdPolicy
from adaptify.training.history import EpochRow, Validation
from adaptify.training.objective import Classification
from adaptify.training.state import States, TrainingState

# The reports that the tests of that room are about.
sys.path.append(str(Path(__file__).parents[1] / "reports"))

from exits_sample import jointly_trained
from gating_sample import gated_report
from report_sample import sample_report

KWARGS = {"widths": [4, 4, 8]}
"""Of the network that most of them are about."""


@cache
def network() -> torch.nn.Module:
    """A network of a few hundred parameters."""
    torch.manual_seed(0)
    return resolve("adaptify:digits_resnet", KWARGS).build().eval()


@cache
def checkpoints() -> tuple[bytes, ...]:
    """What torch.save writes in both of its formats."""
    weights = network().state_dict()
    values = OrderedDict(
        state_dict=weights,
        epoch=3,
        arch="digits_resnet",
        accuracy=np.float64(0.9),
        names=np.array(["a", "b"]),
    )
    return tuple(_torch_saved(value, zipped) for value in (weights, values) for zipped in (True, False))


@cache
def tensor_files() -> tuple[bytes, ...]:
    """What safetensors writes."""
    weights = {name: tensor.contiguous() for name, tensor in network().state_dict().items()}
    return (save(weights), save(weights, {"format": "pt", "arch": "digits_resnet"}))


@cache
def artifacts() -> tuple[bytes, ...]:
    """An artifact with exits, one with gates that look at the sample, one of which channels were removed."""
    return tuple(_artifact(kind) for kind in ("exits", "gates", "removed"))


@cache
def recipes() -> tuple[bytes, ...]:
    """Recipes as run folders hold them, and one with little in it."""
    options = {"model.checkpoint": "digits.pt", "data.source": "digits"}
    made = [dump_recipe(resolve_recipe(name, options=options)) for name in ("dgate", "gumbel", "importance")]
    short = (
        "# A recipe\nmethod: dgate\nmodel: {arch: adaptify:digits_resnet}\ntrain:\n  epochs: 3\n  lr: 1e-3\n"
    )
    return (*(text.encode() for text in made), short.encode())


@cache
def images() -> tuple[bytes, ...]:
    """One image in each format."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    written = []
    for name, shown in (
        *((name, image) for name in ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")),
        ("GIF", image.convert("P")),
        ("PNG", image.convert("RGBA")),
        ("TIFF", Image.fromarray(pixels[..., 0].astype(np.uint16))),
    ):
        stream = io.BytesIO()
        shown.save(stream, name)
        written.append(stream.getvalue())
    return tuple(written)


@cache
def batches() -> tuple[bytes, ...]:
    """Batches of CIFAR-10."""
    data = np.zeros((4, 3072), dtype=np.uint8)
    return (pickle.dumps({b"data": data, b"labels": [0, 1, 2, 3], b"batch_label": b"x"}, protocol=2),)


@cache
def records() -> tuple[bytes, ...]:
    """Scores and predictions of two exits."""
    tensors: dict[str, torch.Tensor] = {}
    for split in ("holdout", "test"):
        tensors[f"{split}.scores"] = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
        tensors[f"{split}.predictions"] = torch.zeros(3, 8, dtype=torch.int64)
        tensors[f"{split}.labels"] = torch.zeros(8, dtype=torch.int64)
    return (save(tensors, {"format": "adaptify.records", "version": "1"}),)


@cache
def beginnings() -> tuple[bytes, ...]:
    """What a run notes when it begins."""
    recipe = resolve_recipe("dgate", options={"model.checkpoint": "digits.pt", "data.source": "digits"})
    value = {
        "format": "adaptify.unfinished",
        "version": 1,
        "adaptify": "0.1.0",
        "command": "retrofit",
        "force": False,
        "recipe": recipe.model_dump(mode="json"),
        "source": {"checkpoint": "digits.pt", "sha256": "0" * 64},
        "data": {"name": "digits", "classes": ["0", "1"], "train": 10},
        "machine": {"torch": "2.6", "device": "cpu"},
    }
    return (json.dumps(value).encode(),)


@cache
def reports() -> tuple[bytes, ...]:
    """Reports of networks with exits and with gates."""
    return tuple(
        json.dumps(value).encode() for value in (sample_report(), jointly_trained(3), gated_report())
    )


@cache
def states() -> tuple[bytes, ...]:
    """The state of a training after its first epoch."""
    state = training_state()
    state.rows.append(EpochRow(0, 0.1, 0.5, 0.5, Validation(0.5, activity=(0.5,)), 100.0, 1.0))
    with tempfile.TemporaryDirectory() as folder:
        States(Path(folder)).save(state)
        return (next(Path(folder).iterdir()).read_bytes(),)


def training_state() -> TrainingState:
    """A training of a small network, before its first epoch."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainingState(model, optimizer, None, None, Classification())


def _torch_saved(value: Any, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _artifact(kind: str) -> bytes:
    architecture = resolve("adaptify:digits_resnet", KWARGS)
    traced = trace(network(), architecture.input.shape)
    cost = CostModel(traced)
    policy = None
    if kind == "exits":
        site = find_exits(traced, cost)[0]
        steps: tuple[Any, ...] = (PlaceExit(site=site.name, channels=site.channels, classes=10),)
        policy = ThresholdPolicy((0.5,)).to_json()
    else:
        method = find_method("gumbel")
        steps = method(method.Gates(), method.Train()).place(traced, cost, 10)
    if kind == "removed":
        place = next(place for place in steps[-1].sites if place.position != "layer")
        keep = {place.name: {"size": place.size, "kept": [0, 1]}}
        steps = (*steps[:-1], RemoveChannels.model_validate({"keep": keep}))
    frontier = {
        "base_accuracy": 0.9,
        "base_macs": cost.total,
        "policy": policy,
        "points": [{"thresholds": [None], "accuracy": 0.9, "macs": cost.total, "exit_shares": [0, 1]}],
    }
    plan = Plan.model_validate(
        {
            "architecture": architecture.to_json(),
            "steps": steps,
            "frontier": frontier if policy else None,
            "source": {"checkpoint": "digits.pt", "sha256": "0" * 64},
            "base_macs": cost.total,
        }
    )
    model = assemble(traced, plan.steps, policy).eval()
    model.plan = plan
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(model, Path(folder) / "model.safetensors")
        return (Path(folder) / "model.safetensors").read_bytes()
