"""`.safetensors` files: the tensors of a network without decisions, under the names of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from adaptify.errors import TargetError
from adaptify.exports.facts import KEY, dumps
from adaptify.files import write_tensors
from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced

Runner = Callable[[Tensor], tuple[Tensor, ...]]


def tensors_of(network: Traced) -> dict[str, Tensor]:
    """The state dict of a network; tied tensors are there under each of their names."""
    state = network.root.state_dict()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def write_network(path: Path, network: Traced, facts: dict[str, Any]) -> None:
    """Write the tensors of `network`, with the facts as metadata.

    Raises:
        OSError: The file cannot be written.
    """
    write_tensors(path, tensors_of(network), {KEY: dumps(facts)})


def open_network(path: Path, network: Traced) -> Runner:
    """Fill what the file holds into a copy of `network`, and return how to run that.

    Raises:
        TargetError: The file does not hold the tensors of the network.
    """
    again = network.with_own_tensors()
    state = again.root.state_dict()
    read = load_file(path)
    if read.keys() != state.keys() or not all(torch.equal(read[name], state[name]) for name in state):
        raise TargetError(
            "the file was written but reads back differently", "The disk or memory is faulty: try again."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.zero_()
            tensor.copy_(read[name])
    program = compile_graph(again.graph)
    root = again.root.eval()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (program(root, images),)

    return run
