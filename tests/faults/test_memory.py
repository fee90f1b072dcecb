"""Memory that does not suffice for a batch: said, or gone round with smaller ones that mean the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import RUN, Cli, read_report
from torch import nn

from adaptify.data import Data, open_data
from adaptify.errors import ShortMemoryError
from adaptify.input_spec import InputSpec
from adaptify.pipeline import auto_batch
from adaptify.progress import SILENT
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel
from adaptify.training.loop import train
from adaptify.training.objective import Classification
from adaptify.training.options import LoopOptions

GUMBEL = ("digits.pt", "--data", "digits", "--method", "gumbel", "train.epochs=1", "train.batch_size=64")
CPU = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def fits(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], name: str, most: int, error: Exception
) -> None:
    """Let a method of a network fail for more than `most` images."""
    run: Callable[..., Any] = getattr(kind, name)

    def limited(self: nn.Module, images: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if len(images) > most and (name != "forward" or self.training):
            raise error
        return run(self, images, *rest, **named)

    monkeypatch.setattr(kind, name, limited)


@pytest.mark.parametrize(
    "error", [RuntimeError(CPU), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_training_says_which_batch_was_too_large(
    error: Exception, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits(monkeypatch, GatedModel, "forward", 16, error)
    said = cli("retrofit", *GUMBEL, "-q")
    assert said.code == 1
    assert said.err.splitlines() == [
        "error: out of memory in training, with batches of 64 images",
        "  Cut batches into parts with train.micro_batches=2, or let --auto-batch do it.",
    ]


def test_training_goes_on_in_parts(home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fits(monkeypatch, GatedModel, "forward", 16, torch.OutOfMemoryError("CUDA out of memory"))
    said = cli("retrofit", *GUMBEL, "--auto-batch", "-o", "smaller")
    assert said.code == 0, said.err
    assert "going on in 2 parts" in said.err
    assert "going on in 4 parts" in said.err
    assert "at most 16 images at a time" in said.err
    recipe = yaml.safe_load(Path("smaller/recipe.yaml").read_text())
    assert recipe["train"]["micro_batches"] == 4
    assert recipe["train"]["batch_size"] == 64
    assert read_report(Path("smaller"))["training"]["options"]["micro_batches"] == 4
    # It is what a run with these settings gives.
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert cli("retrofit", *GUMBEL, "train.micro_batches=4", "-q", "-o", "asked").code == 0
    assert Path("asked/model.safetensors").read_bytes() == Path("smaller/model.safetensors").read_bytes()


def test_a_run_that_ran_out_of_memory_goes_on_with_smaller_batches(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptify.training.state import States

    save = States.save

    def then_short(states: States, state: Any) -> None:
        save(states, state)
        fits(monkeypatch, GatedModel, "forward", 32, MemoryError())

    monkeypatch.setattr(States, "save", then_short)
    said = cli("retrofit", *GUMBEL, "train.epochs=2")
    assert said.code == 1
    assert "adaptify retrofit --resume runs/digits_resnet-gumbel-001.unfinished" in said.err
    done = cli("retrofit", "--resume", "--auto-batch")
    assert done.code == 0, done.err
    assert "1 of 2 epochs are done" in done.err
    assert "going on in 2 parts" in done.err


def test_evaluation_halves_its_batches(home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cli("evaluate", RUN, "--json").json
    fits(monkeypatch, AdaptiveModel, "run", 100, RuntimeError(CPU))
    said = cli("evaluate", RUN)
    assert said.code == 1
    assert "out of memory with batches of 256 images" in said.err
    assert "--batch-size 128" in said.err
    assert "--auto-batch" in said.err
    said = cli("evaluate", RUN, "--auto-batch", "--json")
    assert said.code == 0
    assert "out of memory with batches of 128 images: going on with 64" in said.err
    assert said.json["accuracy"] == whole["accuracy"]
    assert said.json["macs"] == whole["macs"]


def test_not_even_one_image() -> None:
    sizes: list[int] = []

    def work(size: int) -> None:
        sizes.append(size)
        raise MemoryError

    with pytest.raises(ShortMemoryError, match="with a batch of one image") as caught:
        auto_batch.in_batches(work, 10, halve=True, progress=SILENT)
    assert sizes == [10, 5, 2, 1]
    assert "more memory" in caught.value.hint


def test_other_errors_are_not_taken_for_it() -> None:
    def work(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        auto_batch.in_batches(work, 8, halve=True, progress=SILENT)


class Plain(nn.Module):
    """A network in which every image is on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def trained(data: Data, folder: Path, micro_batches: int, batch_size: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Plain()
    options = LoopOptions(epochs=1, batch_size=batch_size, lr=0.1, accumulate=2, micro_batches=micro_batches)
    train(model, data, options, objective=Classification(), device="cpu", seed=0, folder=folder)
    return model.state_dict()


@pytest.mark.parametrize("parts", [2, 3, 64])
def test_the_step_in_parts_is_the_step(parts: int, tmp_path: Path) -> None:
    data = open_data("digits", input=InputSpec(1, 8, 8, mean=(0.5,), std=(0.5,)))
    whole = trained(data, tmp_path / "whole", 1, 64)
    cut = trained(data, tmp_path / "cut", parts, 64)
    moved = trained(data, tmp_path / "other", 1, 32)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(moved["layers.1.weight"], whole["layers.1.weight"], atol=1e-3)
