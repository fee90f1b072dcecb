"""Which networks can be pruned: traced, pruned to half the MACs, and held against the masked network.

The networks have random weights and their own input size. The error is the largest difference of the
outputs for two random images, relative to the largest output. Seconds: tracing, choosing and removing.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from adaptify.errors import AdaptifyError
from adaptify.graph.cost import CostModel
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.trace import Traced
from adaptify.models.registry import resolve
from adaptify.text import quantity
from tests.benchmarks.pruning import ours
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.families import FAMILIES, scramble

TIMM = (
    "resnetv2_50",
    "resnest14d",
    "res2net50_26w_4s",
    "seresnet18",
    "skresnet18",
    "ecaresnet50t",
    "dpn48b",
    "dla34",
    "hrnet_w18_small",
    "repvgg_a0",
    "regnety_002",
    "nfnet_l0",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "mixnet_s",
    "ghostnet_050",
    "rexnet_100",
    "convnextv2_atto",
    "poolformer_s12",
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "levit_128s",
    "swin_tiny_patch4_window7_224",
    "coatnet_pico_rw_224",
    "mixer_s32_224",
    "mobilevit_xxs",
    "fastvit_t8",
)
NETWORKS = (*(f"torchvision:{name}" for name in FAMILIES), *(f"timm:{name}" for name in TIMM))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names with commas between")
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, default=16)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    title = f"Pruned to {arguments.target} of the MACs, against the masked network"
    print_head(title, ["network", "MACs", "kept", "multiples of", "frozen groups", "error", "seconds"])
    failures = 0
    for name in arguments.networks.split(","):
        try:
            cells = measure(name, arguments.target, arguments.round_to)
        except AdaptifyError as error:
            cells = [error.message, "", "", "", "", ""]
            failures += 1
        print_row([name, *cells])
    print(f"\n{len(arguments.networks.split(',')) - failures} pruned, {failures} not")


def measure(name: str, target: float, round_to: int) -> list[object]:
    """The row of one network."""
    architecture = resolve(name)
    torch.manual_seed(0)
    model = scramble(architecture.build())
    started = time.perf_counter()
    pruned = ours.prune(model, architecture.input.shape, target, round_to=round_to)
    seconds = time.perf_counter() - started
    images = torch.randn(2, *architecture.input.shape, generator=torch.Generator().manual_seed(0))
    masked = _outputs(mask_channels(pruned.channels, pruned.selection.keep), images)
    error = float((_outputs(pruned.traced, images) - masked).abs().max() / masked.abs().max())
    groups, frozen = pruned.channels.groups, len(pruned.channels.groups) - len(pruned.channels.removable)
    before = CostModel(pruned.channels.traced).total
    assert CostModel(pruned.traced).total == pruned.selection.macs
    return [
        quantity(before),
        f"{pruned.selection.fraction:.3f}",
        pruned.selection.round_to,
        f"{frozen} of {len(groups)}",
        f"{error:.0e}",
        f"{seconds:.2f}",
    ]


def _outputs(traced: Traced, images: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = compile_graph(traced.graph)(traced.root.eval(), images)
    return output
