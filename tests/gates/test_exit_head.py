from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from adaptify.errors import UsageError
from adaptify.gates.exit_head import ExitHead


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(5, 6, 8, 8, generator=torch.Generator().manual_seed(0))


def test_scores_are_the_linear_layer_of_the_spatial_mean() -> None:
    head = ExitHead(2, 2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
        head.linear.bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([[[[1.0, 3.0]], [[4.0, 6.0]]]])  # one image, 2 channels of 1 x 2; means 2 and 5

    assert head(x).tolist() == [[2.5, -1.0]]


def test_every_layout_of_the_same_values_pools_to_the_same_features(features: torch.Tensor) -> None:
    expected = features.mean((2, 3))
    channels_first, channels_last = ExitHead(6, 3), ExitHead(6, 3, channel_axis=-1)

    torch.testing.assert_close(channels_first.pool(features), expected)
    torch.testing.assert_close(channels_last.pool(features.permute(0, 2, 3, 1)), expected)
    torch.testing.assert_close(channels_last.pool(features.flatten(2).transpose(1, 2)), expected)
    assert channels_first.pool(expected) is expected
    assert channels_last.pool(expected) is expected


@pytest.mark.parametrize("side", [2, 3])
def test_a_grid_of_averages_is_ordered_like_the_flattened_adaptive_pool(
    features: torch.Tensor, side: int
) -> None:
    expected = F.adaptive_avg_pool2d(features, side).flatten(1)

    torch.testing.assert_close(ExitHead(6, 3, pool=side).pool(features), expected)
    last = ExitHead(6, 3, pool=side, channel_axis=-1)
    torch.testing.assert_close(last.pool(features.permute(0, 2, 3, 1)), expected)
    assert last(features.permute(0, 2, 3, 1)).shape == (5, 3)


def test_a_sequence_is_averaged_in_equal_runs() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1)

    assert ExitHead(1, 2, pool=2, channel_axis=-1).pool(x).tolist() == [[0.5, 2.5, 4.5, 6.5]]


@pytest.mark.parametrize("side", [1, 2])
def test_channels_last_memory_is_read_without_a_conversion(features: torch.Tensor, side: int) -> None:
    x = features.contiguous(memory_format=torch.channels_last)
    head = ExitHead(6, 3, pool=side)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        pooled = head.pool(x)

    torch.testing.assert_close(pooled, head.pool(features))
    copied = [event for event in profiler.events() if event.name in ("aten::copy_", "aten::contiguous")]
    whole = [event for event in copied if event.input_shapes[:1] == [list(x.shape)]]
    assert whole == []


def test_gradients_and_scripts_of_training_reach_the_linear_layer(features: torch.Tensor) -> None:
    head = ExitHead(6, 3, pool=2)
    head(features).sum().backward()

    assert isinstance(head.linear, nn.Linear)
    assert head.linear.weight.grad is not None
    assert sorted(head.state_dict()) == ["linear.bias", "linear.weight"]


def test_it_exports_with_a_free_batch_size(features: torch.Tensor) -> None:
    head = ExitHead(6, 3)
    exported = torch.export.export(head, (features,), dynamic_shapes=({0: torch.export.Dim("n")},))

    torch.testing.assert_close(exported.module()(features[:3]), head(features[:3]))


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"classes": 0}, {"pool": 0}, {"channel_axis": 2}])
def test_sizes_and_axes_without_meaning_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        ExitHead(**{"channels": 4, "classes": 2, **wrong})


def test_vectors_have_no_grid_of_averages() -> None:
    with pytest.raises(UsageError, match=r"pool=2 .* \(3, 4\)"):
        ExitHead(4, 2, pool=2)(torch.zeros(3, 4))
