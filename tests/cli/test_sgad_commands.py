"""SGAD on the digits through the commands: retrofit, training on, evaluation, and removing dead blocks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command_line import Cli, read_report, snapshot
from safetensors.torch import load_file

import adaptify
from adaptify import artifact
from adaptify.artifact import read_plan
from adaptify.cli.main import main
from adaptify.gates.mask_net import MaskNet
from adaptify.plan import PlaceMaskNet, RemoveBlocks
from adaptify.runtime.gated import GatedModel

MASKED = Path("runs/digits_resnet-sgad-001")
QUICK = ["train.batch_size=32", "train.recalibrate=4", "-q"]


@pytest.fixture(scope="module")
def with_masks(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `digits.pt` and a run with a mask net of it; only to be copied."""
    home = tmp_path_factory.mktemp("masks")
    shutil.copy(finished / "digits.pt", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        words = ["retrofit", "digits.pt", "--data", "digits", "--method", "sgad", "train.epochs=3", *QUICK]
        assert main(words) == 0
    return home


@pytest.fixture
def home(with_masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `with_masks` of one's own, and the working directory."""
    own = tmp_path / "home"
    shutil.copytree(with_masks, own)
    monkeypatch.chdir(own)
    return own


def masks_of(run: Path) -> GatedModel:
    """The network of a run."""
    model = adaptify.load(run)
    assert isinstance(model, GatedModel)
    return model


def decide(run: Path, **odds: float) -> None:
    """Let the mask net of a run always give some blocks these log-odds."""
    model = masks_of(run)
    (decider,) = model.deciders
    assert isinstance(decider.module, MaskNet)
    with torch.no_grad():
        for row, site in enumerate(decider.sites):
            if site.name.replace(".", "_") in odds:
                decider.module.linear.weight[row] = 0
                decider.module.linear.bias[row] = odds[site.name.replace(".", "_")]
    artifact.save(model, run / "model.safetensors")


def test_a_run_is_whole_and_its_figures_fit(home: Path, cli: Cli) -> None:
    report = read_report(MASKED)
    assert [site["name"] for site in report["gating"]["sites"]] == ["layer1.0", "layer2.0"]
    assert report["gating"]["data_dependent"] is True
    assert report["gating"]["gate_macs"] == masks_of(MASKED).decider_macs > 0
    assert report["after"]["accuracy"] > 0.7
    said = cli("evaluate", MASKED, "--data", "digits", "--json")
    assert said.code == 0, said.err
    assert said.json["accuracy"] == report["after"]["accuracy"]
    assert said.json["macs"] == report["after"]["macs"]
    columns = (MASKED / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss.masks", "loss.guide", "drop.wanted", "drop.true"} <= set(columns)
    # The guide is no part of what is kept.
    assert not any("guide" in name for name in load_file(MASKED / "checkpoints" / "last.safetensors"))
    assert cli("report", MASKED).code == 0


def test_training_on_starts_from_the_weights_and_masks_of_the_run(home: Path, cli: Cli) -> None:
    decide(MASKED, layer1_0=3.0, layer2_0=-3.0)
    words = ["--method", "sgad", "--data", "digits", "train.max_drop=0.8", "train.epochs=0"]
    assert cli("retrofit", MASKED, *words, "train.recalibrate=0", "-o", "same", "-q").code == 0
    before, after = masks_of(MASKED).state_dict(), masks_of(Path("same")).state_dict()
    assert before.keys() == after.keys()
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert read_report(Path("same"))["after"]["macs"] == pytest.approx(
        int(masks_of(MASKED).gate_cost(torch.tensor([1, 0]))) + masks_of(MASKED).decider_macs
    )
    said = cli("retrofit", MASKED, *words[:-1], "train.epochs=1", *QUICK[:-1], "-o", "more")
    assert said.code == 0, said.err
    assert "they are trained on" in said.err
    first = Path("more/metrics.csv").read_text().splitlines()
    kept = dict(zip(first[0].split(","), first[1].split(","), strict=True))["kept"]
    assert float(kept) < 0.9  # fresh masks would all be open after so short a time


def test_a_dead_block_is_removed_and_named(home: Path, cli: Cli) -> None:
    decide(MASKED, layer1_0=-3.0, layer2_0=3.0)
    before = snapshot(MASKED)
    dry = cli("prune", MASKED, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert "none of the 144 held-out images runs layer1.0" in dry.err
    assert not Path("small").exists()
    said = cli("prune", MASKED, "-o", "small", "--json")
    assert said.code == 0, said.err
    assert "layer1.0" in said.err
    report = said.json
    assert report["run"] == "small"
    assert any("layer1.0: removed" in note for note in report["notes"])
    assert any(note.startswith("0 of the 359 test images would have run") for note in report["notes"])
    gone = [layer["name"] for layer in report["pruning"]["layers"] if layer["channels_after"] == 0]
    assert gone == ["layer1.0.conv1", "layer1.0.conv2"]
    assert dry.json["macs"]["after"] == sum(layer["macs_after"] for layer in report["pruning"]["layers"])
    assert [site["name"] for site in report["gating"]["sites"]] == ["layer2.0"]
    # It is smaller, and otherwise what it was.
    whole, small = masks_of(MASKED), masks_of(Path("small"))
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert small.decider_macs < whole.decider_macs
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(small(images), whole(images), atol=1e-5, rtol=1e-5)
    *_, removed, placed = read_plan("small").steps
    assert isinstance(removed, RemoveBlocks)
    assert removed.blocks == ("layer1.0",)
    assert isinstance(placed, PlaceMaskNet)
    again = cli("evaluate", "small", "--data", "digits", "--json").json
    assert again["accuracy"] == report["after"]["accuracy"]
    assert again["macs"] == report["after"]["macs"]
    assert snapshot(MASKED) == before
    # Nothing more can go, and it can be trained on.
    assert cli("prune", "small", "--json").json == {"run": None}
    assert (
        cli("retrofit", "small", "--method", "sgad", "train.epochs=1", "--data", "digits", *QUICK).code == 0
    )


def test_without_a_dead_block_nothing_is_written(home: Path, cli: Cli) -> None:
    decide(MASKED, layer1_0=3.0, layer2_0=3.0)
    before = snapshot(home)
    said = cli("prune", MASKED)
    assert said.code == 0, said.err
    assert "no block is dead: each is run by some of the 144 held-out images" in said.err
    assert "nothing was written" in said.out + said.err
    assert snapshot(home) == before


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--target", "0.5"], 2, "not pruned to a target"),
        (["--finetune", "3"], 2, "removing what no image runs"),
        (['data.source=""'], 2, "which blocks no image runs"),
    ],
)
def test_what_dead_blocks_cannot_give_is_refused(
    words: list[str], code: int, reason: str, home: Path, cli: Cli
) -> None:
    before = snapshot(home)
    said = cli("prune", MASKED, *words)
    assert said.code == code
    assert reason in said.err
    assert snapshot(home) == before


def test_a_network_whose_blocks_are_all_dead_is_refused(home: Path, cli: Cli) -> None:
    decide(MASKED, layer1_0=-3.0, layer2_0=-3.0)
    said = cli("prune", MASKED)
    assert said.code == 4
    assert "every block that has a gate is dead" in said.err


@pytest.mark.slow
def test_the_same_seed_gives_the_same_network(home: Path, cli: Cli) -> None:
    words = ["retrofit", "digits.pt", "--data", "digits", "--method", "sgad", "train.epochs=1", *QUICK]
    for place, seed in (("first", 0), ("second", 0), ("third", 1)):
        torch.rand(len(place))  # whatever was drawn before
        assert cli(*words, "--seed", str(seed), "-o", place).code == 0
    first, second, third = (masks_of(Path(name)).state_dict() for name in ("first", "second", "third"))
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    name = "gates.mask_net.conv.weight"
    assert not first[name].equal(third[name])


def test_options_that_make_no_sense_are_refused(home: Path, cli: Cli) -> None:
    words = ["retrofit", "digits.pt", "--data", "digits", "--method", "sgad"]
    assert cli(*words, "train.max_drop=1").code == 3
    assert cli(*words, "train.ste=cubic").code == 3
    assert cli(*words, "gates.pool=0").code == 3
    assert cli("prune", "digits.pt", "--data", "digits", "--method", "sgad", "-t", "0.5").code == 2


def test_what_layers_run_adds_up_to_the_macs(home: Path, cli: Cli) -> None:
    words = ["digits.pt", "--data", "digits", "--method", "gumbel", "gates.kind=dependent"]
    shares = ["gates.granularity=layer", "gates.open_probability=0.4", "train.epochs=0"]
    assert cli("retrofit", *words, *shares, "train.target=0.6", *QUICK, "-o", "layers").code == 0
    report = read_report(Path("layers"))
    taken = sum(layer["macs"] * layer["executed"] for layer in report["layers"])
    assert taken + report["gating"]["gate_macs"] == pytest.approx(report["after"]["macs"], rel=1e-6)
    assert any(layer["executed"] < 1 for layer in report["layers"])
