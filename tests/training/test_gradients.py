"""Gradients of blocks, against gradients by hand."""

from __future__ import annotations

import pytest
import torch
from gated_nets import gated, gated_digits, shake
from torch import Tensor, nn

from adaptify.graph.trace import trace
from adaptify.training.gradients import block_gradients


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(x)


class Toy(nn.Module):
    """Logits a (1 + w2) (1 + w1) x of an image x of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 1, bias=False)
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.stem.weight.fill_(1.0)
            self.first.scale.weight.fill_(0.5)
            self.second.scale.weight.fill_(-0.25)
            self.head.weight.copy_(torch.tensor([[1.0], [-2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).flatten(1))


IMAGES = torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1, 1)
LABELS = torch.tensor([0, 1, 1])


def by_hand() -> dict[str, float]:
    first = second = 0.0
    for x, label in zip([0.5, -1.0, 2.0], [0, 1, 1], strict=True):
        hidden = 1.5 * x
        z = 0.75 * hidden
        odds = torch.tensor([z, -2 * z], dtype=torch.float64).softmax(0).tolist()
        wrong = [odds[0] - (label == 0), odds[1] - (label == 1)]
        slope = wrong[0] - 2 * wrong[1]  # of the loss, in what enters the head
        first += slope * 0.75 * x / 3
        second += slope * hidden / 3
    return {"first": abs(first), "second": abs(second)}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_are_those_of_the_mean_loss_however_batches_are_cut(size: int) -> None:
    model = gated(trace(Toy().eval(), (1, 1, 1)), kind="dependent", granularity="layer")
    batches = list(zip(IMAGES.split(size), LABELS.split(size), strict=True))
    found = block_gradients(model, batches)
    assert list(found) == ["first", "second"]
    assert found == pytest.approx(by_hand(), rel=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    model = shake(gated_digits(kind="dependent", granularity="layer"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 8, 8, generator=generator)
    found = block_gradients(model, [(images, torch.arange(8))])
    assert all(value > 0 for value in found.values())
    assert len(found) == len(model.sites)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_no_images_give_no_gradients() -> None:
    model = gated_digits(kind="dependent", granularity="layer")
    assert set(block_gradients(model, []).values()) == {0.0}
