"""Exit sites, residual blocks and stage ends of hand-made networks and of the families."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from adaptify.errors import UsageError
from adaptify.graph.axes import channel_axis
from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import BlockSite, ExitSite, find_blocks, find_exits, select_sites
from adaptify.graph.trace import trace


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class Residual(nn.Module):
    """join(x, f(x)); f is two convolutions."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1 = conv(4, 4)
        self.conv2 = conv(4, 4)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.conv2(functional.relu(self.conv1(x))))


class Net(nn.Module):
    """A stem, the blocks of the test, a classifier."""

    def __init__(self, *blocks: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def blocks_of(model: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> tuple[BlockSite, ...]:
    traced = trace(model, shape)
    return find_blocks(traced, CostModel(traced))


def exits_of(model: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> tuple[ExitSite, ...]:
    traced = trace(model, shape)
    return find_exits(traced, CostModel(traced))


def default_names(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    traced = trace(model, shape)
    cost = CostModel(traced)
    return [site.name for site in default_exits(traced, cost, find_exits(traced, cost))]


def iadd(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return y


ADDITIONS = {
    "x + f": lambda x, y: x + y,
    "f + x": lambda x, y: y + x,
    "f += x": iadd,
    "torch.add(x, f)": lambda x, y: torch.add(x, y),
    "torch.add(f, other=x)": lambda x, y: torch.add(y, other=x),
    "f.add(x)": lambda x, y: y.add(x),
    "f.add_(x)": lambda x, y: y.add_(x),
}


@pytest.mark.parametrize("join", ADDITIONS.values(), ids=ADDITIONS)
def test_residual_addition_in_every_form(join):
    (block,) = blocks_of(Net(Residual(join)))
    assert (block.name, block.source, block.shortcut) == ("blocks.0", "stem", "stem")
    assert block.branch == "blocks_0_conv2"
    assert (block.macs, block.shortcut_macs) == (2 * 64 * 4 * 4 * 9, 0)


NO_BLOCKS = {
    "x * f": lambda x, y: x * y,
    "x - f": lambda x, y: x - y,
    "x + f / 2 in one": lambda x, y: torch.add(x, y, alpha=0.5),
    "f + f": lambda x, y: y + y,
    "x + 1": lambda x, y: y + 1.0,
    "cat": lambda x, y: torch.cat([x, y], 1)[:, :4],
    "broadcast": lambda x, y: x + y.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("join", NO_BLOCKS.values(), ids=NO_BLOCKS)
def test_what_is_no_residual_block(join):
    assert blocks_of(Net(Residual(join))) == ()


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


def test_x_plus_x_is_no_block():
    assert blocks_of(Net(Doubled())) == ()


def test_blocks_in_a_row_and_nested():
    def add(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    outer = Residual(add)
    outer.conv1 = Residual(add)
    found = blocks_of(Net(Residual(add), outer, Residual(add)))
    # The inner block lies within the outer one's branch: leaving out the outer leaves it out too.
    assert [block.name for block in found] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [block.source for block in found] == ["stem", found[0].add, found[1].add]
    assert found[1].macs == 3 * 64 * 4 * 4 * 9


class Projected(nn.Module):
    """A residual block that changes its width, with a shortcut of the given kind."""

    def __init__(self, shortcut: nn.Module, swapped: bool = False) -> None:
        super().__init__()
        self.conv1 = conv(4, 8, 2)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = conv(8, 8)
        self.shortcut = shortcut
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(functional.relu(self.bn1(self.conv1(x))))
        return self.shortcut(x) + y if self.swapped else y + self.shortcut(x)


class OptionA(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("shortcut", "end", "macs"),
    [
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 1, 2), nn.BatchNorm2d(8)), "blocks_0_shortcut_1", 16 * 8 * 4),
        (OptionA, "pad", 0),
    ],
    ids=["projection", "option A"],
)
def test_shortcuts_that_change_the_width_stay(shortcut, end, macs, swapped):
    (block,) = blocks_of(Net(Projected(shortcut(), swapped), channels=8))
    assert block.name == "blocks.0"
    assert block.source == "stem"
    assert block.branch == "blocks_0_conv2"
    assert block.shortcut == end
    assert block.macs == 16 * 8 * 4 * 9 + 16 * 8 * 8 * 9
    assert block.shortcut_macs == macs


class PreActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs)
        self.conv2 = conv(outputs, outputs)
        self.project = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn(x))
        shortcut = x if self.project is None else self.project(y)
        return shortcut + self.conv2(functional.relu(self.conv1(y)))


def test_pre_activation_blocks():
    first, second, third = blocks_of(
        Net(PreActivation(4, 4), PreActivation(4, 8), PreActivation(8, 8), channels=8)
    )
    assert first.source == first.shortcut == "stem"
    # With a projection the activated tensor is what both paths start from.
    assert second.source == "relu_2"
    assert second.shortcut == "blocks_1_project"
    assert third.source == third.shortcut == second.add
    assert first.macs == 2 * 64 * 4 * 4 * 9


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v))


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Tokens of 4x4 pixels; the image axis is the last."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.Sequential(*(Layer(8) for _ in range(layers)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def test_transformer_layers_have_two_blocks_each():
    found = blocks_of(Transformer(2))
    assert [block.name for block in found] == [
        "layers.0.add",
        "layers.0.add_1",
        "layers.1.add",
        "layers.1.add_1",
    ]
    assert [block.macs for block in found[:2]] == [4 * 4 * 8 * 8 + 2 * 4 * 4 * 8, 4 * 4 * 8 * 8]
    assert all(block.shortcut == block.source for block in found)


