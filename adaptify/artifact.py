"""The artifact: one `.safetensors` file with the tensors, and the plan in its metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaptify.assembly import Adapted, assemble
from adaptify.bounds import brief
from adaptify.errors import AdaptifyError, ModelError, TargetError, UsageError
from adaptify.files import atomic_write, write_tensors
from adaptify.graph.trace import trace
from adaptify.input_spec import InputSpec
from adaptify.models.allowance import Allowance, check_arguments
from adaptify.models.registry import Architecture
from adaptify.plan import FORMAT, Plan, RemoveBlocks, RemoveChannels, parse_plan
from adaptify.runtime.budgeted import frontier_policy

_FREE = 1 << 26
"""Numbers that a network may always have, beyond those in its file: 256 MiB."""


def save(model: Adapted, path: str | os.PathLike[str]) -> None:
    """Write `model` with its plan (`model.plan`, with the policy of now), then open the file and compare.

    The file appears whole or not at all.

    Raises:
        UsageError: The model has no plan: it was put together by hand.
        TargetError: What was read back is not what was written; the file is removed.
        AdaptifyError: The file cannot be written.
    """
    if model.plan is None:
        raise UsageError(
            "this model has no plan to make it again by", "Set model.plan to an adaptify.plan.Plan."
        )
    plan = model.plan.model_copy(update={"policy": model.policy_json()})
    target = Path(path)
    # Safetensors refuses shared storage: tied weights are written twice, and the plan ties them again.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    with atomic_write(target) as temporary:
        write_tensors(temporary, tensors, {FORMAT: plan.dumps()})
        _verify(model, tensors, temporary)


def load(
    path: str | os.PathLike[str], *, trust_code: bool = False, input: InputSpec | None = None
) -> Adapted:
    """Make the network of an artifact again: an `nn.Module` in evaluation mode, on the CPU.

    Args:
        path: The `.safetensors` file, or a run folder that holds a `model.safetensors`.
        trust_code: Whether a network built by your own code (`package.module:callable`) may be loaded,
            which imports that code.
        input: The images to build it for; without it, those that it was made for.

    Raises:
        UsageError: There is no such file.
        ModelError: The file is damaged, is no artifact, or needs code that is not trusted.
    """
    plan, tensors = _read(artifact_path(path))
    with _naming(path):
        architecture = Architecture.from_json(plan.architecture)
    if not architecture.is_public and not trust_code:
        raise ModelError(
            f"{path} is built by {brief(architecture.name)}: loading it runs that code",
            "If it is yours or you trust it, allow it: --trust-code, or load(..., trust_code=True).",
        )
    with _naming(path):
        check_arguments(architecture)
        numbers = sum(tensor.numel() for tensor in tensors.values())
        if architecture.is_public:
            # The plan's word alone does not get memory: first the network is built without any.
            with _allowed(plan, numbers, len(tensors)):
                architecture.build_meta()
        model = build(plan, tensors, replace(architecture, input=input) if input else architecture)
        if (frontier := model.frontier) is not None:
            for point in frontier.points:
                frontier_policy(frontier, point)
        return model


def build(plan: Plan, tensors: dict[str, Tensor], architecture: Architecture) -> Adapted:
    """Carry out `plan` and fill in `tensors`.

    Raises:
        ModelError: Plan, tensors and architecture do not belong together.
    """
    traced = trace(architecture.build().eval(), architecture.input.shape)
    with Allowance(_FREE + 2 * sum(tensor.numel() for tensor in tensors.values())):
        model = assemble(traced, plan.steps, plan.policy).eval()
    model.plan = plan
    expected, given = model.state_dict().keys(), tensors.keys()
    if expected != given:
        different = sorted(expected ^ given)
        raise ModelError(
            f"tensors and plan do not belong together: {different[0]} is "
            f"{'missing' if different[0] in expected else 'not part of the network'}",
            "The file is damaged, or the code that builds the network has changed.",
        )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            f"the tensors do not fit the plan: {str(error).splitlines()[-1].strip()}",
            "The file is damaged, or the code that builds the network has changed.",
        ) from error
    return model


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read the plan of an artifact without its tensors.

    Raises:
        UsageError: There is no such file.
        ModelError: The file is damaged or no artifact.
    """
    source = artifact_path(path)
    try:
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(source, error) from error
    if FORMAT not in metadata:
        raise ModelError(
            f"{source} holds tensors but no adaptify plan",
            "It is a plain checkpoint: use `adaptify retrofit` on it.",
        )
    return parse_plan(metadata[FORMAT], str(source))


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether the file is an artifact (or a run folder with one) rather than a plain checkpoint."""
    try:
        read_plan(path)
    except (ModelError, UsageError):
        return False
    return True


def _read(source: Path) -> tuple[Plan, dict[str, Tensor]]:
    plan = read_plan(source)
    try:
        with safe_open(source, framework="pt") as opened:
            return plan, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except MemoryError:
        raise
    except Exception as error:  # types and shapes that torch does not know end in errors of many kinds
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: Exception) -> ModelError:
    if _is_of_torch_save(source):
        return ModelError(
            f"{source} is a checkpoint of torch.save, and not what adaptify made of one",
            f"Make that first: adaptify retrofit {source} --data FOLDER, or adaptify prune.",
        )
    return ModelError(
        f"{source} is not a readable safetensors file: {brief(error)}",
        "The file is damaged: copy it again, or make the run again.",
    )


def _is_of_torch_save(source: Path) -> bool:
    """Whether the file begins as archives and pickles do."""
    try:
        with source.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\n")
    except OSError:
        return False


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in what goes wrong with its plan, which may say anything."""
    try:
        yield
    except AdaptifyError as error:
        raise type(error)(f"{path}: {brief(error.message, 600)}", error.hint) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{path} holds a plan that cannot be carried out: {type(error).__name__}: {brief(error)}",
            "The file is damaged, or the code that builds the network has changed.",
        ) from error


def _allowed(plan: Plan, numbers: int, tensors: int) -> Allowance:
    """How large the architecture of a plan may be, by the tensors that came of it.

    Nothing of it is missing, unless channels or blocks were removed: then it was larger by as much as anybody
    would remove.
    """
    if any(isinstance(step, RemoveChannels | RemoveBlocks) for step in plan.steps):
        return Allowance(max(4 * _FREE, 16 * numbers), (1 << 16) + 16 * tensors)
    return Allowance(_FREE + 2 * numbers, (1 << 12) + 4 * tensors)


def artifact_path(path: str | os.PathLike[str]) -> Path:
    """The file of an artifact that is named by itself or by the run folder it is in.

    Raises:
        UsageError: There is no such file.
    """
    source = Path(path)
    if source.is_dir():
        source = source / "model.safetensors"
    if not source.is_file():
        raise UsageError(
            f"there is no file {source}", "Name a model.safetensors, or the run folder it is in."
        )
    return source


def _verify(model: Adapted, written: dict[str, Tensor], path: Path) -> None:
    """Contract: reload = saved, bit for bit."""
    plan, tensors = _read(path)
    try:
        again = build(plan, tensors, Architecture.from_json(plan.architecture))
    except ModelError as error:
        raise UsageError(
            f"this network is not what its plan says ({error.message}): once optimized, it is only to be run",
            "Save the network that it was made of: adaptify.load(path) without for_inference.",
        ) from error
    same = all(torch.equal(again.state_dict()[name], tensor) for name, tensor in written.items())
    if not same or again.policy_json() != model.policy_json():
        raise TargetError(
            f"{path.name} was written but reads back differently",
            "The disk or memory is faulty, or the code that builds the network is not deterministic.",
        )
