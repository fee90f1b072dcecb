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
from adaptify.assembly import assemble, place_exits, reshape
from adaptify.errors import ModelError, UsageError
from adaptify.graph.trace import trace
from adaptify.models.registry import Architecture, resolve
from adaptify.plan import FORMAT, DecoupleBlocks, KeptChannels, PlaceExit, Plan, RemoveChannels, parse_plan
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.optimize import optimize
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
    made = AdaptiveModel(traced, place_exits(traced, steps)).eval()
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


def decoupled_model() -> AdaptiveModel:
    """A network whose blocks lost channels of their own, with an exit."""
    torch.manual_seed(0)
    architecture = resolve("adaptify:digits_resnet")
    steps = (
        DecoupleBlocks(blocks=("layer1.0", "layer2.0")),
        RemoveChannels(
            keep={
                "adapters.layer1.0.gather": KeptChannels(size=16, kept=(0, 3, 5)),
                "layer1.0.conv2": KeptChannels(size=16, kept=(2, 3)),
                "layer2.0.conv2": KeptChannels(size=32, kept=()),
            }
        ),
        PlaceExit(site="layer1", channels=16, classes=10),
    )
    made = assemble(trace(architecture.build().eval(), architecture.input.shape), steps).eval()
    assert isinstance(made, AdaptiveModel)
    made.plan = Plan(architecture=architecture.to_json(), steps=steps)
    return made


