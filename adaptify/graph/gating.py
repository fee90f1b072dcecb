"""Putting gates into a graph: modules that decide, and masks where what they close is read.

The gated graph takes `(images, decide)` and returns `(output, odds, gates)`: `decide` turns the log-odds of
a decider into gates in [0, 1], so how gates are drawn (sampled, by threshold, all open) is the caller's
business and no module keeps any state.

Masks lie on the side of the readers, as in `masking`: a closed channel is not read, whatever lies between. A
grouped convolution is passed by: its outputs go with its inputs, and their readers are masked.

Notation: N samples, G gates of a decider, n channels on the axis of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from adaptify.graph.adapters import adapter
from adaptify.graph.channels import Channels
from adaptify.graph.gate_sites import GateSite
from adaptify.graph.grouping import Member
from adaptify.graph.trace import Traced

Decide = Callable[[Tensor], Tensor]
"""Log-odds (G,) or (N, G) -> gates of the same shape, 0 closed, 1 open."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SCALABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Decider:
    """A module that decides the gates of some sites at once.

    Attributes:
        name: Its name among the gates of the network; without dots.
        module: Yields log-odds: (G,) from nothing, or (N, G) from a feature map.
        source: Name of the node whose value it sees; None: it decides for all samples alike.
        sites: The sites, whose gates lie one after the other.
    """

    name: str
    module: nn.Module
    source: str | None
    sites: tuple[GateSite, ...]

    @property
    def gates(self) -> int:
        """G."""
        return sum(site.gates for site in self.sites)


def slices_of(sites: Sequence[GateSite]) -> list[slice]:
    """Where the gates of each site lie among those of all, one site after the other."""
    starts, place = [], 0
    for site in sites:
        starts.append(slice(place, place + site.gates))
        place += site.gates
    return starts


def insert_gates(
    traced: Traced, channels: Channels | None, deciders: Sequence[Decider], folder: str
) -> fx.Graph:
    """Return the gated graph of a network, to be run on the root to which the deciders were added.

    Buffers that the graph needs are put into `traced.root`, beside the deciders.

    Args:
        traced: The network; its root has the submodule `folder` with each decider by name.
        channels: Its channels; needed where sites are channel groups.
        deciders: What decides.
        folder: Name of the submodule of the root that holds the deciders.
    """
    return _Insertion(traced, channels, folder).graph_with(deciders)


def insert_masks(
    traced: Traced, channels: Channels | None, sites: Sequence[GateSite], folder: str
) -> fx.Graph:
    """Return the graph of a network that takes its gates as a second input: (input, gates (N, G)) -> output.

    Args:
        traced: The network; its root has the submodule `folder`, for buffers that the graph needs.
        channels: Its channels; needed where sites are channel groups.
        sites: The sites, whose gates lie one after the other.
        folder: Name of a submodule of the root.
    """
    return _Insertion(traced, channels, folder).graph_with_input(sites)


