"""Popular networks of timm trace into graphs that compute the same; none is known to the code by name."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace

timm = pytest.importorskip("timm")

# Sixty well-known families, each at a small size.
NETWORKS = [
    "resnet18",
    "resnetv2_50",
    "resnext26ts",
    "resnest14d",
    "res2net50_26w_4s",
    "seresnet18",
    "skresnet18",
    "ecaresnet50t",
    "dpn48b",
    "densenet121",
    "vgg11_bn",
    "inception_v3",
    "darknet53",
    "dla34",
    "hrnet_w18_small",
    "repvgg_a0",
    "mobileone_s0",
    "regnetx_002",
    "regnety_002",
    "nfnet_l0",
    "mobilenetv1_100",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mnasnet_small",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "lcnet_050",
    "mixnet_s",
    "rexnet_100",
    "ghostnet_050",
    "convnext_atto",
    "convnextv2_atto",
    "poolformer_s12",
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "crossvit_tiny_240",
    "levit_128s",
    "pit_ti_224",
    "pvt_v2_b0",
    "twins_pcpvt_small",
    "volo_d1_224",
    "hiera_tiny_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "maxvit_rmlp_pico_rw_256",
    "coatnet_pico_rw_224",
    "nest_tiny",
    "focalnet_tiny_srf",
    "davit_tiny",
    "mixer_s32_224",
    "resmlp_12_224",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "fastvit_t8",
    "efficientformer_l1",
]


def build(name: str, **kwargs) -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10, **kwargs).eval()
    return model, tuple(model.pretrained_cfg["input_size"])


def check_traces(name: str, run_graph) -> None:
    model, shape = build(name)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    traced = trace(model, shape)
    with torch.no_grad():
        assert torch.equal(run_graph(traced, images), model(images))
    assert list(traced.root.state_dict()) == list(model.state_dict())
    assert CostModel(traced).total > 0


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "levit_128s"])
def test_traces(name, run_graph):
    check_traces(name, run_graph)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nearly_all_popular_networks_trace(run_graph):
    failures = {}
    for name in NETWORKS:
        try:
            check_traces(name, run_graph)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    print(f"\n{len(NETWORKS) - len(failures)} of {len(NETWORKS)} timm networks trace", failures)
    assert len(NETWORKS) == 60
    assert len(failures) <= 5, failures


def test_drop_path_behaves_as_in_training(with_own_state, run_graph):
    model, shape = build("convnext_atto", drop_path_rate=0.5)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    traced = trace(model, shape)
    assert any("DropPath" in note for note in traced.notes)
    original = with_own_state(model).train()
    torch.manual_seed(5)
    with torch.no_grad():
        expected = original(images)
    assert torch.equal(run_graph(copy.copy(traced), images, training=True, seed=5), expected)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("mobilenetv3_small_050", ["blocks.0", "blocks.1", "blocks.3"]),
        # The stem ends at the size of the first stage.
        ("resnetv2_50", ["stages.0", "stages.1", "stages.2"]),
        # (N, H, W, C) that is reshaped to tokens and back.
        ("swin_tiny_patch4_window7_224", ["layers.0", "layers.1", "layers.2"]),
    ],
)
def test_default_exits_are_the_stage_ends(name, stages):
    model, shape = build(name)
    traced = trace(model, shape)
    cost = CostModel(traced)
    assert [site.name for site in default_exits(traced, cost, find_exits(traced, cost))] == stages


def test_what_timm_declares_untraceable_is_known_once_timm_is_loaded():
    program = (
        "import sys, timm\n"
        "from adaptify.graph.trace import _untraceable_by_declaration as declared\n"
        "modules, functions = declared()\n"
        "assert modules and functions, sys.modules.keys()\n"
        "print(len(modules), len(functions))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(int(count) > 0 for count in done.stdout.split())


def test_timm_is_not_loaded_by_tracing():
    program = "import sys, adaptify.graph.trace; assert 'timm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
