"""`adaptify prune`, end to end: what is written and refused, and what other commands make of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import Cli, read_report, snapshot
from torch import Tensor, nn

import adaptify
from adaptify.artifact import read_plan
from adaptify.data import MemorySplit, Split
from adaptify.graph.cost import CostModel
from adaptify.models.registry import resolve
from adaptify.plan import PlaceExit, RemoveChannels

RUN = Path("runs/digits_resnet-importance-001")
FILES = {"env.json", "model.safetensors", "recipe.yaml", "report.html", "report.json"}


@pytest.fixture
def resnet20(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state dict of a CIFAR ResNet-20 with random weights; its folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(resolve("adaptify:cifar_resnet20").build().state_dict(), "resnet20.pt")
    return Path("resnet20.pt")


def ptflops_of_weights(model: nn.Module, shape: tuple[int, ...]) -> int:
    """What ptflops counts for convolutions and linear layers, less one for each bias that is added."""
    ptflops = pytest.importorskip("ptflops")
    macs, _ = ptflops.get_model_complexity_info(
        model,
        shape,
        as_strings=False,
        print_per_layer_stat=False,
        backend="pytorch",
        ost=io.StringIO(),
        ignore_modules=[nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d, nn.AdaptiveAvgPool2d],
        backend_specific_config={"count_functional": False},
    )
    biases = sum(m.out_features for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None)
    return int(macs) - biases


def test_a_checkpoint_becomes_smaller(resnet20: Path, cli: Cli) -> None:
    said = cli("prune", resnet20, "--target", "0.5", "--arch", "adaptify:cifar_resnet20")
    assert said.code == 0, said.err
    run = Path("runs/cifar_resnet20-importance-001")
    assert "MACs: 40.6 M -> 20." in said.err
    assert "warning: accuracy was not measured" in said.err
    assert {path.name for path in run.iterdir()} == FILES
    report = read_report(run)
    before, after = report["before"], report["after"]
    assert before["accuracy"] is after["accuracy"] is None
    assert report["data"] is None
    assert before["macs"] == 442_368 + 6 * 2_359_296 + 2 * (1_179_648 + 5 * 2_359_296) + 640
    assert after["kept"] == after["macs"] / before["macs"] == pytest.approx(0.5, rel=0.01)
    assert after["parameters"] < before["parameters"] == 269_722
    assert after["bytes"] < before["bytes"]
    assert after["milliseconds"] > 0
    assert any("not measured" in note for note in report["notes"])
    assert "Pruning" in (run / "report.html").read_text()

    model = adaptify.load(run)
    assert model.cost.total == after["macs"]
    assert sum(parameter.numel() for parameter in model.parameters()) == after["parameters"]
    rows = {row["name"]: row for row in report["pruning"]["layers"]}
    assert sum(row["macs_after"] for row in rows.values()) == after["macs"]
    assert sum(row["macs_before"] for row in rows.values()) == before["macs"]
    weight = model.state_dict()["layer3.0.conv1.weight"]
    assert (rows["layer3.0.conv1"]["channels_before"], rows["layer3.0.conv1"]["channels_after"]) == (
        64,
        weight.shape[0],
    )
    assert rows["linear"]["channels_after"] == 10
    assert report["pruning"]["frozen"] == {"linear is the output of the network": ["linear"]}


def test_the_macs_are_those_that_ptflops_counts(resnet20: Path, cli: Cli) -> None:
    assert cli("prune", resnet20, "--arch", "cifar_resnet20", "--target", "0.4", "-o", "small").code == 0
    network = adaptify.load("small").backbone()
    counted = ptflops_of_weights(network.root, network.input_shape)
    assert counted == CostModel(network).total == read_report(Path("small"))["after"]["macs"]


def test_accuracy_is_measured_on_the_test_part(home: Path, cli: Cli) -> None:
    words = ["--target", "0.6", "--data", "digits", "--importance", "l2", "--json"]
    said = cli("prune", "digits.pt", *words)
    assert said.code == 0, said.err
    assert "not measured" not in said.err
    report = said.json
    assert report["run"] == str(RUN)
    assert {key: value for key, value in report.items() if key != "run"} == read_report(RUN)
    untouched = cli("evaluate", "digits.pt", "--data", "digits", "--json").json
    pruned = cli("evaluate", RUN, "--data", "digits", "--json").json
    assert report["before"]["accuracy"] == untouched["accuracy"]
    assert report["after"]["accuracy"] == pruned["accuracy"]
    assert pruned["macs"] == pruned["base_macs"] == report["after"]["macs"]
    assert report["data"]["test"] == pruned["samples"] == 359


def test_the_report_is_shown_again(home: Path, cli: Cli) -> None:
    assert cli("prune", "digits.pt", "--target", "0.6").code == 0
    said = cli("report", RUN)
    assert said.code == 0
    assert "Pruning (channels that each layer writes)" in said.out
    assert "not measured" in said.out
    assert "Exits" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    page = (RUN / "report.html").read_text()
    assert "was not measured" in page
    assert "Where samples leave" not in page


def test_a_dry_run_writes_nothing(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    words = ["--target", "0.5", "--data", "digits", "--method", "importance", "--dry-run", "--json"]
    said = cli("prune", "digits.pt", *words)
    assert said.code == 0
    found = said.json
    assert found["macs"]["after"] / found["macs"]["before"] == pytest.approx(0.5, rel=0.01)
    assert found["pruning"]["achieved"] == found["macs"]["after"] / found["macs"]["before"]
    assert "dry run" in said.err
    assert snapshot(home) == before


def test_exits_go_into_a_pruned_network(home: Path, cli: Cli) -> None:
    assert cli("prune", "digits.pt", "--target", "0.7").code == 0
    words = ["--data", "digits", "--max-drop", "2", "train.epochs=5", "-q", "-o", "both"]
    said = cli("retrofit", RUN / "model.safetensors", "--method", "dgate", *words)
    assert said.code == 0, said.err
    plan = read_plan("both")
    assert [type(step) for step in plan.steps] == [RemoveChannels, PlaceExit, PlaceExit]
    assert plan.steps[0] == read_plan(RUN).steps[0]
    both, pruned = adaptify.load("both"), adaptify.load(RUN)
    assert both.cost.total == pruned.cost.total
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(both.dense(images)[0], pruned(images))
    assert (
        cli("evaluate", "both", "--json").json["accuracy"] == read_report(Path("both"))["after"]["accuracy"]
    )
    assert cli("calibrate", "both", "--max-drop", "5").code == 0
    assert cli("inspect", "both").code == 0


def test_a_pruned_network_is_pruned_again(home: Path, cli: Cli) -> None:
    assert cli("prune", "digits.pt", "--target", "0.8").code == 0
    assert cli("prune", RUN, "--target", "0.8", "-o", "twice").code == 0
    first, second = read_plan(RUN), read_plan("twice")
    assert second.steps[0] == first.steps[0]
    assert [step.op for step in second.steps] == ["remove_channels"] * 2
    report = read_report(Path("twice"))
    assert report["before"]["macs"] == read_report(RUN)["after"]["macs"]
    assert adaptify.load("twice").cost.total == report["after"]["macs"]


def test_exits_are_left_out_when_their_network_is_pruned(home: Path, cli: Cli) -> None:
    said = cli("prune", "runs/digits_resnet-dgate-001", "--target", "0.8", "-o", "small")
    assert said.code == 0
    assert "the exits that the network has are left out" in said.err
    assert adaptify.load("small").exits == ()


@pytest.mark.parametrize("importance", ["l1", "bn_scale", "fpgm"])
def test_every_importance_meets_the_target(importance: str, home: Path, cli: Cli) -> None:
    words = ["--target", "0.5", "--importance", importance, "--dry-run", "--json"]
    assert cli("prune", "digits.pt", *words).json["pruning"]["achieved"] == pytest.approx(0.5, rel=0.01)


def test_channels_are_judged_on_training_images(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["prune", "digits.pt", "--target", "0.5", "--round-to", "1", "--data", "digits", "--json"]
    said = cli(*words, "--importance", "taylor")
    assert said.code == 0, said.err
    report = read_report(RUN)
    assert report["pruning"]["importance"] == "taylor"
    assert report["after"]["kept"] == pytest.approx(0.5, rel=0.01)
    assert "the importance of channels was judged on 1024 training images" in report["notes"]
    by_weights = cli(*words, "--importance", "l2", "--dry-run").json
    assert by_weights["pruning"]["layers"] != report["pruning"]["layers"]

    def unused(split: Split, *arguments: object, **options: object) -> Iterator[tuple[Tensor, Tensor]]:
        assert len(split) != report["data"]["test"], "the test images are for reporting"
        return iter(batches(split, *arguments, **options))

    batches = MemorySplit.batches
    monkeypatch.setattr(MemorySplit, "batches", unused)
    again = cli(*words, "--importance", "taylor", "--dry-run")
    assert again.json["pruning"]["layers"] == report["pruning"]["layers"]


def test_a_lowered_multiple_is_told(home: Path, cli: Cli) -> None:
    words = ["--target", "0.35", "--round-to", "64", "--dry-run", "--json"]
    said = cli("prune", "digits.pt", *words)
    multiple = said.json["pruning"]["round_to"]
    assert multiple < 64
    assert f"channels are multiples of {multiple}, not of 64" in said.err


def test_a_target_out_of_reach_leaves_nothing(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("prune", "digits.pt", "--target", "0.0001", "--round-to", "1")
    assert said.code == 5
    assert "0.0001 of the MACs cannot be reached: the least is 0.00" in said.err
    assert snapshot(home) == before


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["digits.pt"], 2, "--target"),
        (["digits.pt", "--target", "0"], 3, "prune.target: input should be greater than 0"),
        (["digits.pt", "--target", "40"], 3, "prune.target: input should be less than or equal to 1"),
        (
            ["digits.pt", "--target", "0.5", "--importance", "l3"],
            3,
            "gates.criterion: input should be 'l1', ",
        ),
        (["digits.pt", "--target", "0.5", "--importance", "l1", "--method", "gumbel"], 2, "does not go with"),
        (["digits.pt", "--target", "0.5", "--importance", "taylor"], 2, "Say which: --data FOLDER"),
        (["digits.pt", "--target", "0.5", "--round-to", "0"], 3, "prune.round_to"),
        (["digits.pt", "--target", "0.5", "--finetune", "1"], 2, "no images to train on"),
        (["digits.pt", "--target", "0.5", "--method", "gumbel"], 2, "learns on images what to remove"),
        (["digits.pt", "--target", "0.5", "--data", "nowhere"], 2, "nowhere"),
        (["nothing.pt", "--target", "0.5"], 2, "nothing.pt"),
        (["digits.pt", "--target", "0.5", "--device", "tpu"], 2, "unknown device 'tpu'"),
        (["digits.pt", "--target", "0.5", "-o", "digits.pt"], 2, "digits.pt is there already"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    words: list[str], code: int, told: str, home: Path, cli: Cli
) -> None:
    before = snapshot(home)
    said = cli("prune", *words)
    assert (said.code, said.out) == (code, "")
    assert told in said.err
    assert snapshot(home) == before


def test_force_replaces_a_pruned_run_and_nothing_else(home: Path, cli: Cli) -> None:
    assert cli("prune", "digits.pt", "--target", "0.8", "-o", "small").code == 0
    assert cli("prune", "digits.pt", "--target", "0.6", "-o", "small").code == 2
    assert cli("prune", "digits.pt", "--target", "0.6", "-o", "small", "--force").code == 0
    assert read_report(Path("small"))["pruning"]["target"] == 0.6


def test_a_failed_verification_leaves_nothing(home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptify.pipeline import pruning

    before = snapshot(home)
    monkeypatch.setattr(pruning, "TOLERANCE", -1.0)
    said = cli("prune", "digits.pt", "--target", "0.8")
    assert said.code == 5
    assert "differs from the masked one" in said.err
    assert snapshot(home) == before


def test_a_pruned_run_has_nothing_to_calibrate(home: Path, cli: Cli) -> None:
    assert cli("prune", "digits.pt", "--target", "0.8").code == 0
    said = cli("calibrate", RUN, "--max-drop", "1")
    assert said.code == 2
    assert "no exits to calibrate" in said.err
