"""Linear heads that start as classifiers of what the network has at their sites."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from digits_network import learned_digits
from gated_nets import DIGITS
from torch import nn

from adaptify.assembly import assemble
from adaptify.data import Data, open_data
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.methods import ExitFit, FitContext
from adaptify.methods.boostnet import BoostNet, Gates, Train
from adaptify.methods.linear_heads import linear_layers
from adaptify.runtime.adaptive import AdaptiveModel


@pytest.fixture(scope="module")
def data() -> Data:
    return open_data("digits", input=DIGITS.input)


@pytest.fixture(scope="module")
def network(data: Data) -> nn.Module:
    return learned_digits(data, epochs=3)


def untrained(
    network: nn.Module, data: Data, folder: Path, gates: Gates, *, warm: bool
) -> tuple[AdaptiveModel, ExitFit]:
    """BoostNet without an epoch of training: what it starts from."""
    method = BoostNet(gates, Train(epochs=0, warm_start=warm))
    traced = trace(network, DIGITS.input.shape).with_own_tensors()
    model = assemble(traced, method.place(traced, CostModel(traced), 10))
    assert isinstance(model, AdaptiveModel)
    return model, method.fit(model, data, FitContext(torch.device("cpu"), 256, 0, folder, folder))


def test_heads_start_as_classifiers_and_the_network_stays(
    network: nn.Module, data: Data, tmp_path: Path
) -> None:
    warm, fit = untrained(network, data, tmp_path, Gates(ensemble="none"), warm=True)
    accuracy = fit.test.correct.double().mean(1)
    assert accuracy[0] > 0.7
    assert accuracy[1] > 0.9
    own = network.state_dict()
    assert all(torch.equal(warm.state_dict()[name], value) for name, value in own.items())


def test_without_it_boosted_heads_start_at_nothing(network: nn.Module, data: Data, tmp_path: Path) -> None:
    cold, fit = untrained(network, data, tmp_path, Gates(), warm=False)
    assert all(not linear.weight.any() and not linear.bias.any() for linear in linear_layers(cold).values())
    warm, warm_fit = untrained(network, data, tmp_path, Gates(), warm=True)
    assert all(linear.weight.any() for linear in linear_layers(warm).values())
    gained = warm_fit.test.correct.double().mean(1) - fit.test.correct.double().mean(1)
    assert (gained[:-1] > 0.5).all()
    # The output is a sum with all exits now; it is not much worse for it.
    assert gained[-1] > -0.05


def test_heads_of_convolutions_start_as_they_are_made(network: nn.Module, data: Data, tmp_path: Path) -> None:
    gates = Gates(head="convolutional", width=4)
    model, _ = untrained(network, data, tmp_path, gates, warm=True)
    assert linear_layers(model) == {}
    heads = [item.head for item in model.exits]
    assert all(head is not None and not head.linear.weight.any() for head in heads)
