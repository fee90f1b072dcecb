from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptify.errors import UsageError
from adaptify.models.cifar_resnet import (
    CifarResNet,
    PadShortcut,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    digits_resnet,
)


@pytest.mark.parametrize(
    ("build", "layers", "parameters"),
    [
        # He et al., 2016, table 6, rounds them to 0.27 M, 0.46 M, 0.66 M, 0.85 M and 1.7 M.
        (cifar_resnet20, 20, 269_722),
        (cifar_resnet32, 32, 464_154),
        (cifar_resnet44, 44, 658_586),
        (cifar_resnet56, 56, 853_018),
        (cifar_resnet110, 110, 1_727_962),
    ],
)
def test_depth_and_parameters_are_those_of_the_paper(build, layers, parameters):
    model = build()
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_parameters_of_one_network_counted_by_hand():
    n = 3  # blocks a stage
    stem = 3 * 16 * 9 + 2 * 16
    first = n * (2 * 16 * 16 * 9 + 4 * 16)
    second = (16 * 32 * 9 + 32 * 32 * 9 + 4 * 32) + (n - 1) * (2 * 32 * 32 * 9 + 4 * 32)
    third = (32 * 64 * 9 + 64 * 64 * 9 + 4 * 64) + (n - 1) * (2 * 64 * 64 * 9 + 4 * 64)
    linear = 64 * 10 + 10
    assert stem + first + second + third + linear == sum(p.numel() for p in cifar_resnet20().parameters())


def test_names_are_those_of_the_public_checkpoints():
    names = list(cifar_resnet20().state_dict())
    assert names[0] == "conv1.weight"
    assert names[1] == "bn1.weight"
    assert "layer3.2.bn2.running_var" in names
    assert names[-2:] == ["linear.weight", "linear.bias"]
    assert not [name for name in names if "shortcut" in name]
    projected = [name for name in cifar_resnet20(shortcut="B").state_dict() if "shortcut" in name]
    assert projected[0] == "layer2.0.shortcut.0.weight"
    assert {name.split(".")[0] for name in projected} == {"layer2", "layer3"}


def test_pad_shortcut_keeps_every_second_pixel_and_centres_the_old_channels():
    x = torch.arange(2 * 16, dtype=torch.float32).reshape(1, 2, 4, 4)
    out = PadShortcut(2, 6, 2)(x)
    assert out.shape == (1, 6, 2, 2)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert torch.equal(out[:, :2], torch.zeros(1, 2, 2, 2))
    assert torch.equal(out[:, 4:], torch.zeros(1, 2, 2, 2))


@pytest.mark.parametrize("size", [32, 31, 40])
def test_stages_halve_the_resolution(size):
    model = CifarResNet(blocks=[1, 2, 1], widths=[4, 8, 12], num_classes=5).eval()
    shapes = []
    for name in model.stages:
        model.get_submodule(name).register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    assert model(torch.randn(2, 3, size, size)).shape == (2, 5)
    half = (size + 1) // 2
    assert shapes == [(4, size, size), (8, half, half), (12, (half + 1) // 2, (half + 1) // 2)]


def test_digits_network_reads_grey_images_of_8x8():
    model = digits_resnet().eval()
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    assert digits_resnet(in_channels=3).conv1.in_channels == 3


@pytest.mark.parametrize(
    "kwargs",
    [
        {"widths": []},
        {"widths": [16, 0, 3]},
        {"shortcut": "C"},
        {"widths": [32, 16]},
        {"num_classes": 0},
    ],
)
def test_arguments_that_describe_no_network_are_refused(kwargs):
    with pytest.raises(UsageError):
        cifar_resnet20(**kwargs)