def test_a_network_with_decoupled_blocks_is_reloaded_as_it_was_saved(tmp_path: Path) -> None:
    model = decoupled_model()
    adaptify.save(model, tmp_path / "model.safetensors")
    again = adaptify.load(tmp_path / "model.safetensors")
    assert again.backbone().root.layer1[0].conv1.in_channels == 3
    assert list(again.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        ours, theirs = again.run(images(model)), model.run(images(model))
    assert torch.equal(ours.logits, theirs.logits)
    fast = optimize(again)
    with torch.no_grad():
        assert torch.allclose(fast.run(images(model)).logits, theirs.logits, atol=1e-5)


def test_a_plan_with_a_block_that_is_not_there_is_refused() -> None:
    architecture = resolve("adaptify:digits_resnet")
    traced = trace(architecture.build().eval(), architecture.input.shape)
    with pytest.raises(ModelError, match=r"the block layer9\.0, which is not in the network"):
        reshape(traced, [DecoupleBlocks(blocks=("layer9.0",))])


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
    rewrite(path, steps=[], policy=None)
    with pytest.raises(ModelError, match=r"gates\.layer1\.linear\.bias is not part of the network"):
        adaptify.load(path)


def test_a_policy_for_other_exits_is_refused(model: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    rewrite(path, policy=ThresholdPolicy((0.5,) * 5).to_json())
    with pytest.raises(UsageError, match=r"model\.safetensors: the policy has 5 thresholds for 2 exits"):
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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_torch_is_not_called_damaged(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"fc.weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"is a checkpoint of torch\.save") as caught:
        adaptify.load(path)
    assert "adaptify retrofit" in caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        adaptify.load(tmp_path / "nothing.safetensors")


def test_a_failed_write_leaves_the_old_file(model: AdaptiveModel, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(model, path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "write_tensors", full)
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


KEEP = {
    "layer1.0.conv1": KeptChannels(size=16, kept=(0, 3, 4, 15)),
    "layer2.0.conv1": KeptChannels(size=32, kept=tuple(range(1, 32, 2))),
}


@pytest.fixture
def pruned() -> AdaptiveModel:
    """The small network without some inner channels of two blocks, with one exit."""
    torch.manual_seed(0)
    architecture = resolve("adaptify:digits_resnet")
    steps = (RemoveChannels(keep=KEEP), PlaceExit(site="layer2", channels=32, classes=10))
    traced = trace(architecture.build().eval(), architecture.input.shape)
    made = assemble(traced, steps, ThresholdPolicy((0.125,)).to_json()).eval()
    made.plan = Plan(architecture=architecture.to_json(), steps=steps)
    return made


def test_a_pruned_network_is_the_one_with_fewer_channels(pruned: AdaptiveModel) -> None:
    whole = resolve("adaptify:digits_resnet")
    torch.manual_seed(0)
    before = whole.build().eval().state_dict()
    after = pruned.state_dict()
    assert torch.equal(after["layer1.0.conv1.weight"], before["layer1.0.conv1.weight"][[0, 3, 4, 15]])
    assert torch.equal(after["layer1.0.conv2.weight"], before["layer1.0.conv2.weight"][:, [0, 3, 4, 15]])
    assert torch.equal(after["layer2.0.bn1.running_var"], before["layer2.0.bn1.running_var"][1::2])
    # 8 x 8 positions in layer1, 4 x 4 in layer2; 3 x 3 kernels.
    saved = 64 * 9 * (16 * 12 + 12 * 16) + 16 * 9 * (16 * 16 + 16 * 32)
    base = AdaptiveModel(trace(whole.build().eval(), whole.input.shape)).cost.total
    assert pruned.cost.total == base - saved


def test_a_pruned_network_is_reloaded_bit_for_bit(pruned: AdaptiveModel, tmp_path: Path) -> None:
    adaptify.save(pruned, tmp_path / "model.safetensors")
    again = adaptify.load(tmp_path)
    assert again.plan is not None
    assert pruned.plan is not None
    assert again.plan.steps == pruned.plan.steps
    assert list(again.state_dict()) == list(pruned.state_dict())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in pruned.state_dict().items())
    with torch.no_grad():
        ours, theirs = again.run(images(pruned)), pruned.run(images(pruned))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.exit_index, theirs.exit_index)


def test_a_group_that_is_gone_is_reloaded_too(tmp_path: Path) -> None:
    """The residual branch becomes a constant, which is a tensor of the file."""
    torch.manual_seed(0)
    architecture = resolve("adaptify:digits_resnet")
    step = RemoveChannels(keep={"layer1.0.conv1": KeptChannels(size=16, kept=())})
    traced = reshape(trace(architecture.build().eval(), architecture.input.shape), [step])
    model = AdaptiveModel(traced).eval()
    model.plan = Plan(architecture=architecture.to_json(), steps=(step,))
    adaptify.save(model, tmp_path / "model.safetensors")
    again = adaptify.load(tmp_path)
    assert again.cost.total == model.cost.total
    with torch.no_grad():
        assert torch.equal(again(images(model)), model(images(model)))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"layer9.conv1": {"size": 16, "kept": [0]}}, "no channel group 'layer9.conv1'"),
        ({"layer1.0.conv1": {"size": 24, "kept": [0]}}, "has 16 channels"),
        ({"linear": {"size": 10, "kept": [0]}}, "cannot be removed: linear is the output"),
        ({"layer1.0.conv1": {"size": 16, "kept": [16]}}, "damaged at steps.0"),
        ({"layer1.0.conv1": {"size": 16, "kept": [3, 2]}}, "ascending"),
        ({"layer1.0.conv1": {"size": 16, "kept": [1, 1]}}, "ascending"),
        ({"layer1.0.conv1": {"size": 1 << 40, "kept": [1]}}, "damaged at steps.0"),
        ({"layer1.0.conv1": {"size": 16, "kept": [True]}}, "damaged at steps.0"),
        ({"layer1.0.conv1": {"size": 16}}, "damaged at steps.0"),
    ],
)
def test_a_removal_that_does_not_fit_is_refused(
    keep: object, message: str, pruned: AdaptiveModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(pruned, path)
    rewrite(path, steps=[{"op": "remove_channels", "keep": keep}])
    with pytest.raises(ModelError, match=message):
        adaptify.load(path)


def test_other_channels_than_those_of_the_tensors_are_refused(pruned: AdaptiveModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    adaptify.save(pruned, path)
    steps = [step.model_dump(mode="json") for step in pruned.plan.steps]  # type: ignore[union-attr]
    steps[0]["keep"]["layer1.0.conv1"]["kept"] = [0, 1]
    rewrite(path, steps=steps)
    with pytest.raises(ModelError, match="do not fit the plan"):
        adaptify.load(path)
    rewrite(path, steps=steps[::-1])
    with pytest.raises(ModelError, match="after it has put gates into it"):
        adaptify.load(path)
    rewrite(path, steps=[{"op": "remove_everything"}])
    with pytest.raises(ModelError, match=r"damaged at steps\.0"):
        adaptify.load(path)
