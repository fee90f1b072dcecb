from __future__ import annotations

import json

import exit_costs
import pytest
import torch
from multi_scale_nets import images, small_msdnet
from torch import nn

from adaptify.checkpoint.architecture import find_architecture
from adaptify.checkpoint.read import read_checkpoint
from adaptify.errors import UsageError
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.models import msdnet
from adaptify.models.msdnet import DenseRow, digits_msdnet
from adaptify.models.registry import Architecture, resolve


def test_macs_are_those_of_the_published_table():
    traced = trace(msdnet.msdnet_cifar100_anytime(), (3, 32, 32))
    cost = CostModel(traced, "msdnet")
    # BoostNet, table 1; its counter has all layers of a block before the classifier.
    blocks = [count / 1e6 for count in exit_costs.block_macs(traced, cost)]
    printed = [15.14, 25.51, 37.79, 52.06, 62.18, 74.07, 87.73, 100.04, 110.12, 121.68]
    assert [round(count, 2) for count in blocks] == printed
    # What a classifier does not need is left for later.
    needed = [count / 1e6 for count in exit_costs.exit_macs(traced, cost)]
    expected = [13.39, 23.46, 35.45, 50.96, 60.93, 72.67, 86.18, 100.04, 110.12, 121.68]
    assert [round(count, 2) for count in needed] == expected


@pytest.mark.slow
def test_macs_of_the_network_for_imagenet_are_those_of_the_published_table():
    traced = trace(msdnet.msdnet_imagenet_step7(), (3, 224, 224))
    cost = CostModel(traced, "msdnet")
    # BoostNet, table 2, which has these figures under RANet.
    blocks = exit_costs.block_macs(traced, cost)
    assert exit_costs.millions(blocks, 4) == [615.7, 1436, 2283, 2967, 3254]
    needed = exit_costs.exit_macs(traced, cost)
    assert exit_costs.millions(needed, 4) == [505.1, 1340, 2227, 2967, 3254]


@pytest.mark.parametrize(
    ("build", "depths"),
    [
        (msdnet.msdnet_cifar100_anytime, list(range(4, 23, 2))),
        # BoostNet, "Experiments": {2i + k | i = 1..6}.
        (msdnet.msdnet_cifar100_batch4, [2 * i + 4 for i in range(1, 7)]),
        (msdnet.msdnet_cifar100_batch8, [2 * i + 8 for i in range(1, 7)]),
        (msdnet.msdnet_cifar100_batch12, [2 * i + 12 for i in range(1, 7)]),
        (msdnet.msdnet_imagenet_step4, [4, 8, 12, 16, 20]),
        (msdnet.msdnet_imagenet_step7, [7, 14, 21, 28, 35]),
    ],
)
def test_classifiers_are_at_the_depths_of_the_paper(build, depths):
    layers = [sum(isinstance(row, DenseRow) for row in block) for block in build().blocks]
    assert [sum(layers[: index + 1]) for index in range(len(layers))] == depths


def test_an_exit_does_not_depend_on_what_comes_after():
    model = small_msdnet().eval()
    before = model(images())
    with torch.no_grad():
        for module in (*model.blocks[2:], *model.classifier[2:]):
            for parameter in module.parameters():
                parameter.add_(1)
    after = model(images())
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]


def test_names_are_those_of_the_public_checkpoints():
    names = set(msdnet.msdnet_imagenet_step4().state_dict())
    assert {
        "blocks.0.0.layers.0.0.weight",  # the stem: convolution, with a bias
        "blocks.0.0.layers.0.0.bias",
        "blocks.0.0.layers.0.1.running_mean",
        "blocks.0.0.layers.3.net.0.weight",
        "blocks.0.1.layers.0.conv_normal.net.3.weight",
        "blocks.0.1.layers.1.conv_down.net.0.weight",
        "blocks.1.2.m.0.net.0.weight",  # layer 6 gives up a scale: the second row, then its transition
        "classifier.4.m.1.net.1.weight",
        "classifier.4.linear.bias",
    } <= names


def test_weights_have_the_variance_of_the_paper_and_biases_are_zero():
    torch.manual_seed(0)
    model = msdnet.msdnet_cifar100_anytime()
    kernel = model.classifier[9].m[0].net[0].weight
    assert kernel.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear))


def test_a_description_in_json_builds_the_same_network():
    given = {"num_classes": 10, "blocks": 3, "factors": [1, 2], "bottlenecks": [1, 2], "growth": 8}
    architecture = resolve("adaptify:msdnet_cifar100_anytime", given)
    read = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    model, again = architecture.build(), read.build()
    again.load_state_dict(model.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(model.eval()(images()), again.eval()(images()), strict=True))
    assert [linear.out_features for linear in again.modules() if isinstance(linear, nn.Linear)] == [10] * 3


def test_a_checkpoint_tells_its_architecture_and_classes(tmp_path):
    model = digits_msdnet(num_classes=7)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    found = find_architecture(read_checkpoint(tmp_path / "net.pth"), arch="digits_msdnet")
    assert found.name == "adaptify:digits_msdnet"
    assert found.kwargs == {"num_classes": 7}
    assert found.input.shape == (1, 8, 8)


def test_a_few_steps_teach_the_small_network_digits():
    # Bright left or bright right half: something that every exit can learn at once.
    torch.manual_seed(0)
    model = digits_msdnet(num_classes=2)
    labels = torch.arange(64) % 2
    pixels = 0.1 * images(64, 1, 8, 8)
    pixels[labels == 0, :, :, :4] += 1
    pixels[labels == 1, :, :, 4:] += 1
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(15):
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(logits, labels) for logits in model(pixels)).backward()
        optimizer.step()
    assert all((logits.argmax(1) == labels).all() for logits in model(pixels))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"step": 1.5}, "step is 1.5"),
        ({"growth": True}, "growth is True"),
        ({"num_classes": "ten"}, "num_classes is 'ten'"),
        ({"head_channels": -1}, "head_channels is -1"),
        ({"reduction": 0}, "reduction is 0"),
        ({"factors": []}, "factors is"),
        ({"factors": "124"}, "factors is '124'"),
        ({"factors": [1, 0, 4]}, "factors is"),
        ({"factors": [1, 2]}, "factors has 2, bottlenecks has 3"),
        ({"stem": "huge"}, "unknown stem 'huge'"),
        ({"growth": 5, "factors": [1, 1, 2]}, "cannot be halved"),
        ({"blocks": 1, "base": 2}, "2 layers cannot reduce 3 scales"),
        ({"grow": 4}, "grow"),
    ],
)
def test_a_configuration_that_describes_no_network_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        resolve("adaptify:msdnet_cifar100_anytime", changes).build()
