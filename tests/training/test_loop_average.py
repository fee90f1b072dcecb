from __future__ import annotations

import pytest
import torch
from tiny_data import conv_net, linear_net, weights
from torch import Tensor, nn

from adaptify.training.average import WeightAverage
from adaptify.training.recalibrate import recalibrate


def test_the_average_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    model = nn.ParameterList([weight])
    average = WeightAverage(model, decay=0.75)
    for value in (5.0, -3.0):
        weight.data.fill_(value)
        average.update()

    with average.in_place():
        # 0.75 * 1 + 0.25 * 5 = 2, then 0.75 * 2 - 0.25 * 3
        assert weight.item() == 0.75
    assert weight.item() == -3.0
    average.adopt()
    assert weight.item() == 0.75


def test_weights_return_after_a_failure() -> None:
    model = linear_net()
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model[1].weight.add_(1.0)
    before = weights(model)

    def fail() -> None:
        assert not weights(model).equal(before)
        raise RuntimeError("validation")

    with pytest.raises(RuntimeError, match="validation"), average.in_place():
        fail()
    assert weights(model).equal(before)


def test_buffers_are_those_of_the_network() -> None:
    model = conv_net().train()
    average = WeightAverage(model, 0.9)
    model(torch.randn(8, 1, 4, 4))
    mean = model[1].running_mean.clone()
    with average.in_place():
        assert model[1].running_mean.equal(mean)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_recalibrated_statistics_are_those_of_the_data() -> None:
    model = conv_net()
    data = images(96)
    model[1].running_mean.fill_(100.0)
    recalibrate(model, data.split(32))

    values = model[0](data).detach().transpose(0, 1).flatten(1)  # (channels, values)
    parts = [model[0](part).detach().transpose(0, 1).flatten(1).var(dim=1) for part in data.split(32)]
    assert model[1].running_mean.tolist() == pytest.approx(values.mean(dim=1).tolist(), abs=1e-6)
    assert model[1].running_var.tolist() == pytest.approx(torch.stack(parts).mean(dim=0).tolist(), rel=1e-5)


def test_recalibration_changes_nothing_else() -> None:
    model = nn.Sequential(conv_net(), nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=0.3)).train()
    before = weights(model).clone()
    recalibrate(model, images(64).split(32))

    assert weights(model).equal(before)
    assert (model[0][1].momentum, model[2].momentum) == (0.1, 0.3)
    assert not any(module.training for module in model.modules())
    # Without dropout, the second normalisation sees what it will see.
    seen = torch.cat([torch.as_tensor(model[0][4](feature)) for feature in _features(model)])
    assert model[2].running_mean.tolist() == pytest.approx(seen.mean(dim=0).tolist(), abs=1e-5)


def _features(model: nn.Sequential) -> list[Tensor]:
    """What the linear layer sees of each batch while the normalisation before it is in training mode."""
    body = model[0]
    body[1].train()
    with torch.no_grad():
        found = [body[3](body[2](body[1](body[0](part)))) for part in images(64).split(32)]
    body[1].eval()
    return found


def test_parts_that_evaluation_leaves_out_are_run_where_that_is_asked_for() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.extra = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.main(x)

        def everything(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.main(x), self.extra(x)

    model, seen = Lazy(), images(64)
    recalibrate(model, seen.split(32), forward=model.everything)
    for norm in (model.main, model.extra):
        assert norm.running_mean.tolist() == pytest.approx(seen.mean((0, 2, 3)).tolist(), abs=1e-5)


def test_no_batches_leave_the_statistics() -> None:
    model = conv_net()
    model[1].running_mean.fill_(100.0)
    recalibrate(model, [])
    assert model[1].running_mean.tolist() == [100.0] * 8


def test_frozen_momentum_returns_after_a_failure() -> None:
    model = conv_net()
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.zeros(2, 3, 4, 4)])
    assert model[1].momentum == 0.1
    assert not model[1].training
