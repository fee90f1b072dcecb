from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from adaptify.errors import ModelError, UsageError
from adaptify.input_spec import InputSpec
from adaptify.models import Architecture, names, resolve
from adaptify.models.registry import SOURCES
from adaptify.models.skeleton import has_meta

GOOD = resolve("torchvision:resnet18").to_json()


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("torchvision:resnet50", "torchvision:resnet50"),
        ("resnet50", "torchvision:resnet50"),
        ("cifar_resnet56", "adaptify:cifar_resnet56"),
        ("digits_resnet", "adaptify:digits_resnet"),
        ("some.module:Net", "some.module:Net"),
    ],
)
def test_names_are_resolved(given, full):
    assert resolve(given).name == full


def test_a_name_without_prefix_is_looked_up_in_timm_last():
    pytest.importorskip("timm")
    assert resolve("vit_tiny_patch16_224").name == "timm:vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("resnet56", "did you mean 'adaptify:cifar_resnet56'?"),
        ("resnt50", "did you mean 'torchvision:resnet50'?"),
        ("torchvison:resnet50", "did you mean 'torchvision:resnet50'?"),
        ("torchvision:resnet51", "unknown architecture 'torchvision:resnet51'; did you mean"),
        ("adaptify:cifar_resnet57", "did you mean 'cifar_resnet"),
        ("a b:c", "unknown architecture 'a b:c'"),
        ("", "unknown architecture ''"),
        ("torchvision:", "unknown architecture 'torchvision:'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(given, said):
    with pytest.raises(UsageError) as caught:
        resolve(given)
    assert said in caught.value.message
    assert caught.value.hint


def test_unknown_tag_of_timm_is_refused():
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="unknown architecture"):
        resolve("timm:resnet50.no_such_tag")


def test_timm_missing_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="timm, which is not installed"):
        resolve("timm:resnet50")


def test_public_names_include_every_source():
    public = names()
    assert len([name for name in public if name.startswith("torchvision:")]) >= 80
    assert "adaptify:cifar_resnet110" in public
    for other in ("fcos", "deeplab", "r3d", "quantized", "raft"):
        assert not [name for name in public if name.startswith(f"torchvision:{other}")]


def test_importing_the_registry_and_resolving_torchvision_leaves_timm_alone():
    code = (
        "import sys; from adaptify.models import resolve; resolve('torchvision:resnet18').signature();"
        "resolve('resnet18'); assert 'timm' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        ("torchvision:mobilenet_v3_small", {"num_classes": 7}, (2, 7)),
        ("torchvision:squeezenet1_1", {"num_classes": 7, "in_channels": 1}, (2, 7)),
        ("torchvision:googlenet", {"num_classes": 5, "init_weights": False}, (2, 5)),
        ("torchvision:googlenet", {"num_classes": 5, "in_channels": 4, "init_weights": False}, (2, 5)),
        ("adaptify:cifar_resnet20", {"num_classes": 100, "widths": [4, 8, 8]}, (2, 100)),
        ("adaptify:digits_resnet", {}, (2, 10)),
        ("timm:resnet10t", {"num_classes": 3, "in_channels": 2}, (2, 3)),
    ],
)
def test_networks_are_built_and_read_the_images_they_expect(name, kwargs, shape):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    architecture = resolve(name, kwargs)
    model = architecture.build().eval()
    assert not has_meta(model)
    channels, _, _ = architecture.input.shape
    assert channels == kwargs.get("in_channels", architecture.input.channels)
    assert len(architecture.input.mean) == len(architecture.input.std) == channels
    size = min(architecture.input.height, 64)
    with torch.inference_mode():
        assert model(torch.randn(2, channels, size, size)).shape == shape


@pytest.mark.parametrize(
    "name", ["torchvision:regnet_y_400mf", "torchvision:swin_t", "adaptify:cifar_resnet20"]
)
def test_a_skeleton_has_the_shapes_of_the_network(name):
    architecture = resolve(name)
    skeleton = architecture.build_meta()
    assert all(p.is_meta for n, p in skeleton.named_parameters() if n.endswith("weight") and p.dim() > 1)
    real = {key: tuple(value.shape) for key, value in architecture.build().state_dict().items()}
    assert {key: spec.shape for key, spec in architecture.signature().items()} == real


def test_counters_and_indices_are_optional():
    optional = {
        key.rpartition(".")[2] for key, spec in resolve("swin_t").signature().items() if spec.optional
    }
    assert optional == {"relative_position_index"}
    optional = {
        key.rpartition(".")[2] for key, spec in resolve("resnet18").signature().items() if spec.optional
    }
    assert optional == {"num_batches_tracked"}


