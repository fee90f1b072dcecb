"""Whether the graph of a network computes what the network does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adaptify.bounds import brief
from adaptify.errors import ModelError
from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced

_TOLERANCE = 1e-3


def check_agreement(network: nn.Module, traced: Traced) -> None:
    """Hold the graph against the network that it was traced from, on two images of noise.

    Tracing runs the code of a network once and without values. What the code does otherwise the next time, or
    behind the tracer's back, is not in the graph.

    Args:
        network: Maps (N, C, H, W) to logits (N, M), or to several, the last of which the graph returns. In
            evaluation mode.
        traced: Its graph, in evaluation mode.

    Raises:
        ModelError: Their logits differ, or one of them fails.
    """
    tensor = next(network.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *traced.input_shape, generator=generator).to(tensor.device, tensor.dtype)
    run = compile_graph(traced.graph)
    try:
        wanted, found = _run(network, images), _run(lambda images: run(traced.root, images), images)
    except MemoryError:
        raise
    except Exception as error:  # from code that is not ours
        raise ModelError(
            f"{type(network).__name__} fails on two images of noise: {brief(error) or type(error).__name__}",
            f"It has to run on the CPU, for images of shape {tuple(images.shape)} and type {images.dtype}.",
        ) from error
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return  # that it returns no logits is for others to say
    limit = _TOLERANCE * float(wanted.abs().max())
    if not torch.allclose(found, wanted, rtol=0, atol=limit, equal_nan=True):
        raise ModelError(
            f"the graph of {type(network).__name__} computes something else than the network itself",
            "Its forward must depend on nothing but weights and images: not on counters, the time, or what "
            "other code keeps.",
        )


def _run(network: Callable[[Tensor], object], images: Tensor) -> object:
    # The same noise for both, for networks that draw some.
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        result = network(images.clone())
    return result[-1] if isinstance(result, (tuple, list)) and result else result
