"""A network with gates that look at samples, in the form in which it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from adaptify.errors import ModelError
from adaptify.graph.cost import CostModel
from adaptify.graph.gate_cost import GateCost
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.gating import Decide, Decider, slices_of
from adaptify.graph.leftovers import is_relu
from adaptify.graph.pieces import cut_at_blocks
from adaptify.graph.program import compile_graph
from adaptify.graph.sites import BlockSite
from adaptify.graph.trace import Traced
from adaptify.runtime.budgeted import Budgeted
from adaptify.runtime.fast import fast_form, has_maps
from adaptify.runtime.gate_policy import Policy
from adaptify.runtime.gated import Decisions, GatedModel, ensemble
from adaptify.runtime.skipping.block import SkippingBlock
from adaptify.runtime.skipping.costs import CostTable, cost_key, measure_block
from adaptify.runtime.skipping.programs import Programs
from adaptify.runtime.skipping.stretch import Stretch
from adaptify.runtime.spans import GATES, NETWORK, span


@dataclass
class _Step:
    """A piece of the network, and what is decided in front of it.

    Attributes:
        deciders: Names of what decides here, from what goes into the piece.
        run: The piece; None where it is a block.
        block: The block.
        gates: Name of what decides the block's gates, and where among its gates they are.
        shape: (C, H, W) of what goes in.
        description: What the piece is, for telling it from others.
    """

    deciders: tuple[str, ...]
    run: Any
    block: SkippingBlock | None
    gates: tuple[str, slice] | None
    shape: tuple[int, ...]
    description: str


class SkippingModel(Budgeted, nn.Module):
    """A network whose gates look at samples, run so that what they close is not computed.

    `model(images)` maps (N, C, H, W) to logits (N, M) under `model.policy`, in evaluation mode only.

    Attributes:
        policy: How gates decide. May be replaced between batches.
        sites: The sites of all gates.
        memory_format: Layout that images are brought to first.
        gate_cost: MACs as a function of all gates.
        decider_macs: MACs of deciding for one sample.
        cost: MACs of the network without gates.
        num_classes: M.
        plan: That of the network; None if it has none.
    """

    def __init__(self, model: GatedModel, device: torch.device) -> None:
        """Prepare `model` for running on `device`; it is left as it is.

        Raises:
            ModelError: Its gates do not look at samples.
        """
        super().__init__()
        if not model.per_sample:
            raise ModelError(
                "gates that are the same for all samples leave nothing to decide at run time",
                "Freeze the network: adaptify prune RUN.",
            )
        self.policy: Policy = model.policy
        self.plan = model.plan
        self.sites = model.sites
        self.per_sample = True
        self.gate_cost: GateCost = model.gate_cost
        self.decider_macs = model.decider_macs
        self.cost: CostModel = model.cost
        self.num_classes = model.num_classes
        self._device = device
        self._order = [decider.name for decider in model.deciders]
        modules = {decider.name: for_inference(decider.module) for decider in model.deciders}
        self.deciders = nn.ModuleDict(modules).eval().requires_grad_(False).to(device)
        traced = model.backbone()
        self.memory_format = torch.channels_last if has_maps(traced.root) else torch.contiguous_format
        self._steps = _steps(traced, model.deciders, model.whole, device)
        self._stretches = _stretches(self._steps, model.deciders)
        super().train(False)

    def train(self, mode: bool = True) -> SkippingModel:
        """Stay in evaluation mode: this form cannot be trained.

        Raises:
            ModelError: Training is asked for.
        """
        if mode:
            raise ModelError(
                "the fast form of a network cannot be trained", "Train the network that it was made of."
            )
        return self

    @property
    def blocks(self) -> tuple[SkippingBlock, ...]:
        """The blocks with gates, in the order of the network."""
        return tuple(step.block for step in self._steps if step.block is not None)

    def measure(self, table: CostTable) -> None:
        """Learn from `table` what each block takes on this machine; what it does not know is measured."""
        for step in self._steps:
            if step.block is None:
                continue
            layout = self.memory_format if len(step.shape) == 3 else torch.contiguous_format
            block = step.block
            measure = partial(
                measure_block, block.programs.full, step.shape, layout, self._device, block.beside
            )
            step.block.cost = table.look_up(cost_key(step.description, self._device), measure)

    def warm_up(self, images: Tensor, decide: Decide | None = None) -> None:
        """Build at once what pays for images (N, C, H, W) like these; otherwise that happens as they come.

        Args:
            images: Some of what will come.
            decide: How gates decide; by default as the policy says.
        """
        for block in self.blocks:
            block.book.eager = True
        try:
            self.decide(images, decide or self.policy.decide)
        finally:
            for block in self.blocks:
                block.book.eager = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, M) for images (N, C, H, W)."""
        return self.run(images).logits

    def run(self, images: Tensor) -> Decisions:
        """Run (N, C, H, W) under the policy; see `GatedModel.run`."""
        return ensemble(self.runs(images))

    def runs(self, images: Tensor) -> list[Decisions]:
        """Run (N, C, H, W) as often as the policy says; see `GatedModel.runs`."""
        policy = self.policy  # read once: another thread may set it
        return [self.decide(images, policy.decide) for _ in range(policy.runs)]

    def decide(self, images: Tensor, decide: Decide) -> Decisions:
        """Run (N, C, H, W) with gates as `decide` makes them of what their networks say.

        One synchronisation for each of those networks on an accelerator, none on a CPU.
        """
        x = images.contiguous(memory_format=self.memory_format)
        odds: dict[str, Tensor] = {}
        gates: dict[str, Tensor] = {}
        host: dict[str, npt.NDArray[np.floating[Any]]] = {}
        done = 0
        is_own = False
        for index, step in enumerate(self._steps):
            if step.deciders:
                with span(GATES, index):
                    for name in step.deciders:
                        odds[name] = self.deciders[name](x)
            # An accelerator is given all that can be done before the host waits for the gates.
            beside = step.block.beside(x) if step.block is not None else ()
            if step.deciders:
                with span(GATES, index):
                    for name in step.deciders:
                        gates[name] = decide(odds[name])
                        host[name] = _on_host(gates[name])
            if index < done:
                continue
            if index in self._stretches:
                stretch, name, length = self._stretches[index]
                with span(NETWORK, index):
                    result = stretch.run(x, host[name])
                if result is not None:
                    x, done = result, index + length
                    continue
            if step.block is None:
                with span(NETWORK, index):
                    x = step.run(x)
            else:
                assert step.gates is not None
                name, place = step.gates
                own = (
                    gates[name] if gates[name].shape[1] == place.stop - place.start else gates[name][:, place]
                )
                # Blocks may write over what goes in; the images are the caller's, whatever views them.
                if not is_own and _share_memory(x, images):
                    x = x.clone()
                is_own = True
                with span(NETWORK, index):
                    x = step.block((x, *beside), own, host[name][:, place])
        return Decisions(
            x,
            torch.cat([odds[name] for name in self._order], 1),
            torch.cat([gates[name] for name in self._order], 1),
        )


