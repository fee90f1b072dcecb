"""What stands in for functions that look at a whole batch is the same function where a batch is whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adaptify.parallel.whole_batch import WholeBatch


def run(module: nn.Module, images: Tensor, whole: bool) -> dict[str, Tensor]:
    images = images.clone().requires_grad_(True)
    torch.manual_seed(0)
    if whole:
        with WholeBatch(len(images)):
            output = module(images)
    else:
        output = module(images)
    weights = torch.linspace(-1, 2, output.numel()).view(output.shape)
    (output.float() * weights).sum().backward()
    assert images.grad is not None
    found = {"output": output.detach(), "gradient": images.grad}
    found |= {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
    return found | {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.BatchNorm2d(3), (8, 3, 5, 4)),
        (lambda: nn.BatchNorm1d(3, affine=False), (8, 3)),
        (lambda: nn.BatchNorm2d(3, momentum=None), (8, 3, 2, 2)),
        (lambda: nn.BatchNorm2d(3, track_running_stats=False), (8, 3, 2, 2)),
        (lambda: nn.BatchNorm2d(3).eval(), (8, 3, 2, 2)),
    ],
)
def test_batch_norm_is_that_of_torch(
    norm: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    images = (100 + torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    alone, shared = run(norm(), images, whole=False), run(norm(), images, whole=True)
    # Means are far from 0, where sums of squares would have lost all digits.
    precision = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(shared, alone, rtol=precision, atol=precision)


@pytest.mark.parametrize("module", [nn.Dropout(0.4), nn.Dropout2d(0.4), nn.Dropout(0.4, inplace=True)])
def test_dropout_drops_what_torch_drops(module: nn.Module) -> None:
    images = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    layers = nn.Sequential(nn.Hardtanh(), module)
    alone, shared = run(layers, images, whole=False), run(layers, images, whole=True)
    torch.testing.assert_close(shared, alone)
    assert 0 < int((shared["output"] == 0).sum()) < images.numel()


def test_noise_follows_the_memory_of_what_it_is_for() -> None:
    odds = torch.zeros(5, 8).T  # as gates that are decided by products have them
    torch.manual_seed(0)
    alone = torch.rand_like(odds)
    torch.manual_seed(0)
    with WholeBatch(8):
        shared = torch.rand_like(odds)
    assert shared.equal(alone)
    assert shared.shape == (8, 5)
