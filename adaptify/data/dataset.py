"""A data set: three splits, the names of the classes, and what to know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaptify.data.split import Split
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec


@dataclass(frozen=True)
class Data:
    """A labelled image data set in three disjoint splits.

    Attributes:
        name: The spec it was opened with, such as `"digits"` or a folder.
        train: Images that parameters are trained on.
        holdout: Images taken out of the training images, never augmented: thresholds are chosen on them.
        test: Images that numbers are reported on.
        classes: Name of every class; a label is a position in it.
        input: Shape and normalisation of the batches.
        notes: What a reader of a report should know, such as images that were left out.
    """

    name: str
    train: Split
    holdout: Split
    test: Split
    classes: tuple[str, ...]
    input: InputSpec
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The data set as JSON, for reports."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "train": len(self.train),
            "holdout": len(self.holdout),
            "test": len(self.test),
            "notes": list(self.notes),
        }


def check_labels(data: Data, num_outputs: int) -> None:
    """Check that a network with `num_outputs` outputs has one for every class of `data`, and no more.

    Raises:
        UsageError: The numbers differ.
    """
    if len(data.classes) == num_outputs:
        return
    raise UsageError(
        f"the data set {data.name} has {len(data.classes)} classes, the network has {num_outputs} outputs",
        "Give the data set that the checkpoint was trained on, with the same class folders "
        f"(for a trial run without data: fake:64:{num_outputs}).",
    )
