"""A network with exits as one graph of plain operations: it yields logits (N, M) and exit_index (N,).

Either for any batch: rows that stay are gathered, the rest of the network runs for them, and what it says is
scattered over what the exit said. Or for one image at a time, with branches.

Notation: N rows, M classes, E exits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptify.exports.program import for_empty_batches, inference_form
from adaptify.exports.rows import choose, positions, put, take
from adaptify.graph.own_exits import find_own_exits
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.exits import Branch, Exit, branch
from adaptify.runtime.policy import GATE

OUTPUTS = ("logits", "exit_index")


class _Exits(nn.Module):
    """What both forms share: the segments, and what exits say.

    Args:
        model: The network; it is left as it is.
    """

    def __init__(self, model: AdaptiveModel) -> None:
        super().__init__()
        traced = inference_form(model.backbone(), keep=model.exit_nodes, empty=True)
        own = find_own_exits(traced, model.cost) if traced.own_exits else ()
        placed = [Exit(item.site, copy.deepcopy(item.head)) for item in model.exits]
        for item in placed:
            if item.head is not None:
                for_empty_batches(item.head.eval())
        exits = [Exit(item.site, None) for item in own] or placed
        self.network = traced.root
        self._segments, self._branches = branch(traced, exits, own)
        self._policy, self._boost = model.policy, model.boost
        self._learned = model.policy.score == GATE
        self._classes = model.num_classes
        # Exits that are never taken, and say nothing to those behind them, stay out of the file.
        self.exits = nn.ModuleDict(
            {
                item.site.name.replace(".", "/"): item.head
                for index, item in enumerate(exits)
                if item.head is not None and self._is_used(index)
            }
        )
        self.eval().requires_grad_(False)

    def _is_used(self, index: int) -> bool:
        return self._policy.enabled(index) or self._boost is not None

    def _advance(self, index: int, state: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Run up to exit `index`: what goes on, and what the exit reads."""
        item = self._branches[index]
        produced = self._segments[index](self.network, *state)
        return produced[: item.live], [produced[place] for place in item.positions]

    def _predict(self, index: int, read: Sequence[Tensor], previous: Tensor | None) -> Tensor:
        """Logits (N, M) of exit `index`."""
        return self._boosted(index, self._branches[index].logits(self.network, *read), previous)

    def _boosted(self, index: int, logits: Tensor, previous: Tensor | None) -> Tensor:
        if self._boost is None or previous is None:
            return logits
        return self._boost[index - 1] * previous + logits

    def _leaves(self, index: int, read: Sequence[Tensor], logits: Tensor | None) -> Tensor:
        """Who leaves at exit `index`, (N,)."""
        if logits is None or self._learned:
            scores = _gate(self._branches[index])(*read)
        else:
            scores = self._policy.rate(index, logits)
        return self._policy.leaves(index, scores)

    @property
    def _asks_first(self) -> bool:
        """Whether who leaves is known before anything is predicted."""
        return self._learned and self._boost is None


class CompactExits(_Exits):
    """For batches of any size."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, H, W) to logits (N, M) and exit_index (N,) int64."""
        state: tuple[Tensor, ...] = (images,)
        out = images.new_zeros((images.shape[0], self._classes))
        index_out = torch.zeros_like(out[:, 0], dtype=torch.int64)
        rows: Tensor | None = None  # where those that are left are in the batch; None: they are all of it
        previous: Tensor | None = None
        for index in range(len(self._branches)):
            state, read = self._advance(index, state)
            if not self._is_used(index):
                continue
            logits = None if self._asks_first else self._predict(index, read, previous)
            previous = logits
            if not self._policy.enabled(index):
                continue
            leaving = self._leaves(index, read, logits)
            if logits is None:
                gone = positions(leaving)
                logits = self._predict(index, [take(value, gone) for value in read], None)
                out, index_out = self._write(out, index_out, _compose(rows, gone), index, logits)
            else:
                # For all, as what stays is written over: one gather less.
                out, index_out = self._write(out, index_out, rows, index, logits)
            kept = positions(~leaving)
            rows = _compose(rows, kept)
            state = tuple(take(value, kept) for value in state)
            previous = None if previous is None else take(previous, kept)
        (final,) = self._segments[-1](self.network, *state)
        last = len(self._branches)
        return self._write(out, index_out, rows, last, self._boosted(last, final, previous))

    def _write(
        self, out: Tensor, index_out: Tensor, rows: Tensor | None, index: int, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        places = torch.full_like(logits[:, 0], index, dtype=torch.int64)
        if rows is None:
            return logits, places
        return put(out, rows, logits), put(index_out, rows, places)


class BranchingExits(_Exits):
    """For one image at a time: what is behind an exit is a branch."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (1, C, H, W) to logits (1, M) and exit_index (1,) int64."""
        return self._from(0, images)

    def _from(self, index: int, *values: Tensor) -> tuple[Tensor, ...]:
        """Go on at segment `index`; with boosted exits, what was said before comes first in `values`."""
        previous, state = self._split(index, values)
        if index == len(self._branches):
            (final,) = self._segments[-1](self.network, *state)
            return _said(index, self._boosted(index, final, previous))
        live, read = self._advance(index, state)
        if not self._is_used(index):
            return self._from(index + 1, *live)
        logits = None if self._asks_first else self._predict(index, read, previous)
        carried = () if self._boost is None or logits is None else (logits,)
        if not self._policy.enabled(index):
            return self._from(index + 1, *carried, *live)
        leaves = self._leaves(index, read, logits).squeeze(0)
        asked = tuple(read) if logits is None else (logits,)
        first = len(asked)

        def leave(*inputs: Tensor) -> tuple[Tensor, ...]:
            own = self._predict(index, inputs[:first], None) if logits is None else inputs[0].clone()
            return _said(index, own)

        def stay(*inputs: Tensor) -> tuple[Tensor, ...]:
            return self._from(index + 1, *inputs[first - len(carried) :])

        return choose(leaves, leave, stay, (*asked, *live))

    def _split(self, index: int, values: tuple[Tensor, ...]) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        return (values[0], values[1:]) if self._boost is not None and index else (None, values)


def _said(index: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits, torch.full_like(logits[:, 0], index, dtype=torch.int64)


def _compose(rows: Tensor | None, chosen: Tensor) -> Tensor:
    return chosen if rows is None else take(rows, chosen)


def _gate(item: Branch) -> nn.Module:
    assert isinstance(item.gate, nn.Module), "the policy asks for learned gates, and the model was run"
    return item.gate
