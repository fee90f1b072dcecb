"""Going on with fewer images at a time where the memory does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from adaptify.errors import ShortMemoryError, is_out_of_memory
from adaptify.parallel import group
from adaptify.progress import Progress
from adaptify.recipe import Recipe
from adaptify.training.options import LoopOptions

T = TypeVar("T")


def in_batches(work: Callable[[int], T], batch_size: int, *, halve: bool, progress: Progress) -> T:
    """Run `work` with a batch size: the one that is given, or a smaller one where memory does not suffice.

    Args:
        work: Does all of its work anew when it is called again.
        batch_size: Images in a batch.
        halve: Whether smaller ones may be tried, each half as large as the one before.
        progress: Told when one is.

    Raises:
        ShortMemoryError: The memory does not suffice; the message names the batch size.
    """
    while True:
        try:
            return work(batch_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            short = _of_batch(batch_size)
            if not halve or batch_size == 1 or group.size() > 1:
                raise short from error
        _give_back()
        batch_size //= 2
        progress.note(f"{short.message}: going on with {batch_size}")


def with_smaller_batches(
    work: Callable[[Recipe], T],
    recipe: Recipe,
    *,
    allowed: bool,
    changed: Callable[[Recipe], None],
    progress: Progress,
) -> T:
    """Run `work` with a recipe, or with one that takes fewer images at a time where memory does not suffice.

    A batch that is too large to train on goes through the network in twice as many parts
    (`train.micro_batches`): the step is the same. Otherwise `run.batch_size` is halved, and results stay.

    Args:
        work: Goes on where it was, or does all of its work anew, when it is called again.
        recipe: The settings.
        allowed: Whether they may be changed.
        changed: Told of settings that were changed, before `work` is.
        progress: Told what was changed.

    Raises:
        ShortMemoryError: The memory does not suffice; the message names the batch size.
    """
    while True:
        try:
            return work(recipe)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            in_training = isinstance(error, ShortMemoryError) and error.training
            short = error if isinstance(error, ShortMemoryError) else _of_batch(recipe.run.batch_size)
            smaller = _in_more_parts(recipe) if in_training else _halved(recipe)
            # Several processes would have to agree on what to do.
            if not allowed or smaller is None or group.size() > 1:
                raise short from None
            note = f"{short.message}: {_told(recipe, smaller)}"
        _give_back()
        recipe = smaller
        progress.note(note)
        changed(recipe)


def _of_batch(batch_size: int) -> ShortMemoryError:
    if batch_size == 1:
        return ShortMemoryError(
            "out of memory with a batch of one image",
            "Use a --device with more memory, or a smaller --input-size.",
        )
    return ShortMemoryError(
        f"out of memory with batches of {batch_size} images",
        f"Use --batch-size {batch_size // 2}, or let --auto-batch find what fits.",
    )


def _in_more_parts(recipe: Recipe) -> Recipe | None:
    """The recipe with twice as many parts of a batch; None: each is one image already."""
    train = recipe.train
    if not isinstance(train, LoopOptions) or train.micro_batches >= train.batch_size:
        return None
    parts = min(2 * train.micro_batches, train.batch_size)
    return recipe.model_copy(update={"train": train.model_copy(update={"micro_batches": parts})})


def _halved(recipe: Recipe) -> Recipe | None:
    """The recipe with batches of half the size, where nothing is trained; None: each is one image already."""
    size = recipe.run.batch_size
    if size == 1:
        return None
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"batch_size": size // 2})})


def _told(recipe: Recipe, smaller: Recipe) -> str:
    if smaller.run != recipe.run:
        return f"going on with {smaller.run.batch_size}"
    assert isinstance(smaller.train, LoopOptions)
    train = smaller.train
    images = -(-train.batch_size // train.micro_batches)
    return (
        f"going on in {train.micro_batches} parts (train.micro_batches), at most {images} images at a time; "
        "BatchNorm, and what gates are to spend, see one part"
    )


def _give_back() -> None:
    """Let go of what a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
