"""Taylor importance: by hand, and against what closing a channel does to the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptify.graph.channels import Channels, find_channels
from adaptify.graph.copying import share_copy
from adaptify.graph.masking import mask_channels
from adaptify.graph.program import compile_graph
from adaptify.graph.trace import trace
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.training.taylor import taylor_scores


class Chain(nn.Module):
    """Three channels, each the image times its weight, averaged and read by two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 1, bias=False)
        self.head = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.first(images).mean((2, 3)))


def test_scores_by_hand() -> None:
    channels = find_channels(trace(Chain().eval(), (1, 2, 2)))
    images = torch.full((1, 1, 2, 2), 0.5)
    scores = taylor_scores(channels, [(images, torch.tensor([0]))])["first"]
    # Features 0.5, 1, 1.5; logits 0.5 + 1.5 = 2 and -0.5 + 1.5 = 1; dL/dlogits = (p0 - 1, p1).
    # Channel 0: 0.5 * ((p0 - 1) * 1 + p1 * -1) = -p1; channel 2: 1.5 * ((p0 - 1) + p1) = 0; nobody reads 1.
    p1 = 1 / (1 + torch.e)
    assert scores.tolist() == pytest.approx([p1**2, 0, 0], abs=1e-6)


def test_every_batch_adds_its_square() -> None:
    channels = find_channels(trace(Chain().eval(), (1, 2, 2)))
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    one, two = ((images[:2], labels[:2]), (images[2:], labels[2:]))
    apart = [taylor_scores(channels, [batch])["first"] for batch in (one, two)]
    assert torch.allclose(taylor_scores(channels, [one, two])["first"], (apart[0] + apart[1]) / 2)


@pytest.fixture(scope="module")
def residual() -> Channels:
    """The channels of a small residual network whose BatchNorms do something."""
    torch.manual_seed(0)
    model = CifarResNet(blocks=1, shortcut="A")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return find_channels(trace(model.eval(), (3, 32, 32)))


def _loss(channels: Channels, name: str, channel: int, scale: float, batch: tuple[Tensor, Tensor]) -> float:
    """The loss when what is read of one channel is scaled."""
    keep = {name: torch.ones(channels.group(name).size, dtype=torch.bool)}
    keep[name][channel] = False
    masked = mask_channels(channels, keep)
    masks = masked.root.get_submodule("channel_masks")
    for reader, mask in masks.named_buffers():
        setattr(masks, reader, torch.where(mask == 0, scale, torch.ones((), dtype=torch.float64)))
    images, labels = batch
    exact = share_copy(masked.root, lambda tensor: tensor.detach().double())
    with torch.no_grad():
        return float(F.cross_entropy(compile_graph(masked.graph)(exact.eval(), images.double()), labels))


@pytest.mark.parametrize("name", ["conv1", "layer1.0.conv1", "layer3.0.conv1"])
def test_scores_are_slopes_of_the_loss_along_the_mask(name: str, residual: Channels) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = (torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8))
    scores = taylor_scores(residual, [batch])[name]
    step = 1e-6
    for channel in (0, 5):
        above, below = (_loss(residual, name, channel, 1 + sign * step, batch) for sign in (1, -1))
        assert float(scores[channel].sqrt()) == pytest.approx(abs(above - below) / (2 * step), rel=1e-3)


def test_the_network_is_left_as_it_is(residual: Channels) -> None:
    root = residual.traced.root
    before = {name: tensor.clone() for name, tensor in root.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in root.parameters()]
    taylor_scores(residual, [(torch.randn(4, 3, 32, 32), torch.arange(4))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in root.state_dict().items())
    assert [parameter.requires_grad for parameter in root.parameters()] == wanted
    assert all(parameter.grad is None for parameter in root.parameters())


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnext50_32x4d", "densenet121"])
def test_every_group_of_a_family_has_scores(name, build_family) -> None:
    family = build_family(name)
    channels = find_channels(family.traced)
    scores = taylor_scores(channels, [(family.images, torch.tensor([1, 2]))])
    assert scores.keys() == {group.name for group in channels.removable}
    for group in channels.removable:
        assert scores[group.name].shape == (group.size,)
        assert float(scores[group.name].max()) > 0, group.name
