"""Ways to run a network: each is given the original and the result alike.

A way that a network cannot be run in says why; what it yields is held against the plain network before its
time counts.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from adaptify.assembly import Adapted
from adaptify.errors import AdaptifyError, UsageError, did_you_mean
from adaptify.exports import onnx_file
from adaptify.exports.facts import describe
from adaptify.exports.portable import make_portable
from adaptify.exports.program import Program
from adaptify.freeze import static_network
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.fast import FAST, PLAIN, Form, fast_form
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.optimize import optimize

Runner = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) on the device -> logits (N, M)."""

_CLOSE = 1e-3  # of the largest logit
_MOST_TURNED = 0.2  # of the images: rounding can turn a decision


class UnavailableError(Exception):
    """A network cannot be run in some way; the message says why not, in a few words."""


def runner(name: str, model: Adapted, device: torch.device, images: Tensor) -> Runner:
    """Return `model` as the way `name` runs it.

    Args:
        name: Key of `BACKENDS`.
        model: A network as `artifact.load` gives it; it is left as it is.
        device: Where it runs.
        images: A batch of images (N, C, H, W) on it, to check it on.

    Raises:
        UnavailableError: It cannot be run so, or computes something else then.
    """
    try:
        run = BACKENDS[name](model, device)
        with torch.inference_mode():
            _check(run(images), BACKENDS["eager"](model, device)(images))
    except UnavailableError:
        raise
    except UsageError:
        raise
    except AdaptifyError as error:
        raise UnavailableError(error.message) from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise UnavailableError(f"{type(error).__name__}: {first[:200]}") from error
    return run


def _check(found: Tensor, wanted: Tensor) -> None:
    error = (found.cpu() - wanted.cpu()).abs().amax(1)
    if float((error > _CLOSE * float(wanted.abs().max())).double().mean()) > _MOST_TURNED:
        raise UnavailableError(f"it computes something else: logits differ by up to {float(error.max()):.2g}")


def _in_form(form: Form) -> Callable[[Adapted, torch.device], Runner]:
    def build(model: Adapted, device: torch.device) -> Runner:
        if isinstance(model, AdaptiveModel):
            return optimize(model, device, form=form)
        if form == FAST:
            return optimize(model, device)
        if form.fold:
            raise UnavailableError("networks with such gates have no other form than the fast one")
        return _masked(model, device, form)

    return build


def _masked(model: GatedModel, device: torch.device, form: Form) -> Runner:
    """The network in its plain form, in which what gates close is computed all the same."""
    own = copy.deepcopy(model).requires_grad_(False).to(device)
    if form.channels_last:
        own = own.to(memory_format=torch.channels_last)
        own.memory_format = torch.channels_last
    return own


def _compiled(model: Adapted, device: torch.device) -> Runner:
    network = static_network(model)
    if network is None:
        raise UnavailableError("what is skipped differs from batch to batch, which is not compiled")
    form = Form(pack=False)  # folding it does not do by itself; convolutions it packs in its own way
    program = Program(fast_form(network, device, form=form)).eval()
    run: Runner = torch.compile(program, options={"freezing": True} if device.type == "cpu" else None)
    return lambda images: run(images.contiguous(memory_format=torch.channels_last))


def _onnxruntime(model: Adapted, device: torch.device) -> Runner:
    if device.type != "cpu":
        raise UnavailableError("it is measured on the CPU only")
    onnx_file.check_installed()
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    network = static_network(model)
    portable = make_portable(model, network)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        facts = describe(model, portable.outputs)
        onnx_file.write_onnx(path, portable, model.traced.input_shape, facts)
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


BACKENDS: Mapping[str, Callable[[Adapted, torch.device], Runner]] = MappingProxyType(
    {
        # PyTorch, the network as it was loaded.
        "eager": _in_form(PLAIN),
        # The same with feature maps that lie in memory with their channels together.
        "channels_last": _in_form(Form(fold=False, pack=False)),
        # BatchNorm as part of the layer in front of it.
        "folded": _in_form(Form(channels_last=False, pack=False)),
        # What `adaptify.optimize` makes of it.
        "fast": _in_form(FAST),
        # torch.compile with constants folded, for networks that skip nothing.
        "compile": _compiled,
        # What `adaptify export` writes, in onnxruntime.
        "onnxruntime": _onnxruntime,
    }
)
"""Ways to run a network, by name."""

DEFAULT = ("eager", "channels_last", "folded", "fast")
"""Those that need nothing but PyTorch, and no minutes to start."""


def check_names(names: tuple[str, ...]) -> None:
    """Make sure that all are ways to run a network, and that what they need is there.

    Raises:
        UsageError: One is not, or a package is missing.
    """
    for name in names:
        if name not in BACKENDS:
            raise UsageError(
                f"unknown backend '{name}'{did_you_mean(name, BACKENDS)}",
                f"Use some of: {', '.join(BACKENDS)}.",
            )
    if "onnxruntime" in names:
        onnx_file.check_installed()