@pytest.mark.parametrize(
    ("name", "kwargs", "file", "height", "resize", "mean"),
    [
        ("resnet50", {}, "", 224, 232, 0.485),
        ("resnet50", {}, "resnet50-0676ba61.pth", 224, 256, 0.485),
        ("inception_v3", {}, "", 299, 342, 0.485),
        ("efficientnet_v2_l", {}, "", 480, 480, 0.5),
        ("vit_b_16", {}, "", 224, 256, 0.485),
        ("vit_b_16", {"image_size": 384}, "", 384, 384, 0.485),
        ("vit_h_14", {}, "", 518, 518, 0.485),
        ("adaptify:cifar_resnet56", {}, "", 32, None, 0.485),
        ("adaptify:digits_resnet", {}, "", 8, None, 0.3053),
    ],
)
def test_input_is_that_of_the_published_weights(name, kwargs, file, height, resize, mean):
    spec = resolve(name, kwargs, file=file).input
    assert (spec.height, spec.width, spec.resize) == (height, height, resize)
    assert spec.mean[0] == pytest.approx(mean)


def test_input_of_timm_comes_from_the_tag():
    pytest.importorskip("timm")
    spec = resolve("timm:vit_base_patch16_224.augreg_in21k_ft_in1k").input
    assert spec == InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=248)
    assert resolve("timm:vit_base_patch16_224", {"img_size": 96}).input.height == 96


def test_heads_that_only_training_uses_are_left_out_and_known():
    architecture = resolve("googlenet")
    assert architecture.kwargs == {"aux_logits": False, "transform_input": True}
    heads = architecture.training_heads()
    assert {name.partition(".")[0] for name in heads} == {"aux1", "aux2"}
    assert resolve("resnet18").training_heads() == {}
    assert "aux1.fc1.weight" in resolve("googlenet", {"aux_logits": True}).signature()


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("resnet18", {"num_clases": 3}, "num_clases"),
        ("resnet18", {"weights": "DEFAULT"}, "'weights' cannot be given"),
        ("timm:resnet10t", {"pretrained": True}, "'pretrained' cannot be given"),
        ("timm:resnet10t", {"checkpoint_path": "x"}, "'checkpoint_path' cannot be given"),
        ("timm:resnet10t", {"model_name": "hf-hub:x/y"}, "'model_name' cannot be given"),
        ("adaptify:cifar_resnet20", {"shortcut": "C"}, "unknown shortcut option 'C'"),
    ],
)
def test_arguments_that_do_not_suit_are_explained(name, kwargs, said):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    for build in (resolve(name, kwargs).build, resolve(name, kwargs).build_meta):
        with pytest.raises(UsageError) as caught:
            build()
        assert said in caught.value.message


@pytest.mark.parametrize("kwargs", [{"num_classes": object()}, {"in_channels": "three"}, {"in_channels": 0}])
def test_arguments_have_to_be_json_values_of_the_right_kind(kwargs):
    with pytest.raises(UsageError):
        resolve("torchvision:resnet18", kwargs).build()


@pytest.mark.parametrize(
    "architecture",
    [
        resolve("torchvision:vit_b_16", {"image_size": 384, "num_classes": 3}),
        resolve("adaptify:cifar_resnet20", {"widths": (4, 8, 16), "shortcut": "B"}),
        resolve("package.module:Net", {"depth": 3}),
    ],
)
def test_an_architecture_survives_json(architecture):
    text = json.dumps(architecture.to_json())
    assert Architecture.from_json(json.loads(text)) == architecture


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"name": "x"},
        {"name": "x", "kwargs": {}, "input": {"channels": 3}},
        {**GOOD, "input": {**GOOD["input"], "height": 0}},
        {**GOOD, "input": {**GOOD["input"], "mean": [0.5]}},
        {**GOOD, "input": {**GOOD["input"], "std": ["a"] * 3}},
        3,
    ],
)
def test_what_is_no_architecture_is_refused(value):
    with pytest.raises(ModelError):
        Architecture.from_json(value)


@pytest.mark.parametrize(
    "name", ["torchvision:raft_large", "timm:hf-hub:some/where", "adaptify:x", "no reference"]
)
def test_a_name_from_a_file_is_built_only_if_it_is_known(name):
    value = {**resolve("resnet18").to_json(), "name": name}
    with pytest.raises(UsageError, match="unknown architecture"):
        Architecture.from_json(value).build()


def test_only_registered_architectures_are_public():
    assert resolve("resnet50").is_public
    assert resolve("adaptify:digits_resnet").is_public
    assert not resolve("os:system").is_public


def test_a_search_may_build_all_of_torchvision_but_not_of_timm():
    assert [source.searchable for source in SOURCES.values()] == [True, True, False]


def test_every_signature_of_torchvision_is_unique():
    """Shapes and names tell all of them apart, so a search never has to guess."""
    seen: dict[tuple[object, ...], str] = {}
    for name in SOURCES["torchvision"].names():
        signature = tuple(resolve(f"torchvision:{name}").signature().items())
        assert signature not in seen, (name, seen[signature])
        seen[signature] = name


def test_replacing_the_stem_changes_nothing_else():
    plain = resolve("torchvision:densenet121").signature()
    grey = resolve("torchvision:densenet121", {"in_channels": 1}).signature()
    changed = [name for name in plain if plain[name] != grey[name]]
    assert changed == ["features.conv0.weight"]
    assert isinstance(resolve("densenet121", {"in_channels": 1}).build_meta().features.conv0, nn.Conv2d)
