"""The network that decides for all blocks: layouts, cost, where it starts, and leaving gates out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptify.errors import UsageError
from adaptify.gates.mask_net import FoldedMaskNet, MaskNet
from adaptify.graph.cost import count_module


def stirred(net: MaskNet, seed: int = 0) -> MaskNet:
    """`net` with weights and statistics that make all the difference, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
    assert isinstance(net.norm.running_mean, torch.Tensor)
    net.norm.running_mean.normal_(generator=generator)
    return net.eval()


@pytest.mark.parametrize("training", [False, True])
def test_every_block_is_open_at_first_for_every_sample(training: bool) -> None:
    torch.manual_seed(0)
    net = MaskNet(12, 7).train(training)
    with torch.no_grad():
        odds = net(torch.randn(32, 12, 9, 9) * 100 - 20)
    assert tuple(odds.shape) == (32, 7)
    assert bool((odds > 0).all())
    assert odds.unique().numel() == 1


def test_on_resnet_32_it_takes_what_the_paper_says() -> None:
    net = MaskNet(16, 14)
    macs = count_module(net, (1, 16, 32, 32))
    assert macs == 16 * 16 * 9 * 16 + 16 * 16 * 14
    assert macs / 69e6 == pytest.approx(0.0006, abs=0.00005)
    assert sum(parameter.numel() for parameter in net.parameters()) / 0.46e6 < 0.0161


@pytest.mark.parametrize("pool", [1, 3, 4])
def test_every_layout_of_the_same_map_decides_the_same(pool: int) -> None:
    first, last = (stirred(MaskNet(6, 5, pool=pool, filters=4, channel_axis=axis)) for axis in (1, -1))
    images = torch.randn(5, 6, 8, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        odds = first(images)
        others = [
            first(images.contiguous(memory_format=torch.channels_last)),
            first.to(memory_format=torch.channels_last)(images),
            last(images.permute(0, 2, 3, 1)),
        ]
    assert float(odds.std(0).min()) > 0.02
    for other in others:
        torch.testing.assert_close(other, odds, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("channels", [6, 4096])
def test_for_inference_it_decides_the_same(channels: int, dims: int, axis: int) -> None:
    net = stirred(MaskNet(channels, 5, pool=3, channel_axis=axis, spatial_dims=dims))
    fast = net.for_inference()
    # Where the matrix would be large the convolution stays.
    assert isinstance(fast, FoldedMaskNet) == (channels == 6)
    features = torch.randn(4, channels, *(9, 12)[:dims], generator=torch.Generator().manual_seed(1))
    features = features.movedim(1, axis)
    with torch.no_grad():
        wanted = net(features)
        assert float(wanted.std(0).min()) > 0.02
        torch.testing.assert_close(fast(features), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        assert torch.equal(net(features), wanted)


def test_tokens_are_averaged_in_runs_and_seen_with_their_neighbours() -> None:
    first, last = (stirred(MaskNet(6, 5, pool=2, channel_axis=axis, spatial_dims=1)) for axis in (1, -1))
    tokens = torch.randn(3, 6, 17, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        odds = first(tokens)
        torch.testing.assert_close(last(tokens.transpose(1, 2)), odds)
        # The same channels in another order of tokens are another sequence.
        assert float((first(tokens.flip(2)) - odds).abs().max()) > 0.1


def test_it_learns_through_all_its_layers_once_its_last_layer_has_moved() -> None:
    torch.manual_seed(0)
    net = MaskNet(6, 3)
    images = torch.randn(8, 6, 8, 8)
    for _ in range(2):
        net.zero_grad()
        (net(images) * torch.randn(8, 3)).sum().backward()
        with torch.no_grad():
            net.linear.weight -= 0.01 * net.linear.weight.grad
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in net.parameters())


@pytest.mark.parametrize(
    "options", [{}, {"channel_axis": -1, "spatial_dims": 1}, {"pool": 2, "filters": 3}], ids=str
)
def test_gates_that_are_kept_decide_as_before(options: dict[str, int]) -> None:
    net = stirred(MaskNet(6, 5, **options))
    shape = (4, 9, 6) if "spatial_dims" in options else (4, 6, 8, 8)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    smaller = net.keep_gates([4, 1])
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), net(images)[:, [4, 1]])
        smaller.conv.weight.zero_()
        assert float(net.conv.weight.abs().max()) > 0  # tensors of its own
    assert not smaller.training


@pytest.mark.parametrize("kept", [[], [5], [-1, 2]])
def test_gates_that_are_not_there_cannot_be_kept(kept: list[int]) -> None:
    with pytest.raises(UsageError, match="there are 5 gates"):
        MaskNet(6, 5).keep_gates(kept)


def test_features_without_positions_are_refused() -> None:
    with pytest.raises(UsageError, match="0 spatial dims"):
        MaskNet(6, 5, spatial_dims=0)


def test_it_can_be_exported() -> None:
    net = stirred(MaskNet(6, 5))
    images = torch.randn(2, 6, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (images,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 6, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), net(more))
