"""The classifier that guides: any image size, in training and evaluation."""

from __future__ import annotations

import pytest
import torch

from adaptify.gates.guide_net import GuideNet


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 37, 50)])
def test_it_classifies_images_of_any_size(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    net = GuideNet(shape[0], 7)
    logits = net(torch.randn(4, *shape))
    assert tuple(logits.shape) == (4, 7)
    logits.square().sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in net.parameters())
