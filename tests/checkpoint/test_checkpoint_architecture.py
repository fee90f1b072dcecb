from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adaptify.checkpoint import Checkpoint, find_architecture, read_checkpoint
from adaptify.checkpoint.architecture import find_fit
from adaptify.errors import ModelError, UsageError
from adaptify.models import registry, resolve
from adaptify.models.registry import SOURCES

# One of each way in which networks are written.
FAMILIES = [
    "alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3",
    "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "convnext_tiny", "swin_t", "swin_v2_t",
    "vit_b_16", "maxvit_t",
]  # fmt: skip


def edited(checkpoint, **changes):
    """A copy with tensors removed (None) or replaced by zeros of another shape."""
    tensors = dict(checkpoint.tensors)
    for name, shape in changes.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("name", ["resnet20-12fca82f", "resnet32-d509ac18", "resnet56-4bfd9763"])
def test_the_real_checkpoints_are_recognised(shared_folder, name):
    path = shared_folder / "checkpoints" / f"{name}.th"
    found = find_architecture(read_checkpoint(path))
    assert found.name == f"adaptify:cifar_{name.partition('-')[0]}"
    assert found.input.shape == (3, 32, 32)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 7}, {"num_classes": 3, "in_channels": 1}], ids=str)
def test_a_file_named_after_its_network_is_recognised_with_its_sizes(weightless, name, kwargs):
    checkpoint = weightless(f"torchvision:{name}", kwargs, file=f"{name}-0123abcd.pth")
    found = find_architecture(checkpoint)
    assert found.name == f"torchvision:{name}"
    assert {key: value for key, value in found.kwargs.items() if key in kwargs} == kwargs
    assert found.input.channels == kwargs.get("in_channels", 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_any_name_is_recognised(weightless, name):
    found = find_architecture(weightless(f"torchvision:{name}", {"num_classes": 7}, file="model_best.pth"))
    assert found.name == f"torchvision:{name}"
    assert found.kwargs["num_classes"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES["torchvision"].names())
@pytest.mark.parametrize("named", [True, False])
def test_every_network_of_torchvision_is_recognised(weightless, name, named):
    file = f"{name}-best.pt" if named else "checkpoint.pt"
    for kwargs in ({}, {"num_classes": 11}):
        found = find_architecture(weightless(f"torchvision:{name}", kwargs, file=file))
        assert found.name == f"torchvision:{name}"
        assert found.kwargs.get("num_classes") == kwargs.get("num_classes")


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_cifar_networks_are_recognised_with_their_shortcut(weightless, depth, shortcut):
    checkpoint = weightless(
        f"adaptify:cifar_resnet{depth}", {"shortcut": shortcut, "num_classes": 100, "in_channels": 1}
    )
    found = find_architecture(checkpoint)
    assert found.name == f"adaptify:cifar_resnet{depth}"
    assert found.kwargs == {"num_classes": 100, "in_channels": 1} | (
        {"shortcut": "B"} if shortcut == "B" else {}
    )
    assert found.signature() == resolve(found.name, {**found.kwargs, "shortcut": shortcut}).signature()


def test_the_digits_network_is_recognised(weightless):
    assert find_architecture(weightless("adaptify:digits_resnet")).name == "adaptify:digits_resnet"


def test_widths_that_no_architecture_has_by_itself_can_be_given(weightless):
    checkpoint = weightless("adaptify:cifar_resnet20", {"widths": [8, 16, 32]})
    with pytest.raises(ModelError, match="no known architecture"):
        find_architecture(checkpoint)
    found = find_architecture(checkpoint, arch="cifar_resnet20", arch_kwargs={"widths": [8, 16, 32]})
    assert found.kwargs == {"widths": [8, 16, 32]}
    assert (
        find_architecture(checkpoint, arch_kwargs={"widths": [8, 16, 32]}).name == "adaptify:cifar_resnet20"
    )


@pytest.mark.parametrize(("size", "name"), [(384, "vit_b_16"), (512, "vit_l_16"), (224, "vit_h_14")])
def test_the_image_size_of_a_vision_transformer_is_read_off_its_position_embedding(weightless, size, name):
    found = find_architecture(weightless(f"torchvision:{name}", {"image_size": size}, file=f"{name}.pth"))
    assert found.kwargs["image_size"] == size
    assert found.input.height == size


def test_a_published_file_name_decides_the_input(weightless):
    checkpoint = weightless("torchvision:resnet50", file="resnet50-0676ba61.pth")
    assert find_architecture(checkpoint).input.resize == 256
    assert find_architecture(replace(checkpoint, path=Path("resnet50.pth"))).input.resize == 232


def test_timm_is_asked_when_a_file_is_named_after_one_of_its_networks(weightless):
    pytest.importorskip("timm")
    checkpoint = weightless(
        "timm:vit_tiny_patch16_224", {"num_classes": 5}, file="vit_tiny_patch16_224-best.safetensors"
    )
    found = find_architecture(checkpoint)
    assert found.name == "timm:vit_tiny_patch16_224"
    assert found.kwargs == {"num_classes": 5}
    assert find_architecture(replace(checkpoint, path=Path("best.pt")), arch=found.name) == found


def test_a_name_in_timm_wins_over_a_search_when_shapes_are_those_of_another_network(weightless):
    """Anti-aliased ResNet-50 has the parameters of ResNet-50: only the file's name tells them apart."""
    pytest.importorskip("timm")
    assert (
        find_architecture(weightless("timm:resnetblur50", file="resnetblur50.pt")).name == "timm:resnetblur50"
    )


def test_a_tag_in_the_name_decides_the_input(weightless):
    pytest.importorskip("timm")
    found = find_architecture(weightless("timm:inception_v3", file="inception_v3.tf_in1k.safetensors"))
    assert found.name == "timm:inception_v3.tf_in1k"
    assert found.input.mean == (0.5, 0.5, 0.5)


def test_a_head_is_found_where_the_network_is_built_without_one(weightless):
    pytest.importorskip("timm")
    name = "timm:vit_small_patch16_dinov3"
    assert find_architecture(weightless(name), arch=name).kwargs == {}
    assert find_architecture(weightless(name, {"num_classes": 7}), arch=name).kwargs == {"num_classes": 7}


def test_what_the_file_says_and_its_folder_name_an_architecture_too(weightless):
    pytest.importorskip("timm")
    checkpoint = weightless("timm:resnet10t", file="last.pth.tar")
    with pytest.raises(ModelError, match="only tried by name"):
        find_architecture(checkpoint)
    assert find_architecture(replace(checkpoint, mentions=("resnet10t",))).name == "timm:resnet10t"
    assert (
        find_architecture(replace(checkpoint, path=Path("/runs/resnet10t.c3/last.pt"))).name
        == "timm:resnet10t"
    )


def test_a_misleading_file_name_does_not_mislead(weightless):
    assert (
        find_architecture(weightless("torchvision:resnet18", file="resnet50.pth")).name
        == "torchvision:resnet18"
    )
    assert find_architecture(weightless("resnet50", file="resnet56.pth")).name == "torchvision:resnet50"


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("heads", [True, False])
def test_heads_that_only_training_uses_may_be_in_the_file(weightless, name, heads):
    checkpoint = weightless(f"torchvision:{name}", {"aux_logits": heads, "num_classes": 5}, file="best.pt")
    found = find_fit(checkpoint)
    assert found.architecture.kwargs["aux_logits"] is False
    assert set(found.tensors) == set(resolve(name, {"num_classes": 5}).signature())
    assert any("heads that only training uses" in note for note in found.notes) == heads


def test_counters_may_be_missing_and_integers_may_be_too_many(weightless):
    checkpoint = weightless("torchvision:resnet18")
    counters = {name: None for name in checkpoint.tensors if name.endswith("num_batches_tracked")}
    checkpoint = edited(checkpoint, **counters)
    checkpoint.tensors["step"] = torch.tensor(3)
    found = find_fit(checkpoint)
    assert found.architecture.name == "torchvision:resnet18"
    assert len(found.notes) == 2
    assert "1 tensor (step) of integers that the network does not know" in found.notes[0]
    assert "20 tensors (bn1.num_batches_tracked, ...)" in found.notes[1]


@pytest.mark.parametrize(
    ("name", "old"),
    [
        # As torchvision saved them years ago; its own files still are like that.
        ("densenet121", lambda name: name.replace("norm1", "norm.1").replace("conv2", "conv.2")),
        ("vit_b_16", lambda name: name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2")),
    ],
)
@pytest.mark.parametrize("file", ["x.pth", None])
def test_names_of_older_releases_are_translated(weightless, name, old, file):
    checkpoint = weightless(f"torchvision:{name}", file=file or f"{name}.pth")
    renamed = {old(key): tensor for key, tensor in checkpoint.tensors.items()}
    assert set(renamed) != set(checkpoint.tensors)
    found = find_fit(replace(checkpoint, tensors=renamed))
    assert found.architecture.name == f"torchvision:{name}"
    assert set(found.tensors) == set(checkpoint.tensors)
    assert any("translated names of an older release" in note for note in found.notes)


def test_nothing_fits_lists_the_nearest_three_and_what_differs(weightless):
    checkpoint = edited(
        weightless("torchvision:resnet34", file="resnet34.pth"),
        **{"fc.weight": None, "fc.bias": None, "head.weight": (9, 512), "conv1.weight": (64, 3, 3, 3)},
    )
    with pytest.raises(ModelError) as caught:
        find_architecture(checkpoint)
    first, *nearest = caught.value.message.splitlines()
    assert first == (
        "no known architecture has the names and shapes of the 217 tensors in resnet34.pth; nearest:"
    )
    assert len(nearest) == 3
    assert nearest[0] == (
        "  torchvision:resnet34: 2 missing (fc.weight, ...), 1 unexpected (head.weight), "
        "1 of another shape (conv1.weight: file 64x3x3x3, network 64x3x7x7)"
    )
    assert "torchvision:resnet18" in nearest[1]
    assert "--arch" in caught.value.hint
    assert "timm" in caught.value.hint


def test_several_fits_are_listed(weightless, monkeypatch):
    monkeypatch.setitem(registry.SOURCES, "again", type("Again", (), {
        "prefix": "again", "searchable": True,
        "names": lambda self: ("same",), "titles": lambda self: [("same", "same")],
        "knows": lambda self, name: name == "same", "defaults": lambda self, name: {},
        "variants": lambda self, name: ({},), "training_only": lambda self, name: {},
        "input": lambda self, name, kwargs, file: resolve("resnet18").input,
        "build": lambda self, name, kwargs: resolve("resnet18", kwargs).build(),
    })())  # fmt: skip
    with pytest.raises(ModelError) as caught:
        find_architecture(weightless("torchvision:resnet18", file="best.pt"))
    assert "fits several architectures: again:same, torchvision:resnet18" in caught.value.message
    assert "--arch again:same" in caught.value.hint


def test_an_architecture_that_is_given_has_to_fit(weightless):
    checkpoint = weightless("torchvision:resnet34", file="resnet34.pth")
    with pytest.raises(
        ModelError, match=r"does not fit torchvision:resnet18: 0 missing, 80 unexpected \(layer1.2"
    ):
        find_architecture(checkpoint, arch="torchvision:resnet18")
    with pytest.raises(
        ModelError, match=r"1 missing|2 of another shape \(fc.weight: file 1000x512, network 5x512"
    ):
        find_architecture(checkpoint, arch="resnet34", arch_kwargs={"num_classes": 5})
    with pytest.raises(UsageError, match="unknown architecture"):
        find_architecture(checkpoint, arch="resnet35")
    with pytest.raises(UsageError, match="nonsense"):
        find_architecture(checkpoint, arch="resnet34", arch_kwargs={"nonsense": 5})
    with pytest.raises(UsageError, match="no known architecture takes"):
        find_architecture(checkpoint, arch_kwargs={"in_channels": 0})


def test_a_network_of_the_user_is_compared_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "usernet2.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width=4):\n"
        "        super().__init__()\n"
        "        self.model = nn.Sequential(nn.Conv2d(2, width, 3), nn.Flatten(), nn.Linear(width, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    shapes = {"0.weight": (4, 2, 3, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    checkpoint = Checkpoint(tmp_path / "x.pt", tensors, sha256="", prefix="module.model.")
    found = find_fit(checkpoint, arch="usernet2:Net")
    assert set(found.tensors) == {f"model.{name}" for name in shapes}
    assert found.notes == ("kept prefix 'model.'",)
    assert found.architecture.input.shape == (2, 224, 224)
    with pytest.raises(
        ModelError, match="does not fit usernet2:Net: 0 missing, 0 unexpected, 3 of another shape"
    ):
        find_fit(checkpoint, arch="usernet2:Net", arch_kwargs={"width": 5})
    sys.modules.pop("usernet2")


@pytest.mark.slow
def test_a_search_builds_each_network_once(weightless, monkeypatch):
    checkpoint = edited(weightless("torchvision:resnet18"), **{"conv1.weight": None})
    registry._public_signature.cache_clear()
    built = []
    build = registry.Architecture.build_meta
    monkeypatch.setattr(
        registry.Architecture, "build_meta", lambda self: built.append((self.name, str(self))) or build(self)
    )
    for _ in range(2):
        with pytest.raises(ModelError):
            find_architecture(checkpoint)
    assert len({name for name, _ in built}) > 50, "all of torchvision"
    assert len(built) == len(set(built))
