"""`prune` with gates: learned on the way, or those of a run; and `retrofit` that puts them there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command_line import Cli, read_report, snapshot

import adaptify
from adaptify.artifact import read_plan
from adaptify.cli.main import main
from adaptify.graph.cost import CostModel
from adaptify.plan import DecoupleBlocks, RemoveBlocks, RemoveChannels
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gated import GatedModel

FILES = {"env.json", "model.safetensors", "recipe.yaml", "report.html", "report.json"}
TRAINED = FILES | {"metrics.csv", "checkpoints"}
GATED = Path("runs/digits_resnet-gumbel-001")
QUICK = ["train.epochs=3", "train.batch_size=32", "train.recalibrate=4"]


@pytest.fixture(scope="module")
def with_gates(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `digits.pt` and a run with gates of it; only to be copied."""
    home = tmp_path_factory.mktemp("gates")
    shutil.copy(finished / "digits.pt", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        words = ["retrofit", "digits.pt", "--data", "digits", "--method", "gumbel", "gates.filters=4", "-q"]
        assert main([*words, "train.target=0.6", *QUICK]) == 0
    return home


@pytest.fixture
def home(with_gates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `with_gates` of one's own, and the working directory."""
    own = tmp_path / "home"
    shutil.copytree(with_gates, own)
    monkeypatch.chdir(own)
    return own


def test_a_run_with_gates_is_whole_and_its_figures_fit(home: Path, cli: Cli) -> None:
    assert {path.name for path in GATED.iterdir()} == TRAINED
    report = read_report(GATED)
    model = adaptify.load(GATED)
    assert isinstance(model, GatedModel)
    gates = model.policy.decide(model.odds()).long()
    macs = int(model.gate_cost(gates))
    # What looks at nothing costs every sample the same.
    assert report["after"]["macs"] == macs
    assert set(report["macs_per_sample"].values()) == {macs}
    assert report["after"]["kept"] == pytest.approx(macs / report["before"]["macs"])
    assert report["after"]["kept"] == pytest.approx(0.6, abs=0.15)
    gating = report["gating"]
    assert [site["name"] for site in gating["sites"]] == [site.name for site in model.sites]
    assert sum(gating["histogram"]) == len(gates)
    chosen, always, stochastic, ensemble = gating["modes"]
    assert chosen["accuracy"] == report["after"]["accuracy"]
    assert always["kept"] == 1
    assert ensemble["kept"] == pytest.approx(5 * stochastic["kept"])
    kept = [row["kept"] for row in gating["sweep"]]
    assert kept == sorted(kept, reverse=True)
    assert len(report["training"]["epochs"]) == len(gating["activity"]) == 3
    state = model.state_dict()
    checkpoint = torch.load("digits.pt", weights_only=True)
    assert checkpoint.keys() == {name for name in state if not name.startswith("gates.")}


def test_other_commands_know_runs_with_gates(home: Path, cli: Cli) -> None:
    report = read_report(GATED)
    said = cli("evaluate", GATED, "--data", "digits", "--json")
    assert said.code == 0, said.err
    assert said.json["accuracy"] == report["after"]["accuracy"]
    assert said.json["macs"] == report["after"]["macs"]
    shown = cli("report", GATED)
    assert shown.code == 0
    assert "Gates (ways to decide" in shown.out
    assert cli("inspect", GATED).code == 0
    assert cli("calibrate", GATED, "--max-drop", "1").code == 2


def test_what_gates_closed_is_removed(home: Path, cli: Cli) -> None:
    said = cli("prune", GATED, "--json")
    assert said.code == 0, said.err
    run = Path("runs/digits_resnet-pruned-001")
    assert said.json["run"] == str(run)
    assert {path.name for path in run.iterdir()} >= FILES
    report = read_report(run)
    assert report["pruning"]["importance"] == "learned gates"
    assert report["after"]["macs"] <= read_report(GATED)["after"]["macs"]
    assert report["pruning"]["target"] == report["pruning"]["achieved"]
    assert not any("threshold" in note for note in report["notes"])
    model = adaptify.load(run)
    assert isinstance(model, AdaptiveModel)
    assert model.cost.total == report["after"]["macs"]
    assert [type(step) for step in read_plan(run).steps] == [DecoupleBlocks, RemoveChannels]
    again = cli("evaluate", run, "--data", "digits", "--json").json
    assert again["accuracy"] == report["after"]["accuracy"] > 0.7


def test_without_images_or_rounding_it_is_the_gated_network(home: Path, cli: Cli) -> None:
    """Nothing is taken anew: the outputs are those of the run."""
    words = ["--round-to", "1", "train.recalibrate=0", "-o", "small", "-q"]
    assert cli("prune", GATED, *words).code == 0
    small, gated = adaptify.load("small"), adaptify.load(GATED)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(small(images), gated(images), atol=1e-4, rtol=1e-4)
    assert read_report(Path("small"))["after"]["accuracy"] == read_report(GATED)["after"]["accuracy"]


def test_a_target_closes_more_in_the_order_of_the_gates(home: Path, cli: Cli) -> None:
    said = cli("prune", GATED, "--target", "0.4", "--round-to", "1", "-o", "small", "--finetune", "1")
    assert said.code == 0, said.err
    assert "at threshold 0.5 the gates leave" in said.err
    report = read_report(Path("small"))
    assert report["after"]["kept"] == pytest.approx(0.4, rel=0.01)
    assert len(report["training"]["epochs"]) == 1
    assert report["after"]["accuracy"] > 0.7
    assert yaml.safe_load(Path("small/recipe.yaml").read_text())["prune"] == {
        "target": 0.4,
        "round_to": 1,
        "finetune": 1,
    }


@pytest.mark.parametrize("target", [[], ["--target", "0.45"]])
def test_a_dry_run_of_a_run_with_gates_says_what_would_go(target: list[str], home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("prune", GATED, *target, "--dry-run", "--json")
    assert said.code == 0, said.err
    found = said.json
    wanted = 0.45 if target else read_report(GATED)["after"]["kept"]
    assert found["macs"]["after"] / found["macs"]["before"] == pytest.approx(wanted, rel=0.02)
    assert found["pruning"]["importance"] == "learned gates"
    assert snapshot(home) == before


def test_pruning_learns_where_there_are_images(home: Path, cli: Cli) -> None:
    words = ["--target", "0.5", "--data", "digits", "gates.filters=4", "--finetune", "1", *QUICK]
    said = cli("prune", "digits.pt", *words, "-o", "learned", "--json")
    assert said.code == 0, said.err
    report = read_report(Path("learned"))
    assert said.json["pruning"] == report["pruning"]
    assert report["pruning"]["importance"] == "learned gates"
    assert report["after"]["kept"] == pytest.approx(0.5, rel=0.01)
    assert (
        report["before"]["accuracy"]
        == cli("evaluate", "digits.pt", "--data", "digits", "--json").json["accuracy"]
    )
    assert report["after"]["accuracy"] > 0.7
    network = adaptify.load("learned")
    assert isinstance(network, AdaptiveModel)
    assert CostModel(network.backbone()).total == report["after"]["macs"]
    recipe = yaml.safe_load(Path("learned/recipe.yaml").read_text())
    assert (recipe["method"], recipe["train"]["target"], recipe["prune"]["target"]) == ("gumbel", 0.5, 0.5)
    # Both trainings left their figures.
    assert Path("learned/metrics.csv").is_file()
    assert Path("learned/finetune/metrics.csv").is_file()
    # What was written is a recipe, and the file one more network to prune.
    assert cli("prune", "-r", "learned/recipe.yaml", "--dry-run").code == 0
    assert cli("prune", "learned", "--target", "0.8", "--method", "importance", "--dry-run").code == 0


def test_whole_blocks_can_be_learned_to_go(home: Path, cli: Cli) -> None:
    shutil.rmtree("runs")
    # What two of the three blocks leave.
    words = ["--target", "0.704", "--data", "digits", "gates.granularity=layer", *QUICK]
    said = cli("prune", "digits.pt", *words, "-q")
    assert said.code == 0, said.err
    assert [path.name for path in Path("runs").iterdir()] == ["digits_resnet-gumbel-001"]
    (step,) = read_plan("runs/digits_resnet-gumbel-001").steps
    assert isinstance(step, RemoveBlocks)
    assert len(step.blocks) == 1
    missed = cli("prune", "digits.pt", *words, "-q", "--target", "0.9", "-o", "missed")
    assert missed.code == 5
    assert "no number of blocks is within 1% of 0.9 of the MACs" in missed.err
    assert not Path("missed").exists()


def test_a_dry_run_of_learning_trains_nothing(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("prune", "digits.pt", "--target", "0.5", "--data", "digits", "--dry-run", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found["recipe"]["method"] == "gumbel"
    assert found["recipe"]["train"]["target"] == 0.5
    assert {row["position"] for row in found["sites"]} == {"input", "channels", "output"}
    assert all(row["macs_closed"] < found["macs"]["before"] for row in found["sites"])
    assert "nothing was trained" in said.err
    assert snapshot(home) == before


def test_gates_that_look_go_through_all_commands_but_pruning(home: Path, cli: Cli) -> None:
    words = ["--data", "digits", "--method", "gumbel", "gates.kind=dependent", "gates.filters=8"]
    said = cli("retrofit", "digits.pt", *words, *QUICK, "-o", "looks", "--json")
    assert said.code == 0, said.err
    report = read_report(Path("looks"))
    model = adaptify.load("looks")
    assert isinstance(model, GatedModel)
    assert report["gating"]["data_dependent"]
    assert report["gating"]["gate_macs"] == model.decider_macs > 0
    spread = report["macs_per_sample"]
    assert spread["p95"] >= spread["median"]
    assert spread["mean"] == pytest.approx(report["after"]["macs"])
    samples = report["gating"]["samples"]
    assert sum(row["samples"] for row in samples["classes"]) == report["data"]["test"]
    right = sum(row["samples"] * row["accuracy"] for row in samples["classes"])
    assert right / report["data"]["test"] == pytest.approx(report["after"]["accuracy"])
    assert "What images take" in Path("looks/report.html").read_text(encoding="utf-8")
    evaluated = cli("evaluate", "looks", "--data", "digits", "--json").json
    assert evaluated["accuracy"] == report["after"]["accuracy"]
    before = snapshot(home)
    for extra in ([], ["--target", "0.5"], ["--dry-run"]):
        said = cli("prune", "looks", *extra)
        assert said.code == 4
        assert "gates that look at the sample cannot be frozen" in said.err
        assert "gates.kind=independent" in said.err
    assert snapshot(home) == before
    # By importance its network can be pruned all the same.
    said = cli("prune", "looks", "--target", "0.8", "--method", "importance", "--dry-run", "--json")
    assert said.code == 0, said.err
    assert "the gates that the network has are left out" in said.err
    assert said.json["pruning"]["importance"] == "l2"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["prune", GATED, "--target", "0.0001"], 5, "0.0001 of the MACs cannot be reached: the least is"),
        (
            ["prune", "digits.pt", "--target", "0.1", "--data", "digits", "gates.positions=[output]"],
            5,
            "is out of reach",
        ),
        (
            ["prune", "digits.pt", "--target", "0.5", "--data", "digits", "gates.kind=dependent"],
            2,
            "decides for each image",
        ),
        (["prune", "digits.pt", "--target", "0.5", "--method", "gumbel"], 2, "and there are none"),
        (["prune", "digits.pt", "--target", "0.5", "--method", "dgate", "--data", "digits"], 2, "dgate"),
        (["prune", "digits.pt", "--data", "digits"], 2, "--target"),
        (["prune", "digits.pt", "--data", "digits", "--target", "0.5", "gates.kind=both"], 3, "gates.kind"),
        (
            ["retrofit", "digits.pt", "--data", "digits", "--method", "importance"],
            2,
            "Use adaptify prune --method importance.",
        ),
    ],
    ids=str,
)
def test_mistakes_are_named_and_nothing_is_written(
    words: list[str], code: int, told: str, home: Path, cli: Cli
) -> None:
    before = snapshot(home)
    said = cli(*words)
    assert (said.code, said.out) == (code, ""), said.err
    assert told in said.err
    assert snapshot(home) == before
