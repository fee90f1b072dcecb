"""Does time fall as MACs fall? Pruned networks against whole ones, equally optimised, in turns.

Both have BatchNorm folded, channels_last memory and packed, fused convolutions (`runtime.optimize`); in
onnxruntime, what its graph optimiser makes of the exported network. The gap is the ratio of times less the
ratio of MACs. Weights are random.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_blocks
from adaptify.graph.surgery import remove_blocks
from adaptify.graph.trace import Traced, trace
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
from tests.benchmarks.pruning import ours
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.benchmarks.timing import interleaved, median_ratio

NETWORKS = "torchvision:resnet50,adaptify:cifar_resnet56"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--networks", default=NETWORKS, help="names with commas between")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--engines", default="pytorch,onnxruntime")
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument(
        "--by",
        choices=tuple(WAYS),
        default="channels",
        help="what is removed: channels by l2, or whole residual blocks, evenly spread",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    title = f"Pruned to {arguments.target} of the MACs, {arguments.threads} threads"
    columns = ["network", "engine", "batch", "ms, whole", "ms, pruned", "MACs", "time", "gap"]
    print_head(title, columns)
    for name in arguments.networks.split(","):
        architecture = resolve(name)
        torch.manual_seed(0)
        model, shape = architecture.build().eval(), architecture.input.shape
        whole, pruned = WAYS[arguments.by](model, shape, arguments)
        kept = CostModel(pruned).total / CostModel(whole).total
        for engine in arguments.engines.split(","):
            for batch in map(int, arguments.batches.split(",")):
                images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
                runs = [ENGINES[engine](network, images, arguments.threads) for network in (whole, pruned)]
                cells = measure(runs, kept, arguments.rounds)
                print_row([name, engine, batch, *cells])


def _by_channels(
    model: nn.Module, shape: tuple[int, int, int], arguments: argparse.Namespace
) -> tuple[Traced, Traced]:
    pruned = ours.prune(model, shape, arguments.target, round_to=arguments.round_to)
    return pruned.channels.traced, pruned.traced


def _by_blocks(
    model: nn.Module, shape: tuple[int, int, int], arguments: argparse.Namespace
) -> tuple[Traced, Traced]:
    """Without so many of the blocks whose shortcut is the identity that the target is met or just passed."""
    whole = trace(model, shape)
    cost = CostModel(whole)
    blocks = [block for block in find_blocks(whole, cost) if not block.shortcut_macs]
    for count in range(len(blocks) + 1):
        chosen = [blocks[index * len(blocks) // count] for index in range(count)]
        if cost.total - sum(block.macs for block in chosen) <= arguments.target * cost.total:
            return whole, remove_blocks(whole, chosen)
    sys.exit(f"{arguments.target} of the MACs is out of reach for whole blocks")


WAYS: dict[str, Callable[..., tuple[Traced, Traced]]] = {"channels": _by_channels, "blocks": _by_blocks}


def measure(runs: list[Callable[[], object]], kept: float, rounds: int) -> list[str]:
    """Milliseconds of the whole and the pruned network, the ratios of MACs and of times, and the gap."""
    whole, pruned = interleaved(runs, rounds)
    ratio = median_ratio(pruned, whole)
    milliseconds = [f"{1000 * statistics.median(times):.2f}" for times in (whole, pruned)]
    return [*milliseconds, f"{kept:.3f}", f"{ratio:.3f}", f"{ratio - kept:+.3f}"]


def _pytorch(traced: Traced, images: Tensor, threads: int) -> Callable[[], object]:
    fast = optimize(AdaptiveModel(traced).eval())

    @torch.inference_mode()
    def run() -> object:
        return fast(images)

    return run


def _onnxruntime(traced: Traced, images: Tensor, threads: int) -> Callable[[], object]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        sys.exit("onnxruntime is not installed: pip install onnx onnxruntime onnxscript")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        _exported(AdaptiveModel(traced).eval().backbone().root, images),
        options,
        providers=["CPUExecutionProvider"],
    )
    name, values = session.get_inputs()[0].name, images.numpy()
    with torch.inference_mode():
        expected = AdaptiveModel(traced).eval()(images)
    found = torch.from_numpy(session.run(None, {name: values})[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    return lambda: session.run(None, {name: values})


def _exported(network: nn.Module, images: Tensor) -> bytes:
    """The network in ONNX, for batches of this size."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        program: Any = torch.onnx.export(network, (images,), dynamo=True, verbose=False)
    data: bytes = program.model_proto.SerializeToString()
    return data


ENGINES: dict[str, Callable[[Traced, Tensor, int], Callable[[], object]]] = {
    "pytorch": _pytorch,
    "onnxruntime": _onnxruntime,
}