def test_transformer_exits_keep_channels_last_and_part_the_network_evenly():
    model = Transformer(8)
    by_name = {site.name: site for site in exits_of(model)}
    site = by_name["layers.3"]
    assert (site.channels, site.channel_axis, site.positions) == (8, -1, 4)
    assert default_names(model, (3, 8, 8)) == ["layers.1", "layers.3", "layers.5"]


class Dense(nn.Module):
    """Each layer's output is put beside its input."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(channels + 2 * index, 2) for index in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def test_concatenation_networks_have_exits_and_no_blocks():
    model = Net(Dense(4, 3), nn.MaxPool2d(2), Dense(10, 3), channels=16)
    assert blocks_of(model) == ()
    by_name = {site.name: site for site in exits_of(model)}
    site = by_name["blocks.0"]
    assert (site.channels, site.channel_axis, site.positions) == (10, 1, 64)
    assert site.macs_before == 64 * 9 * (3 * 4 + 2 * (4 + 6 + 8))
    assert default_names(model, (3, 8, 8)) == ["blocks.0"]


def test_exits_by_hand():
    model = Net(Residual(lambda x, y: x + y), nn.AvgPool2d(2), conv(4, 4))
    found = exits_of(model)
    # Nothing is offered within the block, where x and f(x) are both live, nor at the logits.
    stem, block, tail = 64 * 4 * 3 * 9, 2 * 64 * 4 * 4 * 9, 16 * 4 * 4 * 9
    assert [(site.name, site.macs_before) for site in found] == [
        ("stem", stem),
        ("blocks.0", stem + block),
        ("blocks.1", stem + block),
        ("blocks", stem + block + tail),
        ("mean", stem + block + tail),
    ]
    assert [site.positions for site in found] == [64, 64, 16, 16, 1]
    assert [site.is_module_output for site in found] == [False, True, False, True, False]
    assert "blocks.2" in found[3].aliases


class ChannelsLast(nn.Module):
    """A network that keeps its images as (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.stage1 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.merge = nn.Linear(32, 8)
        self.stage2 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.embed(x).permute(0, 2, 3, 1))
        corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x = self.stage2(self.merge(torch.cat(corners, -1)))
        return self.fc(x.mean((1, 2)))


def test_channel_axis_of_channels_last_networks():
    model = ChannelsLast()
    by_name = {site.name: site for site in exits_of(model, (3, 16, 16))}
    assert (by_name["embed"].channel_axis, by_name["stage1"].channel_axis) == (1, -1)
    assert (by_name["stage1"].channels, by_name["stage1"].positions) == (8, 64)
    # 8 rows, 8 columns, 8 channels: the shape alone cannot tell.
    assert default_names(model, (3, 16, 16)) == ["stage1"]


def test_channel_axis_that_nothing_tells_is_unknown():
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).sin().mean((2, 3))

    traced = trace(Bare(), (3, 8, 8))
    assert channel_axis(traced, traced.node("mul")) is None
    assert channel_axis(traced, traced.node("mean")) == 1


@pytest.fixture(scope="module")
def resnet_sites() -> tuple[ExitSite, ...]:
    return exits_of(torchvision.models.resnet18(num_classes=10), (3, 32, 32))


def test_sites_are_chosen_by_name_glob_and_alias_in_network_order(resnet_sites):
    def names(*patterns: str) -> list[str]:
        return [site.name for site in select_sites(resnet_sites, patterns)]

    assert names("layer2", "layer1") == ["layer1", "layer2"]
    assert names("layer?") == ["layer1", "layer2", "layer3", "layer4"]
    assert names("layer1.*", "layer1") == ["layer1.0.add", "layer1.0", "layer1.1.add", "layer1"]
    assert names("layer2.1") == ["layer2"]
    assert names("layer2.1", "layer2") == ["layer2"]


