from __future__ import annotations

import pytest
import torch
from tiny_data import conv_net, linear_net
from torch import nn

from adaptify.errors import UsageError
from adaptify.training.optimizer import GateParameters, make_optimizer, parameter_groups, scale_rates
from adaptify.training.options import LoopOptions


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = conv_net()
        self.gate = nn.Linear(4, 2)

    @property
    def gates(self) -> GateParameters:
        return GateParameters(list(self.gate.parameters()), count=40)


def settings_of(groups: list[dict], parameter: nn.Parameter) -> tuple[float, float]:
    (group,) = [group for group in groups if any(item is parameter for item in group["params"])]
    return group["lr"], group["weight_decay"]


def test_gates_have_their_own_rate_and_share_the_decay_of_twenty() -> None:
    model = Gated()
    groups = parameter_groups(model, LoopOptions(lr=0.1, gate_lr=0.3, weight_decay=0.02), model.gates)

    for parameter in model.gate.parameters():
        assert settings_of(groups, parameter) == (0.3, pytest.approx(0.01))  # 0.02 * 20 / 40
    for parameter in model.body.parameters():  # biases and BatchNorm too
        assert settings_of(groups, parameter) == (0.1, 0.02)


def test_gates_take_the_rate_of_the_network_unless_they_have_one() -> None:
    model = Gated()
    groups = parameter_groups(model, LoopOptions(lr=0.1, weight_decay=0.02), model.gates)
    assert settings_of(groups, model.gate.weight) == (0.1, pytest.approx(0.01))


def test_biases_and_normalisation_can_be_spared_the_decay() -> None:
    model = conv_net()
    groups = parameter_groups(model, LoopOptions(lr=0.1, weight_decay=0.02, decay_vectors=False))
    for parameter in model.parameters():
        assert settings_of(groups, parameter) == (0.1, 0.02 if parameter.ndim > 1 else 0.0)


def test_frozen_parameters_are_in_no_group_and_nothing_to_train_is_an_error() -> None:
    model = linear_net()
    model[1].weight.requires_grad_(False)
    (group,) = parameter_groups(model, LoopOptions())
    assert [item is model[1].bias for item in group["params"]] == [True]

    model[1].bias.requires_grad_(False)
    with pytest.raises(UsageError, match="Sequential has no parameters"):
        parameter_groups(model, LoopOptions())


def test_a_schedule_scales_the_rate_of_every_group() -> None:
    model = Gated()
    optimizer = make_optimizer(model, LoopOptions(lr=0.1, gate_lr=0.3), model.gates)
    scale_rates(optimizer, 0.5)
    scale_rates(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.03])


def test_one_step_of_sgd_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    model = nn.ParameterList([weight])
    options = LoopOptions(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.25)
    optimizer = make_optimizer(model, options)
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    # gradient 1 + 0.25 * 2 = 1.5; Nesterov adds half the velocity, which is 1.5: 2 - 0.1 * 2.25
    assert weight.item() == pytest.approx(1.775)


def test_without_momentum_nesterov_has_no_meaning() -> None:
    optimizer = make_optimizer(linear_net(), LoopOptions(momentum=0.0, nesterov=True))
    assert isinstance(optimizer, torch.optim.SGD)
    assert not optimizer.defaults["nesterov"]


def test_adamw_decays_apart_from_the_gradient() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer(
        nn.ParameterList([weight]), LoopOptions(optimizer="adamw", lr=0.1, weight_decay=0.5)
    )
    weight.grad = torch.tensor([7.0])
    optimizer.step()
    assert weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1)  # the first step of Adam is lr


def test_gates_that_are_not_counted_have_the_decay_of_the_network() -> None:
    model = Gated()
    options = LoopOptions(lr=0.1, gate_lr=0.3, weight_decay=0.02, decay_vectors=False)
    groups = parameter_groups(model, options, GateParameters(list(model.gate.parameters())))
    assert settings_of(groups, model.gate.weight) == (0.3, 0.02)
    assert settings_of(groups, model.gate.bias) == (0.3, 0.0)


def test_a_companion_has_the_settings_of_the_network() -> None:
    model, companion = Gated(), conv_net()
    groups = parameter_groups(model, LoopOptions(lr=0.1, gate_lr=0.3), model.gates, companion)
    for parameter in companion.parameters():
        assert settings_of(groups, parameter) == (0.1, 5e-4)
    assert parameter_groups(model, LoopOptions(), model.gates) == parameter_groups(
        model, LoopOptions(), model.gates, None
    )
