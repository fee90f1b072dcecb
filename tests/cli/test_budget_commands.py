"""Runs whose gates look at images: the frontier in their artifact, and the commands that move along it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command_line import Cli, read_report, snapshot

import adaptify
from adaptify.artifact import read_plan
from adaptify.cli.main import main
from adaptify.data import Data, open_data
from adaptify.data.identity import fingerprint
from adaptify.models.registry import resolve
from adaptify.runtime.gated import GatedModel
from adaptify.training.gate_records import observe_gates

METHODS = {
    "gumbel": ["gates.kind=dependent", "train.epochs=2", "train.target=0.6"],
    "sgad": ["train.epochs=1", "train.recalibrate=0"],
    "lcnet": ["train.epochs=2", "train.target=0.6"],
}
RUN = Path("run")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == "gumbel" else pytest.mark.slow) for name in METHODS],
)
def with_run(
    request: pytest.FixtureRequest, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with `digits.pt` and a run of it with gates that look at images; only to be copied."""
    home = tmp_path_factory.mktemp(request.param)
    shutil.copy(finished / "digits.pt", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        words = ["retrofit", "digits.pt", "--data", "digits", "--method", request.param, "-q", "-o", str(RUN)]
        assert main([*words, "train.batch_size=64", *METHODS[request.param]]) == 0
    return home


@pytest.fixture
def home(with_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `with_run` of one's own, and the working directory."""
    own = tmp_path / "home"
    shutil.copytree(with_run, own)
    monkeypatch.chdir(own)
    return own


@pytest.fixture(scope="module")
def data() -> Data:
    """The images that the runs were made with."""
    return open_data("digits", input=resolve("adaptify:digits_resnet").input)


def network(run: Path = RUN) -> GatedModel:
    """The network of a run."""
    model = adaptify.load(run)
    assert isinstance(model, GatedModel)
    return model


def test_the_artifact_holds_what_held_out_images_said(home: Path, data: Data) -> None:
    model = network()
    frontier, plan = model.frontier, read_plan(RUN)
    assert frontier is not None
    assert len(frontier.points) >= 3
    assert frontier.base_macs == model.cost.total
    taus = [point.thresholds for point in frontier.points]
    assert (model.policy.tau,) in taus
    for point in (frontier.points[0], frontier.points[len(taus) // 2], frontier.points[-1]):
        model.policy = model.policy.with_tau(point.thresholds[0])
        seen = observe_gates(model, data.holdout)
        # The run was measured in its fast form: an image on the threshold may decide otherwise.
        assert seen.accuracy == pytest.approx(point.accuracy, abs=0.015)
        assert float(seen.macs.mean()) == pytest.approx(point.macs, rel=0.01)
    assert plan.calibration is not None
    assert plan.calibration["samples"] == len(data.holdout)
    assert plan.calibration["images"] == fingerprint(data.holdout)
    assert plan.calibration["request"] == {}
    chosen = frontier.points[taus.index((network().policy.tau,))]
    assert plan.calibration["macs"] == chosen.macs
    assert plan.calibration["accuracy"] == chosen.accuracy
    assert plan.calibration["base_accuracy"] == frontier.base_accuracy > 0.7
    assert network().budget == chosen.macs / model.cost.total


def test_evaluate_prints_the_curve(home: Path, cli: Cli) -> None:
    points = network().frontier.points
    cheap, dear = (point.macs / network().cost.total for point in (points[0], points[-1]))
    before = snapshot(home)
    said = cli("evaluate", RUN, "--budget", f"{cheap + 1e-6:.8f},{dear + 1e-6:.8f}", "--json")
    assert said.code == 0, said.err
    report = read_report(RUN)
    assert said.json["accuracy"] == report["after"]["accuracy"]
    assert said.json["macs"] == report["after"]["macs"]
    first, last = said.json["budgets"]
    assert first["policy"]["tau"] == points[0].thresholds[0]
    assert first["kept"] == pytest.approx(cheap, rel=0.1)
    assert last["kept"] > first["kept"]
    assert last["images_per_second"] > 0
    text = cli("evaluate", RUN, "--budget", f"{dear + 1e-6:.8f}").out
    assert "tau " in text
    assert max(map(len, text.splitlines())) <= 80
    assert snapshot(home) == before


def test_moving_along_the_frontier_needs_no_recalibration(home: Path, data: Data) -> None:
    fast = adaptify.optimize(network())
    kept = []
    for point in fast.frontier.points:
        fast.budget = point.macs
        assert fast.budget <= point.macs / fast.cost.total
        kept.append(observe_gates(fast, data.test).kept)
    assert kept[-1] > kept[0]
    fast.policy = fast.policy.with_tau(1.0)
    with torch.inference_mode():
        assert not fast.run(next(iter(data.test.batches(8)))[0]).gates.any()


def test_calibrating_moves_the_run(home: Path, cli: Cli, data: Data) -> None:
    before, was = snapshot(home), read_report(RUN)
    points = network().frontier.points
    own = (network().policy.tau,)
    wanted = next(point for point in points if point.thresholds != own)
    budget = f"{wanted.macs / network().cost.total + 1e-6:.8f}"
    dry = cli("calibrate", RUN, "--budget", budget, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert snapshot(home) == before
    said = cli("calibrate", RUN, "--budget", budget, "--json")
    assert said.code == 0, said.err
    report = read_report(RUN)
    assert said.json == {**report, "run": str(RUN)}
    # The report tells what the run does now, measured on the test images.
    model = network()
    chosen = next(point for point in points if point.thresholds == (model.policy.tau,))
    assert chosen.macs <= wanted.macs
    again = cli("evaluate", RUN, "--json").json
    assert report["after"]["accuracy"] == again["accuracy"]
    assert report["after"]["macs"] == again["macs"]
    assert report["after"]["macs"] != was["after"]["macs"]
    assert report["gating"]["tau"] == model.policy.tau == chosen.thresholds[0]
    now = next(row for row in report["gating"]["modes"] if row["name"] == "threshold")
    assert (now["tau"], now["accuracy"]) == (model.policy.tau, again["accuracy"])
    assert now["kept"] == pytest.approx(again["kept"])
    assert now in report["gating"]["sweep"]
    assert [row for row in report["gating"]["sweep"] if row != now] == was["gating"]["sweep"]
    assert report["macs_per_sample"]["mean"] == again["macs"]
    assert report["gating"]["activity"] == was["gating"]["activity"]
    assert report["training"] == was["training"]
    first = next(point for point in points if point.thresholds == own)
    assert was["held_out"] == {"accuracy": first.accuracy, "macs": first.macs}
    assert report["held_out"] is None  # `calibration` has what the threshold gives now
    calibration = report["calibration"]
    assert calibration["request"] == {"max_macs": pytest.approx(float(budget))}
    assert (calibration["samples"], calibration["macs"]) == (len(data.holdout), chosen.macs)
    assert model.budget == chosen.macs / model.cost.total
    assert [point.thresholds for point in model.frontier.points] == [point.thresholds for point in points]
    # MACs are asked for as such, and told as a part.
    least = points[0].macs / network().cost.total
    assert cli("calibrate", RUN, "--budget", f"{points[0].macs / 1000 + 0.01:.2f}K").code == 0
    assert read_report(RUN)["calibration"]["request"]["max_macs"] == pytest.approx(least, rel=1e-3)
    assert network().budget == least
    # A drop is from the network as it came: back to what loses nothing, if there is such a point.
    assert cli("report", RUN).code == 0
    back = cli("calibrate", RUN, "--max-drop", "60")
    assert back.code == 0, back.err
    assert (
        network().policy.tau
        == min(
            (p for p in points if p.accuracy >= model.frontier.base_accuracy - 0.6), key=lambda p: p.macs
        ).thresholds[0]
    )
    rows = [line.split() for line in back.out.splitlines()]
    assert ["original", "before", "now"] in rows
    assert any(row[:3] == ["Threshold", "of", "gates"] for row in rows)
    assert max(map(len, back.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--budget", "1K"], 5, "The cheapest point keeps"),
        (["--thresholds", "0.3"], 2, "gates are not chosen by thresholds"),
        (["--max-drop", "-200"], 2, "max-drop"),
    ],
)
def test_what_gates_cannot_be_calibrated_to(
    words: list[str], code: int, told: str, home: Path, cli: Cli
) -> None:
    before = snapshot(home)
    said = cli("calibrate", RUN, *words)
    assert said.code == code, said.err
    assert told in said.err
    assert snapshot(home) == before


def test_gates_that_are_the_same_for_all_have_nothing_to_calibrate(home: Path, cli: Cli) -> None:
    words = [
        "retrofit",
        "digits.pt",
        "--data",
        "digits",
        "--method",
        "gumbel",
        "train.epochs=0",
        "-o",
        "same",
    ]
    assert cli(*words, "-q").code == 0
    assert read_plan("same").frontier is None
    said = cli("calibrate", "same", "--budget", "0.5")
    assert said.code == 2
    assert "it carries no frontier" in said.err
