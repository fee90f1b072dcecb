from __future__ import annotations

import json

import exit_costs
import pytest
import torch
from multi_scale_nets import images, small_ranet
from torch import nn

from adaptify.errors import UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.models import ranet
from adaptify.models.registry import Architecture, resolve


def test_macs_are_those_of_the_published_table():
    traced = trace(ranet.ranet_cifar100_anytime(), (3, 32, 32))
    macs = exit_costs.exit_macs(traced, CostModel(traced, "msdnet"))
    # BoostNet, table 1.
    printed = [15.83, 31.31, 44.69, 50.40, 60.71, 63.72, 90.26, 95.00]
    assert [round(count / 1e6, 2) for count in macs] == printed


@pytest.mark.slow
def test_macs_of_the_network_for_imagenet_are_those_of_the_published_table():
    traced = trace(ranet.ranet_imagenet_anytime(), (3, 224, 224))
    macs = exit_costs.exit_macs(traced, CostModel(traced, "msdnet"))
    # BoostNet, table 2, which has these figures under MSDNet.
    assert exit_costs.millions(macs, 4) == [435.0, 888.7, 1153, 1352, 2280, 2588, 3236, 3333]


@pytest.mark.parametrize(
    ("build", "exits", "layers"),
    [
        (ranet.ranet_cifar100_batch1, 6, [2, 4, 6, 8, 10, 12]),
        (ranet.ranet_cifar100_batch2, 8, [2, 4, 6, 8, 10, 12, 14, 16]),
        (ranet.ranet_cifar100_batch3, 8, [2, 4, 6, 8, 10, 12, 14, 16]),
        (ranet.ranet_imagenet_batch1, 8, [8] * 8),
    ],
)
def test_named_networks_have_the_exits_and_layers_of_the_paper(build, exits, layers):
    model = build()
    assert len(model.classifier) == exits
    assert [len(block.layers) for block in model.scale_flows[-1]] == layers


@pytest.mark.parametrize("scales", [[1, 2, 3], [1, 2, 2, 3], [1, 2, 3, 3], [1, 2, 3, 4], [1, 1, 2]])
def test_every_classifier_sees_the_lowest_resolution(scales):
    factors = [1] * len(scales)
    model = small_ranet(scales=scales, factors=factors, bottlenecks=factors)
    seen = []
    for classifier in model.classifier:
        classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2:]))
    model(images(height=64, width=32))
    lowest = 2 ** (scales[-1] - 1)
    assert set(seen) == {(64 // lowest, 32 // lowest)}


def test_an_exit_does_not_depend_on_what_comes_after():
    model = small_ranet().eval()
    before = model(images())
    with torch.no_grad():
        for module in (*model.scale_flows[2:], *model.classifier[4:]):
            for parameter in module.parameters():
                parameter.add_(1)
    after = model(images())
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * 4 + [False] * 4


def test_a_sub_network_is_fused_with_the_one_before():
    model = small_ranet().eval()
    before = model(images())
    with torch.no_grad():
        for parameter in model.scale_flows[0][0].parameters():
            parameter.add_(1)
    assert not any(torch.equal(a, b) for a, b in zip(before, model(images()), strict=True))


def test_names_are_those_of_the_public_checkpoints():
    names = set(ranet.ranet_cifar100_anytime().state_dict())
    assert {
        "FirstLayer.layers.0.net.0.weight",
        "scale_flows.0.0.layers.0.conv_normal.net.3.weight",
        "scale_flows.1.0.layers.3.conv_up.net.0.weight",
        "scale_flows.1.0.conv_last.net.1.bias",
        "scale_flows.1.1.trans.net.0.weight",
        "classifier.7.m.1.net.0.weight",
        "classifier.7.linear.weight",
    } <= names


def test_a_description_in_json_builds_the_same_network():
    given = {"num_classes": 10, "in_channels": 1, "scales": [1, 2], "factors": [2, 1], "bottlenecks": [2, 1]}
    architecture = resolve("adaptify:ranet_cifar100_anytime", given)
    assert architecture.input.shape == (1, 32, 32)
    read = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    model, again = architecture.build().eval(), read.build().eval()
    again.load_state_dict(model.state_dict(), strict=True)
    grey = images(channels=1)
    assert all(torch.equal(a, b) for a, b in zip(model(grey), again(grey), strict=True))
    assert [linear.out_features for linear in again.modules() if isinstance(linear, nn.Linear)] == [10] * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": [2, 2, 3, 3]}, "Start with 1"),
        ({"scales": [1, 3, 3, 3]}, "Start with 1"),
        ({"scales": [1, 2, 1, 2]}, "Start with 1"),
        ({"scales": [1, 2, 3]}, "scales has 3, factors has 4"),
        ({"block_step": 0}, "block_step is 0"),
        ({"compression": 0.01}, "leaves one side without any"),
        ({"compression": 1}, "leaves one side without any"),
        ({"compression": 2}, "compression is 2"),
        ({"stem": 7}, "unknown stem 7"),
    ],
)
def test_a_configuration_that_describes_no_network_is_refused(changes, words):
    with pytest.raises(UsageError) as refused:
        resolve("adaptify:ranet_cifar100_anytime", changes).build()
    assert words in str(refused.value) + (refused.value.hint or "")
