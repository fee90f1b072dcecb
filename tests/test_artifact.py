"""Artifacts: what is loaded is what was saved, bit for bit, and nothing else is loaded."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adaptify
from adaptify import artifact
from adaptify.errors import ModelError, UsageError
from adaptify.graph.trace import trace
from adaptify.models.registry import Architecture, resolve
from adaptify.plan import FORMAT, PlaceExit, Plan, parse_plan
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import ThresholdPolicy


@pytest.fixture
def model() -> AdaptiveModel:
    """A small network with two exits, random weights and a policy."""
    torch.manual_seed(0)
    architecture = resolve("adaptify:digits_resnet")
    traced = trace(architecture.build().eval(), architecture.input.shape)
    steps = tuple(
        PlaceExit(site=site, channels=channels, classes=10)
        for site, channels in (("layer1", 16), ("layer2", 32))
    )
    made = AdaptiveModel(traced, artifact.place_exits(traced, steps)).eval()
    made.policy = ThresholdPolicy((0.125, math.inf))
    made.plan = Plan(architecture=architecture.to_json(), steps=steps)
    return made


def images(model: AdaptiveModel) -> torch.Tensor:
    """Seeded random images for `model`."""
    return torch.randn(16, *model.traced.input_shape, generator=torch.Generator().manual_seed(1))


def rewrite(path: Path, **changes: object) -> None:
    """Change entries of the plan inside an artifact."""
    with safe_open(path, framework="pt") as opened:
        plan = json.loads(opened.metadata()[FORMAT])
    save_file(load_file(path), path, metadata={FORMAT: json.dumps(plan | changes)})


def test_reloaded_is_saved_bit_for_bit(model: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    again = adaptify.load(path)
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert again.policy == model.policy
    assert not again.training
    with torch.no_grad():
        ours, theirs = again.run(images(model)), model.run(images(model))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.exit_index, theirs.exit_index)


def test_keys_of_the_backbone_are_those_of_the_checkpoint(model: AdaptiveModel, tmp_path: Path) -> None:
    adaptify.save(model, tmp_path / "model.safetensors")
    own = resolve("adaptify:digits_resnet").build().state_dict().keys()
    written = load_file(tmp_path / "model.safetensors").keys()
    assert {name for name in written if not name.startswith("gates.")} == own


def test_loads_in_a_process_of_its_own(model: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    code = (
        "import sys, torch, adaptify; model = adaptify.load(sys.argv[1]);"
        "images = torch.randn(16, *model.traced.input_shape, generator=torch.Generator().manual_seed(1));"
        "print(model.run(images).exit_index.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    with torch.no_grad():
        assert done.stdout.strip() == str(model.run(images(model)).exit_index.tolist())


def test_a_run_folder_names_its_artifact(model: AdaptiveModel, tmp_path: Path) -> None:
    adaptify.save(model, tmp_path / "model.safetensors")
    assert adaptify.load(tmp_path).policy == model.policy
    assert artifact.is_artifact(tmp_path)


def test_a_model_without_a_plan_cannot_be_saved(model: AdaptiveModel, tmp_path: Path) -> None:
    model.plan = None
    with pytest.raises(UsageError, match="no plan"):
        adaptify.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_plans_of_newer_versions_are_refused_with_the_version_needed(
    model: AdaptiveModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    rewrite(path, version=2, adaptify="9.1.0")
    with pytest.raises(ModelError, match="plan version 2") as caught:
        adaptify.load(path)
    assert "9.1.0" in caught.value.hint


def test_unknown_entries_of_a_plan_are_refused(model: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    rewrite(path, surprise=1)
    with pytest.raises(ModelError, match="damaged at surprise"):
        adaptify.load(path)


def test_code_of_others_is_not_run_unless_trusted(model: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    public = resolve("adaptify:digits_resnet").to_json()
    rewrite(path, architecture=public | {"name": "antigravity:open"})
    with pytest.raises(ModelError, match="loading it runs that code"):
        adaptify.load(path)
    assert "antigravity" not in sys.modules
    rewrite(path, architecture=public | {"name": "adaptify.models.cifar_resnet:digits_resnet"})
    assert adaptify.load(path, trust_code=True).policy == model.policy


def test_a_plan_that_does_not_fit_the_network_is_refused(model: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    rewrite(path, steps=[{"op": "place_exit", "site": "layer9", "channels": 16, "classes": 10}])
    with pytest.raises(ModelError, match="layer9"):
        adaptify.load(path)


def test_tensors_that_do_not_belong_to_the_plan_are_refused(model: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    rewrite(path, steps=[])
    with pytest.raises(ModelError, match=r"gates\.layer1\.linear\.bias is not part of the network"):
        adaptify.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a readable safetensors"), (b"hello", "not a readable safetensors")],
    ids=["empty", "text"],
)
def test_what_is_no_safetensors_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        adaptify.load(path)
    assert not artifact.is_artifact(path)


def test_plain_tensors_are_no_artifact(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="no adaptify plan") as caught:
        adaptify.load(path)
    assert "retrofit" in caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        adaptify.load(tmp_path / "nothing.safetensors")


def test_a_failed_write_leaves_the_old_file(model: AdaptiveModel, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "save_file", full)
    with pytest.raises(adaptify.AdaptifyError, match="No space left"):
        adaptify.save(model, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_plans_survive_json() -> None:
    plan = Plan(
        architecture=Architecture(
            "adaptify:digits_resnet", {}, resolve("adaptify:digits_resnet").input
        ).to_json(),
        steps=(PlaceExit(site="layer1", channels=16, classes=10, pool=2),),
    )
    assert parse_plan(plan.dumps(), "test") == plan