def test_unknown_site_is_named_with_the_nearest(resnet_sites):
    with pytest.raises(UsageError, match="no exit site is called 'layr2'; did you mean 'layer2'") as caught:
        select_sites(resnet_sites, ["layer1", "layr2"])
    assert "layer3" in caught.value.hint
    with pytest.raises(UsageError, match="no exit site is called 'x'") as caught:
        select_sites(exits_of(nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(256, 5))), ["x"])
    assert "Sites are: 0" in caught.value.hint


class OptionABlock(nn.Module):
    """A block of the residual networks for CIFAR."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.extra = (outputs - inputs) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return functional.relu(y + x)


class CifarLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(OptionABlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(OptionABlock(16, 32, 2), *(OptionABlock(32, 32, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(OptionABlock(32, 64, 2), *(OptionABlock(64, 64, 1) for _ in range(2)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.avg_pool2d(x, x.shape[3]).flatten(1))


def test_residual_network_for_cifar():
    model = CifarLike()
    assert default_names(model, (3, 32, 32)) == ["layer1", "layer2"]
    found = blocks_of(model, (3, 32, 32))
    assert [block.name for block in found] == [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)]
    assert all(block.shortcut_macs == 0 for block in found)


STAGE_ENDS = {
    "resnet18": ["layer1", "layer2", "layer3"],
    "resnet50": ["layer1", "layer2", "layer3"],
    "densenet121": ["features.denseblock1", "features.denseblock2", "features.denseblock3"],
    "vgg16_bn": ["features.5", "features.12", "features.22", "features.32"],
    "regnet_y_400mf": ["trunk_output.block1", "trunk_output.block2", "trunk_output.block3"],
    "shufflenet_v2_x1_0": ["stage2", "stage3"],
    "convnext_tiny": ["features.1", "features.3", "features.5"],
    "mobilenet_v2": ["features.1", "features.3", "features.6", "features.13"],
    "mnasnet1_0": ["layers.7", "layers.8", "layers.9", "layers.11"],
    "swin_t": ["features.1", "features.3", "features.5"],
    "vit_b_16": [
        "encoder.layers.encoder_layer_2",
        "encoder.layers.encoder_layer_5",
        "encoder.layers.encoder_layer_8",
    ],
}


@pytest.mark.parametrize("name", STAGE_ENDS)
def test_default_exits_are_the_stage_ends(name):
    model = getattr(torchvision.models, name)(num_classes=10)
    assert default_names(model, (3, 224, 224)) == STAGE_ENDS[name]


BLOCKS = {
    "resnet18": 8,
    "resnet50": 16,
    "resnext50_32x4d": 16,
    "wide_resnet50_2": 16,
    "mobilenet_v2": 10,
    "mobilenet_v3_small": 6,
    "mnasnet1_0": 10,
    "efficientnet_b0": 9,
    "efficientnet_v2_s": 35,
    "regnet_y_400mf": 16,
    "regnet_x_400mf": 22,
    "convnext_tiny": 18,
    "swin_t": 24,
    "vit_b_16": 24,
    # 11 convolution blocks, 22 attention layers with an MLP each.
    "maxvit_t": 55,
}


def test_blocks_of_the_families(family):
    found = find_blocks(family.traced, family.cost)
    assert len(found) == BLOCKS.get(family.name, 0)
    names = [block.name for block in found]
    assert len(set(names)) == len(names)
    assert all(0 < block.macs < family.cost.total for block in found)
    assert sum(block.macs + block.shortcut_macs for block in found) <= family.cost.total


def test_exits_of_the_families(family):
    sites = find_exits(family.traced, family.cost)
    names = [site.name for site in sites]
    assert len(set(names)) == len(names)
    macs = [site.macs_before for site in sites]
    assert macs == sorted(macs)
    assert all(0 < spent <= family.cost.total for spent in macs)
    for site in sites:
        shape = family.traced.node(site.node).meta["shape"]
        assert shape[site.channel_axis] == site.channels
        assert site.positions * site.channels == math.prod(shape[1:])
    chosen = default_exits(family.traced, family.cost, sites)
    assert 1 <= len(chosen) <= 4
    assert chosen[-1].macs_before < family.cost.total
    assert all(site in sites for site in chosen)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_names_do_not_depend_on_the_input_size(name):
    model = getattr(torchvision.models, name)(num_classes=10)
    small, large = exits_of(model, (3, 64, 64)), exits_of(model, (3, 96, 96))
    assert [(site.name, site.node, site.channels) for site in small] == [
        (site.name, site.node, site.channels) for site in large
    ]
