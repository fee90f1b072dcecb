"""Loading an artifact: to be worked on, or only to be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import adaptify
from adaptify.errors import UsageError
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.skipping.model import SkippingModel

ARCH = "adaptify:digits_resnet"


def placed(method: str, **gates: object) -> AdaptiveModel | GatedModel:
    """Untrained gates in the network of the digits."""
    torch.manual_seed(0)
    settings = {f"gates.{key}": value for key, value in gates.items()}
    return adaptify.place(
        resolve(ARCH).build(), method=method, input_shape=(1, 8, 8), arch=ARCH, settings=settings
    ).eval()


def images() -> torch.Tensor:
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_network_with_exits_comes_folded_and_decides_alike(tmp_path: Path) -> None:
    model = placed("dgate")
    assert isinstance(model, AdaptiveModel)
    with torch.inference_mode():
        sure = model.policy.rate(0, model.everything(images()).exits["layer1"]).sort().values
    between = float(sure[7] + sure[8]) / 2
    model.policy = replace(model.policy, thresholds=(between, float("inf")))
    adaptify.save(model, tmp_path / "model.safetensors")
    fast = adaptify.load(tmp_path, for_inference=True)
    assert isinstance(fast, AdaptiveModel)
    assert not any("running_mean" in name for name in fast.state_dict())
    with torch.inference_mode():
        wanted, found = model.run(images()), fast.run(images())
    assert 0 < int((found.exit_index == 0).sum()) < 16
    assert torch.equal(found.exit_index, wanted.exit_index)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    assert adaptify.load(tmp_path).state_dict().keys() == model.state_dict().keys()


def test_gates_that_look_at_images_skip(tmp_path: Path) -> None:
    model = placed("sgad")
    adaptify.save(model, tmp_path / "model.safetensors")
    fast = adaptify.load(tmp_path, for_inference=True)
    assert isinstance(fast, SkippingModel)
    with torch.inference_mode():
        torch.testing.assert_close(fast(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_gates_that_look_at_nothing_are_gone(tmp_path: Path) -> None:
    model = placed("gumbel", kind="independent")
    adaptify.save(model, tmp_path / "model.safetensors")
    fast = adaptify.load(tmp_path, for_inference=True)
    assert isinstance(fast, AdaptiveModel)
    assert not any("gates" in name for name in fast.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(fast(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_what_is_only_to_be_run_is_not_saved(tmp_path: Path) -> None:
    adaptify.save(placed("dgate"), tmp_path / "model.safetensors")
    fast = adaptify.load(tmp_path, for_inference=True)
    with pytest.raises(UsageError, match="only to be run") as caught:
        adaptify.save(fast, tmp_path / "fast.safetensors")
    assert "without for_inference" in caught.value.hint
    assert not (tmp_path / "fast.safetensors").exists()


def test_devices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    adaptify.save(placed("dgate"), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="quantum"):
        adaptify.load(tmp_path, device="quantum")
