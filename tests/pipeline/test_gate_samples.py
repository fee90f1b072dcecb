"""From records of gates to the figures of single images, classes and blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_nets import DIGITS, gated_digits
from torch import Tensor

from adaptify.data import Data, MemorySplit
from adaptify.data.augment import Augmentation
from adaptify.pipeline.gate_samples import samples_part
from adaptify.reports.schema import Samples
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import GateRecords

CLASSES = tuple("abcdefghij")
CPU = torch.device("cpu")


def split_of(labels: Tensor) -> MemorySplit:
    pixels = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).byte()
    return MemorySplit(
        lambda report: pixels, labels, torch.arange(len(labels)), DIGITS.input, Augmentation(flip=False)
    )


def data_of(labels: Tensor) -> Data:
    train = split_of(torch.arange(20) % 10)
    return Data("by hand", train, train, split_of(labels), CLASSES, DIGITS.input)


def records(
    model: GatedModel, labels: list[int], predictions: list[int], kept: list[float], **changes: Any
) -> GateRecords:
    """Records of samples that take a part of the MACs each; a gate is opened by as many as its index."""
    gates = model.gate_cost.gates
    by_class = torch.zeros(10, gates, dtype=torch.float64)
    logits = torch.zeros(len(labels), 10)
    logits[range(len(labels)), predictions] = torch.arange(1.0, len(labels) + 1)  # the last one is surest
    values: dict[str, Any] = {
        "predictions": torch.tensor(predictions),
        "labels": torch.tensor(labels),
        "macs": torch.tensor(kept, dtype=torch.float64) * model.cost.total,
        "open": torch.zeros(gates),
        "probabilities": torch.zeros(gates),
        "histogram": torch.zeros(20),
        "kept": 0.5,
        "seconds": 0.0,
        "logits": logits,
        "site_probabilities": (0.5,) * len(model.sites),
        "site_open": (0.5,) * len(model.sites),
        "opened_by_class": by_class,
    }
    return GateRecords(**values | changes)


def part(model: GatedModel, found: GateRecords) -> Samples:
    return Samples.model_validate(samples_part(model, found, data_of(found.labels), CLASSES, CPU))


def test_classes_come_in_the_order_of_what_they_take() -> None:
    model = gated_digits(kind="dependent")
    found = part(model, records(model, [4, 2, 4, 2, 7], [4, 2, 1, 2, 7], [0.2, 0.9, 0.6, 0.5, 0.3]))
    told = [(row.name, row.samples, row.accuracy, pytest.approx(row.kept)) for row in found.classes]
    assert told == [("h", 1, 1.0, 0.3), ("e", 2, 0.5, 0.4), ("c", 2, 1.0, 0.7)]


def test_the_histogram_holds_every_image_between_the_least_and_the_most() -> None:
    model = gated_digits(kind="dependent")
    kept = [0.2, 0.2, 0.8, 0.5, 0.21]
    found = part(model, records(model, [0] * 5, [0] * 5, kept)).macs
    assert found is not None
    assert (found.low, found.high) == (0.2 * model.cost.total, 0.8 * model.cost.total)
    assert sum(found.counts) == 5
    assert (found.counts[0], found.counts[-1]) == (3, 1)
    same = part(model, records(model, [0, 1], [0, 1], [0.4, 0.4]))
    assert same.macs is None
    assert same.examples.easy == same.examples.hard == []


def test_images_are_shown_from_both_ends() -> None:
    model = gated_digits(kind="dependent")
    kept = [0.5, 0.9, 0.1, 0.1, 0.9, 0.4]
    found = part(model, records(model, [0, 1, 2, 3, 4, 5], [0, 1, 2, 9, 4, 5], kept)).examples
    # Of images that take the same, the one that the network is surer of is easier.
    assert "".join(image.label for image in found.easy) == "dcfaeb"
    assert "".join(image.label for image in found.hard) == "beafcd"
    assert [image.kept for image in found.easy] == pytest.approx([0.1, 0.1, 0.4, 0.5, 0.9, 0.9])
    assert (found.easy[0].label, found.easy[0].predicted) == ("d", "j")
    assert all(image.exit == "" for image in found.hard)


def test_the_last_two_sites_show_which_channels_each_class_opens() -> None:
    model = gated_digits(kind="dependent", filters=1, positions=["channels"])
    sizes = [site.gates for site in model.sites]
    by_class = torch.zeros(10, sum(sizes), dtype=torch.float64)
    by_class[3, -sizes[-1]] = 2  # the last site's first gate
    by_class[5, sizes[0] + 1] = 1  # the second gate of the one before it
    labels = [3, 5, 3, 3, 3]
    kept = [0.2, 0.9, 0.2, 0.2, 0.2]
    found = part(model, records(model, labels, labels, kept, opened_by_class=by_class)).channels
    assert [use.name for use in found] == [site.name for site in model.sites[-2:]]
    assert [use.gates for use in found] == sizes[-2:]
    before, last = found
    assert before.classes == last.classes == ["d", "f"]
    assert len(last.open[0]) == min(50, sizes[-1]) < sizes[-1]
    assert last.open[0][0] == 0.5  # two of the four images of class d
    assert before.open[1][1] == 1.0
    assert sum(map(sum, before.open)) + sum(map(sum, last.open)) == 1.5


def test_blocks_have_a_rate_and_a_gradient_where_gates_close_them() -> None:
    model = gated_digits(kind="dependent", granularity="layer")
    found = part(model, records(model, [0, 1], [0, 1], [0.5, 0.6], site_open=(1.0, 0.25, 0.5)))
    assert [(row.name, row.executed) for row in found.blocks] == [
        ("layer1.0", 1.0),
        ("layer2.0", 0.25),
        ("layer3.0", 0.5),
    ]
    assert all(row.gradient > 0 for row in found.blocks)
    assert found.gradient_images == 20
    assert found.channels == []
    channels = gated_digits(kind="dependent")
    assert part(channels, records(channels, [0, 1], [0, 1], [0.5, 0.6])).blocks == []
