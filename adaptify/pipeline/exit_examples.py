"""Which images a report on exits shows: easy ones and hard ones, of all classes and of the same class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaptify.data import Split
from adaptify.pipeline.examples import example_part, examples_part
from adaptify.training.evaluate import Evaluation

_CLASSES = 4
_OF_CLASS = 4  # images of a class that left at the same exit


def exit_examples(
    images: Split, classes: Sequence[str], names: Sequence[str], evaluation: Evaluation
) -> dict[str, Any]:
    """Return the `Examples` of a report on a network with exits.

    Easy are images that left first with the highest scores, hard those that stayed longest and went wrong.
    Of up to four classes, images that left at the first exit where any left stand beside images that left
    at the last (Yu et al., Fig. 5).

    Args:
        images: The images, with their labels.
        classes: Names of the classes.
        names: Names of the exits, and of the output.
        evaluation: What became of each image.
    """
    first = int(evaluation.exit_index.min())
    wrong = (evaluation.predictions != evaluation.labels).double()
    scores = evaluation.scores.double().nan_to_num(0.0)
    easy = torch.where(evaluation.exit_index == first, scores, -torch.inf).argsort(descending=True)
    hardness = evaluation.exit_index * 2 + wrong - scores.sigmoid()
    hard = hardness.argsort(descending=True)

    def left(row: int) -> dict[str, Any]:
        score = float(evaluation.scores[row])
        return {
            "exit": names[int(evaluation.exit_index[row])],
            "score": None if math.isnan(score) else score,
        }

    def shown(rows: Tensor) -> list[dict[str, Any]]:
        return [example_part(images, classes, evaluation.predictions, row, left) for row in rows.tolist()]

    return {
        **examples_part(images, classes, evaluation.predictions, easy, hard, left),
        "classes": [
            {"name": classes[label], "first": shown(at_first), "last": shown(at_last)}
            for label, at_first, at_last in _of_same_class(evaluation, scores, len(classes))
        ],
    }


def _of_same_class(evaluation: Evaluation, scores: Tensor, classes: int) -> list[tuple[int, Tensor, Tensor]]:
    """Return (class, rows that left first, rows that left last) of the classes with the most of both."""
    index, labels = evaluation.exit_index, evaluation.labels
    first, last = int(index.min()), int(index.max())
    if first == last:
        return []
    counts = [torch.bincount(labels[index == at], minlength=classes) for at in (first, last)]
    both = torch.minimum(*counts)
    surest = scores.argsort(descending=True, stable=True)
    most_doubtful = scores.argsort(stable=True)

    def pick(order: Tensor, label: int, at: int) -> Tensor:
        return order[(labels[order] == label) & (index[order] == at)][:_OF_CLASS]

    chosen = both.argsort(descending=True, stable=True)[:_CLASSES].tolist()
    return [
        (label, pick(surest, label, first), pick(most_doubtful, label, last))
        for label in chosen
        if both[label] > 0
    ]
