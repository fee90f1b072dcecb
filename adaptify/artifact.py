"""The artifact: one `.safetensors` file with the tensors, and the plan in its metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaptify.errors import ModelError, TargetError, UsageError
from adaptify.files import atomic_write, write_tensors
from adaptify.gates.exit_head import ExitHead
from adaptify.graph.channels import find_channels
from adaptify.graph.cost import CostModel
from adaptify.graph.decouple import decouple
from adaptify.graph.removal_plan import keep_from_json
from adaptify.graph.sites import ExitSite, find_blocks, find_exits
from adaptify.graph.surgery import remove_channels
from adaptify.graph.trace import Traced, trace
from adaptify.input_spec import InputSpec
from adaptify.models.registry import Architecture
from adaptify.plan import FORMAT, DecoupleBlocks, PlaceExit, Plan, RemoveChannels, Step, parse_plan
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.policy import ThresholdPolicy


def save(model: AdaptiveModel, path: str | os.PathLike[str]) -> None:
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
    plan = model.plan.model_copy(update={"policy": model.policy.to_json() if model.exits else None})
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
) -> AdaptiveModel:
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
    architecture = Architecture.from_json(plan.architecture)
    if not architecture.is_public and not trust_code:
        raise ModelError(
            f"{path} is built by {architecture.name}: loading it runs that code",
            "If it is yours or you trust it, allow it: --trust-code, or load(..., trust_code=True).",
        )
    return build(plan, tensors, replace(architecture, input=input) if input else architecture)


def build(plan: Plan, tensors: dict[str, Tensor], architecture: Architecture) -> AdaptiveModel:
    """Carry out `plan` and fill in `tensors`.

    Raises:
        ModelError: Plan, tensors and architecture do not belong together.
    """
    traced = trace(architecture.build().eval(), architecture.input.shape)
    policy = ThresholdPolicy.from_json(plan.policy) if plan.policy is not None else None
    traced, exits = carry_out(traced, plan.steps)
    model = AdaptiveModel(traced, exits, policy).eval()
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
        raise ModelError(f"the tensors do not fit the plan: {str(error).splitlines()[-1].strip()}") from error
    return model


def carry_out(traced: Traced, steps: Sequence[Step]) -> tuple[Traced, list[Exit]]:
    """Do what the steps of a plan say, in their order; return the network, and its exits with fresh heads.

    Raises:
        ModelError: A step does not fit the network that those before it leave.
    """
    placed: list[PlaceExit] = []
    for step in steps:
        if isinstance(step, PlaceExit):
            placed.append(step)
        elif placed:
            raise ModelError(
                f"the plan changes the network after it has put an exit at {placed[0].site}",
                "The file is damaged: exits are placed last.",
            )
        elif isinstance(step, DecoupleBlocks):
            traced = decouple_blocks(traced, step)
        else:
            traced = remove(traced, step)
    return traced, place_exits(traced, placed)


def decouple_blocks(traced: Traced, step: DecoupleBlocks) -> Traced:
    """Return the network with adapters around the blocks that the step names.

    Raises:
        ModelError: A block is not in the network.
    """
    blocks = {block.name: block for block in find_blocks(traced, CostModel(traced))}
    for name in step.blocks:
        if name not in blocks:
            raise ModelError(
                f"the plan decouples the block {name}, which is not in the network",
                "The code that builds the network has changed since the plan was made.",
            )
    return decouple(traced, [blocks[name] for name in step.blocks])


def remove(traced: Traced, step: RemoveChannels) -> Traced:
    """Return the network without the channels that the step takes out.

    Raises:
        ModelError: The step does not fit the network.
    """
    channels = find_channels(traced)
    keep: dict[str, Tensor] = {}
    for name, entry in step.keep.items():  # one after the other: sizes are checked before they add up
        keep |= keep_from_json(channels, {name: {"size": entry.size, "kept": list(entry.kept)}})
    return remove_channels(channels, keep)


def place_exits(traced: Traced, steps: Sequence[PlaceExit]) -> list[Exit]:
    """Make the exits of the steps, in the order of the network, with fresh heads.

    Raises:
        ModelError: A site is not in the network, or has other channels than the plan says.
    """
    sites = {site.name: site for site in find_exits(traced, CostModel(traced))}
    chosen: list[tuple[ExitSite, PlaceExit]] = []
    for step in steps:
        site = sites.get(step.site)
        if site is None or site.channels != step.channels:
            found = "is not in the network" if site is None else f"has {site.channels} channels there"
            raise ModelError(
                f"the plan puts an exit at {step.site} ({step.channels} channels), which {found}",
                "The code that builds the network has changed since the plan was made.",
            )
        chosen.append((site, step))
    order = {name: index for index, name in enumerate(sites)}
    return [
        Exit(site, ExitHead(site.channels, step.classes, pool=step.pool, channel_axis=site.channel_axis))
        for site, step in sorted(chosen, key=lambda pair: order[pair[0].name])
    ]


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
        raise ModelError(
            f"{source} is not a readable safetensors file: {error}", "The file is damaged."
        ) from error
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
    with safe_open(source, framework="pt") as opened:
        return plan, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


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


def _verify(model: AdaptiveModel, written: dict[str, Tensor], path: Path) -> None:
    """Contract: reload = saved, bit for bit."""
    plan, tensors = _read(path)
    again = build(plan, tensors, Architecture.from_json(plan.architecture))
    same = all(torch.equal(again.state_dict()[name], tensor) for name, tensor in written.items())
    if not same or again.policy != model.policy:
        raise TargetError(
            f"{path.name} was written but reads back differently",
            "The disk or memory is faulty, or the code that builds the network is not deterministic.",
        )
