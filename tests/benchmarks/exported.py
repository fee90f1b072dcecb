"""Do exported files skip? Time in onnxruntime against the network without exits or gates, exported alike.

    python -m tests.benchmarks.exported [--networks torchvision:resnet50] [--batches 1,8,32] [--threads 1]

Weights are random. Thresholds let as many images leave at each of the exits (three at most) as at the output;
gates of blocks are each open for a share of the images (`--open`). The first table is of single images, by
the exit where they leave; the second of batches. Runs are in turns on the same images; times are medians of
ratios.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from adaptify.assembly import Adapted
from adaptify.exports import onnx_file
from adaptify.exports.facts import describe
from adaptify.exports.portable import ControlFlow, make_portable
from adaptify.freeze import static_network
from adaptify.gates.mask_net import MaskNet
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel
from tests.benchmarks.early_exit import exiting_network, force
from tests.benchmarks.pruning.markdown import print_head, print_row
from tests.benchmarks.skipping import gated
from tests.benchmarks.timing import CLOCKS, add_clock, interleaved, median_ratio

Session = Callable[[Tensor], list[Any]]
FORMS: tuple[ControlFlow, ...] = ("if", "compact")
EXITS = 3


def exported(model: Adapted, threads: int, control_flow: ControlFlow = "compact") -> Session:
    """The network in onnxruntime: images (N, C, H, W) -> outputs of the file."""
    portable = make_portable(model, static_network(model), control_flow)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        only = 1 if control_flow == "if" else None
        facts = describe(model, portable.outputs)
        onnx_file.write_onnx(path, portable, model.traced.input_shape, facts, batch=only)
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def run_all(session: Session, parts: Sequence[Tensor]) -> list[list[Any]]:
    """Run all batches."""
    return [session(part) for part in parts]


def compare(
    sessions: Sequence[Session], parts: Sequence[Tensor], arguments: argparse.Namespace
) -> list[float]:
    """Times of all sessions but the last, relative to the last."""
    runs = [partial(run_all, session, parts) for session in sessions]
    *own, base = interleaved(runs, arguments.rounds, clock=CLOCKS[arguments.clock])
    return [median_ratio(times, base) for times in own]


def open_some(model: GatedModel, images: Tensor, share: float) -> None:
    """Let the mask net open each block for a share of the images."""
    (decider,) = model.deciders
    net = decider.module
    assert isinstance(net, MaskNet)
    with torch.no_grad():
        net.linear.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        net.linear.bias -= model.run(images).odds.quantile(1 - share, 0)


def macs_of(model: Adapted, outputs: list[list[Any]]) -> Tensor:
    """MACs of each image, as parts of the network's, from what a file says that it decided."""
    decided = torch.from_numpy(np.concatenate([item[1] for item in outputs]))
    if isinstance(model, AdaptiveModel):
        return torch.tensor(model.exit_macs(model.policy)).double()[decided] / model.cost.total
    return (model.gate_cost(decided.double()) + model.decider_macs) / model.cost.total


def print_paths(
    model: AdaptiveModel,
    forms: Sequence[Session],
    static: Session,
    images: Tensor,
    arguments: argparse.Namespace,
) -> None:
    """The table of single images, by exit."""
    print_head("one image, by where it leaves", ["leaves at", "images", "MACs", *FORMS])
    left = torch.from_numpy(np.concatenate([out[1] for out in run_all(forms[0], images.split(1))]))
    names = [*(item.site.name for item in model.exits), "output"]
    macs = torch.tensor(model.exit_macs(model.policy)).double() / model.cost.total
    for index, name in enumerate(names):
        own = images[left == index].split(1)
        times = compare([*forms, static], own, arguments)
        print_row([name, len(own), f"{macs[index]:.3f}", *(f"{time:.3f}" for time in times)])


def print_batches(
    title: str,
    model: Adapted,
    forms: Sequence[Session],
    static: Session,
    images: Tensor,
    arguments: argparse.Namespace,
) -> None:
    """The table of batches; branches are for one image at a time."""
    print_head(title, ["batch", "MACs", *(f"{form}{what}" for form in FORMS for what in ("", ", gap"))])
    for batch in map(int, arguments.batches.split(",")):
        parts = images.split(batch)
        usable = forms if batch == 1 else forms[1:]
        kept = float(macs_of(model, run_all(forms[1], parts)).mean())
        times = compare([*usable, static], parts, arguments)
        cells = ["", ""] * (len(forms) - len(usable))
        cells += [cell for time in times for cell in (f"{time:.3f}", f"{time - kept:+.3f}")]
        print_row([batch, f"{kept:.3f}", *cells])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="torchvision:resnet50")
    parser.add_argument("--what", default="exits,blocks")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--images", type=int, default=32, help="at least one batch of them")
    parser.add_argument("--open", type=float, default=0.6, help="share of the images that run a block")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    add_clock(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    for name in arguments.networks.split(","):
        for what in arguments.what.split(","):
            model: Adapted
            if what == "exits":
                model = exiting_network(name, EXITS)
                images = _images(model, arguments.images)
                force(model, images, [1 / (len(model.exits) + 1)] * len(model.exits))
            else:
                model = gated(name, "blocks")
                images = _images(model, arguments.images)
                open_some(model, images, arguments.open)
            forms = [exported(model, arguments.threads, form) for form in FORMS]
            static = exported(AdaptiveModel(model.backbone()).eval(), arguments.threads)
            if isinstance(model, AdaptiveModel):
                print_paths(model, forms, static, images, arguments)
            print_batches(f"{name}, {what}", model, forms, static, images, arguments)


def _images(model: Adapted, count: int) -> Tensor:
    return torch.randn(count, *model.traced.input_shape, generator=torch.Generator().manual_seed(1))


if __name__ == "__main__":
    main()
