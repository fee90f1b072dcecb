"""The training loop: epochs of optimizer steps on an objective, with everything around them.

What a run carries from one epoch to the next is a `TrainingState`; the order of the images, their
augmentation and torch's random numbers follow from the seed and the epoch, the learning rate from the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptify.data import Data, Split
from adaptify.errors import AdaptifyError, ShortMemoryError, UsageError, is_out_of_memory
from adaptify.parallel import group
from adaptify.progress import SILENT, Progress, Stage
from adaptify.training import layout
from adaptify.training.average import WeightAverage
from adaptify.training.evaluate import top1
from adaptify.training.history import EpochRow, History, MetricsLog, Validation
from adaptify.training.meter import Meter, NonFiniteLossError
from adaptify.training.objective import Moment, Objective
from adaptify.training.optimizer import GateParameters, make_optimizer, scale_rates
from adaptify.training.options import LoopOptions
from adaptify.training.recalibrate import recalibrate_on
from adaptify.training.schedule import rate_factor
from adaptify.training.snapshots import Snapshots, Which
from adaptify.training.spread import spread
from adaptify.training.state import States, TrainingState

_SECONDS_BETWEEN_READINGS = 0.5

Validate = Callable[[nn.Module], Validation]
Observe = Callable[[int, nn.Module], Mapping[str, float]]


def train(
    model: nn.Module,
    data: Data,
    options: LoopOptions,
    *,
    objective: Objective,
    device: torch.device | str,
    seed: int,
    folder: Path,
    gates: GateParameters | None = None,
    companion: nn.Module | None = None,
    validate: Validate | None = None,
    observe: Observe | None = None,
    everything: Callable[[Tensor], Any] | None = None,
    states: States | None = None,
    batch_size: int = 256,
    progress: Progress = SILENT,
) -> History:
    """Train `model` in place on `data.train`; it is left on `device`, in evaluation mode.

    At the end the model has the weights of the last epoch or of the best (`options.keep`), averaged where
    `options.ema` asks for it, with the statistics of BatchNorm taken anew. The same seed gives the same
    weights on the same machine. Torch's global random state is put back.

    Several processes (`parallel.group.processes`) share each batch: each computes the gradient for its rows
    of the loss of all rows, and takes the step that one process with the whole batch would take. Files are
    written by the main one.

    Args:
        model: Maps images (B, C, H, W) to whatever `objective` understands; logits (B, M) in evaluation.
        data: Its splits `train` and `holdout` are used, never `test`.
        options: How to train.
        objective: What to minimise.
        device: Where to compute.
        seed: Seed of everything random, 0 or more.
        folder: Gets `metrics.csv`, `checkpoints/` and, if asked for, `tensorboard/`.
        gates: The parameters of `model` that have the learning rate and weight decay of gates.
        companion: Trained beside `model` by the same optimizer, for the sake of `objective`; no part of it,
            nor of its checkpoints and averages. Left on `device`.
        validate: Judges the network after each epoch, in evaluation mode; by default, its accuracy on
            `data.holdout`.
        observe: Returns further figures for the metrics after each epoch, likewise.
        everything: Runs all parts of `model`, where in evaluation it leaves some out: for the statistics of
            BatchNorm.
        states: Gets the state of the run after every epoch; the run goes on from the newest that is there,
            and ends as if it had never stopped. None: it cannot be continued.
        batch_size: Images in a batch where no gradients are kept: for accuracy and statistics.
        progress: Told of every step.

    Raises:
        UsageError: There is nothing to train, TensorBoard is asked for and not installed, the run cannot go
            on from `states`, or batches cannot be shared by the processes.
        ShortMemoryError: A batch is too large for the memory.
        AdaptifyError: The loss or a weight is not finite any more, or a file cannot be written.
    """
    device = torch.device(device)
    validate = validate or (lambda network: Validation(top1(network, data.holdout, device, batch_size)))
    log = MetricsLog(folder, tensorboard=options.tensorboard and group.is_main())
    snapshots = Snapshots(folder / "checkpoints")
    try:
        with (
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            layout.channels_last(model, device, options.channels_last),
        ):
            if options.epochs == 0:
                history = History((), None)
            else:
                loop = _Loop(
                    model, data.train, options, objective, device, seed, gates, snapshots, states, companion
                )
                history = loop.run(validate, observe or (lambda epoch, network: {}), log, progress)
            torch.manual_seed(_seed(seed, options.epochs))
            recalibrate_on(
                model,
                data.train,
                options,
                device=device,
                seed=_seed(seed, options.epochs),
                forward=everything,
                most=batch_size,
                progress=progress,
            )
            model.eval()
    finally:
        log.close()
    return history


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        split: Split,
        options: LoopOptions,
        objective: Objective,
        device: torch.device,
        seed: int,
        gates: GateParameters | None,
        snapshots: Snapshots,
        states: States | None,
        companion: nn.Module | None,
    ) -> None:
        self.model = model
        self.companion = companion.to(device) if companion is not None else None
        self.split = split
        self.options = options
        self.objective = objective
        self.device = device
        self.seed = seed
        self.snapshots = snapshots
        self.states = states
        _check_processes(options, len(split))
        # The same parameters and buffers; only the forward pass goes through the compiler.
        self.forward = spread(torch.compile(model) if options.compile else model)
        # BatchNorm cannot train on a single image, and other kernels may be chosen for other sizes: a
        # smaller last batch is left out, another one in every epoch.
        self.batches = max(len(split) // options.batch_size, 1)
        self.steps_per_epoch = -(-self.batches // options.accumulate)
        self.steps = self.steps_per_epoch * options.epochs
        self.state = TrainingState(
            model,
            make_optimizer(model, options, gates, companion),
            WeightAverage(model, options.ema) if options.ema else None,
            companion,
            objective,
        )
        self.trained = [
            parameter for group in self.state.optimizer.param_groups for parameter in group["params"]
        ]

    def run(self, validate: Validate, observe: Observe, log: MetricsLog, progress: Progress) -> History:
        """Train all epochs that are left, and give the model the weights that were asked for."""
        state = self.state
        resumed = self.states is not None and self.states.restore(state, progress)
        group.adopt_from_main(list(state.tensors().values()))
        with progress.stage("train", total=self.steps) as stage:
            if resumed:
                if group.is_main():
                    if self.options.keep == "best" and state.best is not None:
                        self.snapshots.require("best")
                    log.resume(state.rows)
                stage.advance(state.epoch * self.steps_per_epoch)
                progress.note(f"training goes on: {state.epoch} of {self.options.epochs} epochs are done")
            while state.epoch < self.options.epochs:
                epoch, started = state.epoch, time.monotonic()
                torch.manual_seed(_seed(self.seed, epoch))
                try:
                    meter = self._train(epoch, stage)
                except (RuntimeError, MemoryError) as error:
                    if is_out_of_memory(error):
                        raise self._too_large() from None
                    raise
                with self._averaged():
                    self.model.eval()
                    found = validate(self.model)
                    extra = observe(epoch, self.model)
                    self._save(epoch, found)
                row = EpochRow(
                    epoch=epoch,
                    lr=self._rate((epoch + 1) * self.steps_per_epoch - 1),
                    loss=meter.means["loss"],
                    train_accuracy=meter.means["accuracy"],
                    validation=found,
                    images_per_second=meter.images_per_second,
                    seconds=time.monotonic() - started,
                    kept=meter.means.get("kept"),
                    terms=meter.terms,
                    extra=meter.figures | dict(extra),
                )
                state.rows.append(row)
                if group.is_main():
                    log.add(row)
                    if self.states is not None:
                        self.states.save(state)
                stage.advance(0, **{"held-out": found.accuracy})
        self.state.optimizer.zero_grad()  # the gradients go, and their memory
        return History(tuple(state.rows), self._choose(progress))

    def _train(self, epoch: int, stage: Stage) -> Meter:
        """One epoch of steps."""
        options = self.options
        self.model.train()
        if self.companion is not None:
            self.companion.train()
        meter = Meter()
        told = 0
        batches = self.split.batches(
            options.batch_size,
            augment=options.augment,
            shuffle=True,
            seed=_seed(self.seed, epoch),
            device=self.device,
            drop_last=len(self.split) >= options.batch_size,
            take=group.own_rows,
        )
        for index, (images, labels) in enumerate(batches):
            done, part = divmod(index, options.accumulate)
            parts = min(options.accumulate, self.batches - done * options.accumulate)
            step = epoch * self.steps_per_epoch + done
            moment = Moment(epoch, step, self.steps, options.epochs)
            if options.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            for some, truth in zip(
                images.chunk(options.micro_batches), labels.chunk(options.micro_batches), strict=True
            ):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=options.bf16):
                    truth = group.gather_rows(truth)
                    loss = self.objective(self.forward, some, truth, moment)
                (loss.total * (len(some) / len(images)) / parts).backward()
                meter.add(step, loss, truth)
            if part == parts - 1:
                self._step(step)
                told += 1
            if meter.age > _SECONDS_BETWEEN_READINGS or index == self.batches - 1:
                self._read(meter)
                stage.advance(told, **meter.shown)
                told = 0
        if not torch.stack([parameter.isfinite().all() for parameter in self.trained]).all():
            raise self._diverged("a weight is not finite", (epoch + 1) * self.steps_per_epoch - 1)
        return meter

    def _step(self, step: int) -> None:
        optimizer = self.state.optimizer
        scale_rates(optimizer, self._factor(step))
        group.average(parameter.grad for parameter in self.trained if parameter.grad is not None)
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.options.clip)
        optimizer.step()
        optimizer.zero_grad()
        if self.state.average is not None:
            self.state.average.update()

    def _factor(self, step: int) -> float:
        return rate_factor(self.options.schedule, step, self.steps, self.steps_per_epoch)

    def _rate(self, step: int) -> float:
        return self.options.lr * self._factor(step)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.state.average.in_place() if self.state.average is not None else nullcontext()

    def _save(self, epoch: int, found: Validation) -> None:
        state = self.state
        kinds: list[Which] = ["last"]
        if found.beats(None if state.best is None else state.rows[state.best].validation):
            state.best = epoch
            kinds.append("best")
        for which in kinds if group.is_main() else ():
            self.snapshots.save(self.model, which, epoch)

    def _choose(self, progress: Progress) -> int:
        """Give the model its final weights; return the epoch they are of."""
        last = self.state.epoch - 1
        if self.state.average is not None:
            self.state.average.adopt()
        if self.options.keep == "last" or self.state.best == last:
            return last
        if self.state.best is None:
            progress.note("No epoch was eligible to be the best one: the last one was kept.")
            return last
        if group.is_main():
            self.snapshots.restore(self.model, "best")
        group.adopt_from_main([*self.model.parameters(), *self.model.buffers()])
        return self.state.best

    def _read(self, meter: Meter) -> None:
        try:
            meter.read()
        except NonFiniteLossError as error:
            raise self._diverged(f"the loss is {error.value}", error.step) from error

    def _too_large(self) -> ShortMemoryError:
        size, parts = self.options.batch_size, self.options.micro_batches
        cut = f", in {parts} parts" if parts > 1 else ""
        return ShortMemoryError(
            f"out of memory in training, with batches of {size} images{cut}",
            f"Cut batches into parts with train.micro_batches={2 * parts}, or let --auto-batch do it.",
            training=True,
        )

    def _diverged(self, what: str, step: int) -> AdaptifyError:
        last = self.snapshots.path("last")
        good = (
            f"The last good checkpoint is {last}." if self.state.rows else "There is no good checkpoint yet."
        )
        return AdaptifyError(
            f"training diverged: {what} at step {step + 1} of {self.steps}, "
            f"at learning rate {self._rate(step):.3g}",
            f"Lower train.lr, or set train.clip=1 or train.schedule.warmup=1. {good}",
        )


def _check_processes(options: LoopOptions, images: int) -> None:
    """Make sure that the processes of a run can share its batches."""
    if group.size() == 1:
        return
    group.check_batch(options.batch_size, "train.batch_size")
    if images < options.batch_size and images % group.size():
        raise UsageError(
            f"the {images} images to train on make one batch, which {group.size()} processes cannot share",
            f"Set train.batch_size to a multiple of {group.size()} that is not above {images}.",
        )
    if options.compile:
        raise UsageError(
            f"train.compile is for one process, and there are {group.size()}",
            "Leave it out, or launch one process.",
        )


def _seed(seed: int, epoch: int) -> int:
    """A seed for one epoch that no other epoch or run has."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