class _Insertion:
    def __init__(self, traced: Traced, channels: Channels | None, folder: str) -> None:
        self.root = traced.root
        self.graph = copy.deepcopy(traced.graph)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self.channels = channels
        self.folder = folder

    def graph_with(self, deciders: Sequence[Decider]) -> fx.Graph:
        images = next(iter(self.graph.nodes))
        with self.graph.inserting_after(images):
            decide = self.graph.placeholder("decide")
        odds, gates = [], []
        for decider in deciders:
            source = self.nodes[decider.source] if decider.source is not None else None
            with self.graph.inserting_after(source or decide):
                odd = self.graph.call_module(
                    f"{self.folder}.{decider.name}", (source,) if source is not None else ()
                )
            with self.graph.inserting_after(odd):
                gate = self.graph.call_function(_apply, (decide, odd))
            self._mask(decider.sites, gate, shared=decider.source is None)
            odds.append(odd)
            gates.append(gate)
        output = next(iter(reversed(self.graph.nodes)))
        output.args = ((output.args[0], tuple(odds), tuple(gates)),)
        self.graph.lint()
        return self.graph

    def graph_with_input(self, sites: Sequence[GateSite]) -> fx.Graph:
        value = next(iter(self.graph.nodes))
        with self.graph.inserting_after(value):
            gates = self.graph.placeholder("gates")
        self._mask(sites, gates, shared=False)
        self.graph.lint()
        return self.graph

    def _mask(self, sites: Sequence[GateSite], gates: fx.Node, *, shared: bool) -> None:
        """Let `gates` close what belongs to `sites`; shared gates are the same for all samples."""
        with self.graph.inserting_after(gates):
            # In front of the gates an entry that is always open, for the channels without a gate.
            padded = self.graph.call_function(F.pad, (gates, (1, 0)), {"value": 1.0})
        tables: dict[str, Tensor] = {}
        for site, place in zip(sites, slices_of(sites), strict=True):
            if site.position == "layer":
                assert site.block is not None
                self._scale_branch(self.nodes[site.block.branch], padded, 1 + place.start, shared=shared)
            else:
                self._note_readers(site, place.start, tables)
        for target, table in tables.items():
            self._scale_reader(target, table, padded, shared=shared)

    def _note_readers(self, site: GateSite, start: int, tables: dict[str, Tensor]) -> None:
        """Fill in, for every layer that reads the site, which gate each of its inputs has."""
        assert self.channels is not None
        gate_of = torch.tensor(site.gate_of(), dtype=torch.int64)
        gate_of = torch.where(gate_of > 0, gate_of + start, gate_of)
        for member in masked_readers(self.channels, site.name):
            width = len(self.channels.propagation.uses["read", member.target].labels)
            table = tables.setdefault(member.target, torch.zeros(width, dtype=torch.int64))
            table[member.positions] = gate_of.unsqueeze(1)

    def _scale_branch(self, branch: fx.Node, padded: fx.Node, place: int, *, shared: bool) -> None:
        with self.graph.inserting_after(padded):
            mask = self.graph.call_function(torch.narrow, (padded, -1, place, 1))
        if shared and self._is_plain_norm(branch):
            self._replace(branch, scale_norm, mask)
        else:
            self._insert_scaling(branch, None, mask, 1)

    def _scale_reader(self, target: str, table: Tensor, padded: fx.Node, *, shared: bool) -> None:
        assert self.channels is not None
        layer = self.root.get_submodule(target)
        tables = self.root.get_submodule(self.folder)
        # Numbered, as names with and without dots may be alike otherwise.
        name = f"reads_{len(tables._buffers)}"
        tables.register_buffer(name, table, persistent=False)
        with self.graph.inserting_after(padded):
            index = self.graph.get_attr(f"{self.folder}.{name}")
        with self.graph.inserting_after(index):
            mask = self.graph.call_function(torch.index_select, (padded, -1, index))
        for use in self.channels.propagation.uses["read", target].nodes:
            node = self.nodes[use.name]
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if shared and type(layer) in _SCALABLE:
                self._replace(node, scale_inputs, mask)
            elif shared and adapter(layer) is not None and self._is_plain_norm(source):
                self._replace(source, scale_norm, mask)
            else:
                found = adapter(layer)
                axis = found.axis if found is not None else -1 if isinstance(layer, nn.Linear) else 1
                self._insert_scaling(source, node, mask, axis)

    def _is_plain_norm(self, node: fx.Node) -> bool:
        """Whether a factor for each channel of the value can go into the scale of a BatchNorm."""
        if node.op != "call_module" or len(node.users) != 1:
            return False
        module = self.root.get_submodule(str(node.target))
        return type(module) in _NORMS and bool(module.affine)

    def _replace(self, node: fx.Node, function: Callable[..., Tensor], mask: fx.Node) -> None:
        """Let `function(module, input, mask)` do what the module of `node` did."""
        with self.graph.inserting_before(node):
            module = self.graph.get_attr(str(node.target))
            new = self.graph.call_function(function, (module, node.args[0], mask))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.nodes[node.name] = new
        self.graph.erase_node(node)

    def _insert_scaling(self, value: fx.Node, user: fx.Node | None, mask: fx.Node, axis: int) -> None:
        """Multiply `value` by the mask for one user, or for all."""
        with self.graph.inserting_before(user or value.next):
            scaled = self.graph.call_function(scale_channels, (value, mask, axis))
        scaled.meta = dict(value.meta)
        if user is not None:
            user.replace_input_with(value, scaled)
        else:
            value.replace_all_uses_with(scaled, delete_user_cb=lambda other: other is not scaled)


def masked_readers(channels: Channels, group: str) -> list[Member]:
    """Return the layers at whose inputs the channels of a group are masked: grouped convolutions pass on."""
    root = channels.traced.root
    return [
        member
        for member in channels.group(group).of_kind("read")
        if getattr(root.get_submodule(member.target), "groups", 1) == 1
    ]


def _apply(decide: Decide, odds: Tensor) -> Tensor:
    return decide(odds)


def scale_inputs(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """`layer(x * mask)` for a mask (n,) of its inputs, at the price of scaling the weights instead."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    scaled = weight * mask.to(weight).view(1, -1, *(1 for _ in weight.shape[2:]))
    result: Tensor = functional_call(layer, {"weight": scaled}, (x,))
    return result


def scale_norm(norm: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """`norm(x) * mask` for a mask (n,) of its channels, or (1,), by scaling what it learned instead."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    bias: Tensor = norm.bias  # type: ignore[assignment]
    mask = mask.to(weight)
    result: Tensor = functional_call(norm, {"weight": weight * mask, "bias": bias * mask}, (x,))
    return result


def scale_channels(x: Tensor, mask: Tensor, axis: int) -> Tensor:
    """Multiply x by a mask for each channel, (n,) or (N, n); n may be 1.

    Args:
        x: Tensor (N, ...) with n channels on `axis`.
        mask: The factors.
        axis: 1 or -1.
    """
    axis %= x.dim()
    shape = [1] * x.dim()
    shape[axis] = mask.shape[-1]
    if mask.dim() == 2:
        shape[0] = mask.shape[0]
    return x * mask.to(x).view(shape)