def for_inference(module: nn.Module) -> nn.Module:
    """A copy of what decides, in the form for inference if it has one."""
    make: Callable[[], nn.Module] | None = getattr(module, "for_inference", None)
    return copy.deepcopy(module) if make is None else make()


def _steps(
    traced: Traced, deciders: Sequence[Decider], whole: Collection[str], device: torch.device
) -> list[_Step]:
    gates = gates_by_block(deciders)
    order = {node.name: index for index, node in enumerate(traced.graph.nodes)}
    blocks = sorted((block for block, _, _ in gates.values()), key=lambda block: order[block.source])
    waiting = {decider.source: [] for decider in deciders}  # type: dict[str | None, list[str]]
    for decider in deciders:
        waiting[decider.source].append(decider.name)
    steps = []
    sources = [decider.source for decider in deciders if decider.source is not None]
    for piece in cut_at_blocks(traced, blocks, sources):
        source = next(iter(piece.traced.graph.nodes)).name
        ready = tuple(waiting.pop(source, ()))
        shape = piece.traced.input_shape
        description = f"{piece.traced.graph}\n{shape}"
        if piece.block is None:
            fast = fast_form(piece.traced, device)
            steps.append(
                _Step(ready, partial(compile_graph(fast.graph), fast.root), None, None, shape, description)
            )
            continue
        block, sites, place = gates[piece.block.name]
        keeps = is_nonnegative(traced, source)
        first = next((node.name for node in piece.traced.graph.nodes if node.name in whole), None)
        programs = Programs(piece.traced, block, sites, device=device, keeps=keeps, first=first)
        if first is not None:
            description += f"\nbehind {first}"
        steps.append(_Step(ready, None, SkippingBlock(programs, device), place, shape, description))
    assert not waiting, "all gates look at what enters a block"
    return steps


def _stretches(steps: Sequence[_Step], deciders: Sequence[Decider]) -> dict[int, tuple[Stretch, str, int]]:
    """Index of a step -> the stretch that begins there, what decides all of its gates, and its steps."""
    found = {}
    for decider in deciders:
        if len(decider.sites) < 2 or any(site.position != "layer" for site in decider.sites):
            continue
        own = [
            index
            for index, step in enumerate(steps)
            if step.gates is not None and step.gates[0] == decider.name
        ]
        inside = steps[own[0] : own[-1] + 1]
        if any(step.deciders for step in inside[1:]):
            continue
        parts = [step.run if step.block is None else step.block for step in inside]
        found[own[0]] = (Stretch(parts), decider.name, len(inside))
    return found


def gates_by_block(
    deciders: Sequence[Decider],
) -> dict[str, tuple[BlockSite, tuple[GateSite, ...], tuple[str, slice]]]:
    """Name of a block -> the block, its sites, and where their gates are: one stretch of one decider's."""
    found: dict[str, tuple[BlockSite, tuple[GateSite, ...], tuple[str, slice]]] = {}
    for decider in deciders:
        for site, place in zip(decider.sites, slices_of(decider.sites), strict=True):
            assert site.block is not None
            name = site.block.name
            if name not in found:
                found[name] = (site.block, (site,), (decider.name, place))
                continue
            block, sites, (owner, before) = found[name]
            assert (owner, before.stop) == (decider.name, place.start)
            found[name] = (block, (*sites, site), (owner, slice(before.start, place.stop)))
    return found


def _on_host(values: Tensor) -> npt.NDArray[np.floating[Any]]:
    """The values in the memory of the host; where they are there already, without any operation."""
    if values.is_cpu and not values.requires_grad:
        return values.numpy()
    return values.detach().cpu().numpy()


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def is_nonnegative(traced: Traced, name: str) -> bool:
    """Whether a value is known to have nothing below 0: it is that of a ReLU, or of a pooling of one."""
    node: fx.Node = traced.node(name)
    while node.op == "call_module" and type(traced.root.get_submodule(str(node.target))) is nn.MaxPool2d:
        node = node.all_input_nodes[0]
    return is_relu(traced.root, node)
