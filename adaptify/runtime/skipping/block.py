"""A residual block that is run for the rows whose gates are open, in the fastest of the ways there are.

All rows at once, with what is closed masked; the open rows alone, in a smaller batch that is put back; or
rows in groups, each with a program for the channels that they need. Which is the fastest follows from what
the block costs on this machine.

Where the first layer does not wait for the gates, all this is said of what follows it: its value, for all
rows and channels, is a second input of the block.

Notation: N rows, K gates of the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adaptify.runtime.compaction import empty_batch, put_rows, take_rows
from adaptify.runtime.skipping.codebook import Codebook, as_number
from adaptify.runtime.skipping.costs import BlockCost
from adaptify.runtime.skipping.programs import Bits, Narrow, Programs
from adaptify.runtime.spans import NETWORK, span

Rows = npt.NDArray[np.int64]

OVERHEAD_S = 20e-6
"""What it takes to run some rows apart from the others, beside moving them: starting a few operations."""


@dataclass(frozen=True)
class _Job:
    """Rows that are run together.

    Attributes:
        rows: Which; None for all of the batch.
        program: Some of the block's channels; None: the whole block.
    """

    rows: Rows | None
    program: Narrow | None


class SkippingBlock:
    """A residual block with gates.

    Attributes:
        programs: What can be run of it.
        cost: What that takes.
        book: The programs for some of its channels.
    """

    def __init__(self, programs: Programs, device: torch.device) -> None:
        self.programs = programs
        self.cost = BlockCost(fixed=1e-4, row=1e-3, move=1e-5)
        self._device = device
        self._has_channels = programs.gates > programs.has_layer_gate
        self.book = Codebook(programs)

    def beside(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run what does not wait for the gates: the first layer for all rows, or nothing.

        Args:
            x: (N, ...).
        """
        if self.programs.head is None:
            return ()
        with span(NETWORK):
            return (self.programs.head(x),)

    def __call__(self, inputs: tuple[Tensor, ...], gates: Tensor, host: npt.NDArray[np.floating]) -> Tensor:
        """Run the block; its inputs may be written over.

        Args:
            inputs: x (N, ...), and what ran beside the gates (N, ...).
            gates: (N, K), in [0, 1].
            host: The same in the memory of the host.

        Returns:
            (N, ...), each row as the whole block under its gates would give it.
        """
        if len(host) == 1:
            return self._run_one(inputs, gates, host)
        opened = host > 0
        runs = opened[:, 0] if self.programs.has_layer_gate else np.ones(len(host), bool)
        count = int(np.count_nonzero(runs))
        if count == 0:
            return self._skip(inputs[0])
        jobs = self._jobs(opened, runs, count)
        if jobs[0].rows is None:
            return self._run_all(inputs, gates, host, runs, jobs[0].program)
        return self._run_apart(inputs, gates, host, runs, jobs)

    def seconds(self, count: int, total: int) -> float:
        """What the block will take for a batch of `total` rows of which `count` run it, all its channels."""
        if count == 0:
            return 0.0
        return min(self._together(count, total), self._apart(count, None))

    def _jobs(self, opened: Bits, runs: Bits, count: int) -> list[_Job]:
        """The fastest way to run what is open."""
        total = len(runs)
        ways = [([_Job(None, None)], self._together(count, total))]
        if count < total:
            rows = runs.nonzero()[0]
            ways.append(([_Job(rows, None)], self._apart(count, None)))
        if self._has_channels:
            jobs, seconds = self._group(opened, runs)
            if len(jobs) == 1 and count == total:
                # Nothing is moved.
                program = jobs[0].program
                jobs, seconds = [_Job(None, program)], self.cost.run(total, _share(program))
            ways.append((jobs, seconds))
        return min(ways, key=lambda way: way[1])[0]

    def _group(self, opened: Bits, runs: Bits) -> tuple[list[_Job], float]:
        """Rows in groups by the programs that serve them, and what these take."""
        by_pattern: dict[int, list[int]] = {}
        for row in runs.nonzero()[0].tolist():
            by_pattern.setdefault(as_number(opened[row]), []).append(row)
        by_program: dict[int, tuple[Narrow | None, list[int]]] = {}
        for pattern, rows in by_pattern.items():
            found = self._find(pattern, opened[rows[0]], len(rows))
            by_program.setdefault(id(found), (found, []))[1].extend(rows)
        whole = by_program.pop(id(None), (None, []))[1]
        jobs = []
        for program, rows in by_program.values():
            if whole and self._apart(len(rows), program) > len(rows) * (self.cost.row + self.cost.move):
                whole.extend(rows)
            else:
                jobs.append(_Job(np.sort(rows), program))
        if whole:
            jobs.append(_Job(np.sort(whole), None))
        return jobs, sum(self._apart(len(job.rows), job.program) for job in jobs if job.rows is not None)

    def _find(self, pattern: int, opened: Bits, rows: int) -> Narrow | None:
        """The smallest program that there is for rows with this pattern; building others is thought over."""
        found = self.book.find(pattern)
        self.book.note(pattern, opened, _share(found), rows * self.cost.row)
        return found

    def _together(self, count: int, total: int) -> float:
        """Seconds to run all rows, and to undo that for those that do not run."""
        return self.cost.run(total) + self.cost.move * (total - count)

    def _apart(self, rows: int, program: Narrow | None) -> float:
        """Seconds to run some rows apart from the others."""
        return self.cost.run(rows, _share(program)) + rows * self.cost.move + OVERHEAD_S

    def _run_one(self, inputs: tuple[Tensor, ...], gates: Tensor, host: npt.NDArray[np.floating]) -> Tensor:
        """Run a single row, in the smallest program that serves it: there is nothing to group or to move."""
        if self.programs.has_layer_gate and host[0, 0] == 0:
            return self._skip(inputs[0])
        program = None
        if self._has_channels:
            opened = host[0] > 0
            program = self._find(as_number(opened), opened, 1)
        return self._run(inputs, gates, host, program)

    def _run_all(
        self,
        inputs: tuple[Tensor, ...],
        gates: Tensor,
        host: npt.NDArray[np.floating],
        runs: Bits,
        program: Narrow | None,
    ) -> Tensor:
        if program is not None or _scales(host[runs]):
            return self._run(inputs, gates, host, program)
        result = self.programs.full(*inputs)
        closed = (~runs).nonzero()[0]
        if len(closed):
            rows = self._index(closed)
            put_rows(result, rows, self._skip(take_rows(inputs[0], rows)))
        return result

    def _run_apart(
        self,
        inputs: tuple[Tensor, ...],
        gates: Tensor,
        host: npt.NDArray[np.floating],
        runs: Bits,
        jobs: list[_Job],
    ) -> Tensor:
        x = inputs[0]
        result = x if self.programs.skipped is None else None
        for job in jobs:
            assert job.rows is not None
            rows = self._index(job.rows)
            taken = tuple(take_rows(value, rows) for value in inputs)
            values = self._run(taken, gates[rows], host[job.rows], job.program)
            if result is None:
                result = empty_batch(len(x), values)
            put_rows(result, rows, values)
        assert result is not None
        closed = (~runs).nonzero()[0]
        if self.programs.skipped is not None and len(closed):
            rows = self._index(closed)
            put_rows(result, rows, self._skip(take_rows(x, rows)))
        return result

    def _run(
        self,
        inputs: tuple[Tensor, ...],
        gates: Tensor,
        host: npt.NDArray[np.floating],
        program: Narrow | None,
    ) -> Tensor:
        """Run rows, scaled by those of their gates that are not 1."""
        if program is not None and not _scales(host.take(program.gates, 1)):
            return program.full(*inputs)
        if program is not None and program.masked is not None:
            return program.masked(*inputs, gates[:, torch.from_numpy(program.gates)])
        return self.programs.masked(*inputs, gates) if _scales(host) else self.programs.full(*inputs)

    def _skip(self, x: Tensor) -> Tensor:
        return x if self.programs.skipped is None else self.programs.skipped(x)

    def _index(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self._device)


def _share(program: Narrow | None) -> float:
    return 1.0 if program is None else program.share


def _scales(host: npt.NDArray[np.floating]) -> bool:
    """Whether any gate is not simply open."""
    return bool((host != 1).any())
