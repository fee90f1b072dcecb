from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from adaptify.checkpoint import load_model
from adaptify.errors import ModelError
from adaptify.models import resolve
from adaptify.models.skeleton import has_meta


def random_network(name, **kwargs):
    """A network of torchvision with statistics and weights that no constructor makes."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **kwargs)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * (1.0 if "running_var" in key else 0.02))
    return model.eval()


@pytest.mark.parametrize(
    "name",
    ["mnasnet0_5", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18"],
)
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_loaded_network_computes_what_the_original_does(tmp_path, name, kind):
    original = random_network(name, num_classes=12)
    path = tmp_path / "best.ckpt"
    if kind == "torch":
        torch.save({"model": {f"module.{k}": v for k, v in original.state_dict().items()}}, path)
    else:
        save_file(original.state_dict(), path)
    loaded = load_model(path)
    assert loaded.architecture.name == f"torchvision:{name}"
    assert not loaded.module.training
    assert not has_meta(loaded.module)
    assert list(loaded.module.state_dict()) == list(original.state_dict())
    assert all(parameter.requires_grad for parameter in loaded.module.parameters())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), original(images))
    again = loaded.architecture.build().eval()
    again.load_state_dict(loaded.module.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(images), original(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["swin_t", "swin_v2_t", "maxvit_t", "convnext_tiny", "vit_b_16", "densenet121"]
)
def test_large_networks_compute_what_the_original_does(tmp_path, name):
    original = random_network(name)
    torch.save(original.state_dict(), tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt")
    images = torch.randn(1, *loaded.architecture.input.shape)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), original(images))


def test_auxiliary_heads_of_a_published_file_are_left_out(tmp_path):
    original = random_network(
        "googlenet", aux_logits=True, transform_input=True, num_classes=4, init_weights=False
    )
    torch.save(original.state_dict(), tmp_path / "googlenet.pth")
    loaded = load_model(tmp_path / "googlenet.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), original(images))
    assert isinstance(loaded.module.train()(images), torch.Tensor)
    assert any("aux1" in note for note in loaded.notes)


def test_the_tensors_of_the_file_become_the_memory_of_the_network(tmp_path):
    torch.save(resolve("adaptify:digits_resnet").build().state_dict(), tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt")
    for name, tensor in loaded.module.state_dict().items():
        assert tensor.data_ptr() == loaded.checkpoint.tensors[name].data_ptr()


def test_other_types_are_converted_and_said(tmp_path):
    state = resolve("adaptify:digits_resnet").build().half().state_dict()
    torch.save(state, tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert torch.equal(loaded.module.linear.weight, state["linear.weight"].float())
    assert loaded.notes == ("converted 37 tensors from float16 to float32",)


def test_counters_that_are_missing_begin_at_zero(tmp_path):
    state = resolve("adaptify:digits_resnet").build().state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt")
    assert loaded.module.bn1.num_batches_tracked.item() == 0
    assert list(loaded.module.state_dict()) == list(state)
    assert len(loaded.notes) == 1


def test_the_real_checkpoint_loads_without_being_told_what_it_is(shared_folder):
    loaded = load_model(shared_folder / "checkpoints" / "resnet20-12fca82f.th")
    assert loaded.architecture.name == "adaptify:cifar_resnet20"
    assert not loaded.module.training
    with torch.inference_mode():
        assert loaded.module(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert len(loaded.notes) == 3


USER_NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, power=2.0):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("scale", torch.empty(3).fill_(power), persistent=False)
        self.tables = [torch.empty(2).fill_(1.0)]

    def forward(self, x):
        return self.layer(x) * self.scale.sum() * self.tables[0].sum()
"""


def test_values_outside_the_state_dict_are_those_of_the_constructor(tmp_path, monkeypatch):
    (tmp_path / "usernet3.py").write_text(USER_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    layer = nn.Linear(4, 4)
    torch.save({"layer.weight": layer.weight.data, "layer.bias": layer.bias.data}, "x.pt")
    loaded = load_model("x.pt", arch="usernet3:Net", arch_kwargs={"power": 3.0})
    x = torch.randn(2, 4)
    assert torch.allclose(loaded.module(x), layer(x) * 9 * 2)
    assert not has_meta(loaded.module)
    assert not loaded.architecture.is_public
    sys.modules.pop("usernet3")


def test_a_trusted_module_that_is_a_public_network_becomes_that(tmp_path):
    original = random_network("squeezenet1_1", num_classes=6)
    torch.save(original, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="more than tensors"):
        load_model(tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt", trust_pickle=True)
    assert loaded.architecture.name == "torchvision:squeezenet1_1"
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), original(images))


def test_a_trusted_module_that_computes_something_else_is_kept(tmp_path):
    original = random_network("resnet18", num_classes=6)
    original.maxpool = nn.Identity()  # as for small images: not to be seen in names and shapes
    torch.save({"model": original.train()}, tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt", trust_pickle=True)
    assert isinstance(loaded.module.maxpool, nn.Identity)
    assert not loaded.module.training
    assert not loaded.architecture.is_public
    assert loaded.architecture.name == "torchvision.models.resnet:ResNet"
    assert "computes something else than torchvision:resnet18" in loaded.notes[-1]


def test_a_trusted_module_that_is_no_known_architecture_is_kept(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten()).half(), tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt", trust_pickle=True)
    assert loaded.architecture.input.channels == 5
    assert loaded.module[0].weight.dtype == torch.float32
    assert "no architecture known here" in loaded.notes[-1]
