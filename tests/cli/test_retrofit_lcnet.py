"""`retrofit --method lcnet`, and what reads such a run, end to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command_line import Cli, read_report

import adaptify
from adaptify.cli.main import main
from adaptify.data import open_data
from adaptify.models.registry import resolve
from adaptify.runtime.gated import GatedModel

SALIENT = Path("runs/digits_resnet-lcnet-001")
ARCHITECTURE = resolve("adaptify:digits_resnet")


@pytest.fixture(scope="module")
def with_saliences(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `digits.pt` and a run with saliences of it, known beside the first convolutions."""
    home = tmp_path_factory.mktemp("saliences")
    shutil.copy(finished / "digits.pt", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        words = ["retrofit", "digits.pt", "--data", "digits", "--method", "lcnet", "-q", "train.epochs=4"]
        assert main([*words, "train.target=0.7", "train.batch_size=32", "gates.execution=parallel"]) == 0
    return home


@pytest.fixture
def home(with_saliences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `with_saliences` of one's own, and the working directory."""
    own = tmp_path / "home"
    shutil.copytree(with_saliences, own)
    monkeypatch.chdir(own)
    return own


def test_the_report_says_what_the_network_does(home: Path) -> None:
    report = read_report(home / SALIENT)
    model = adaptify.load(home / SALIENT)
    assert isinstance(model, GatedModel)
    data = open_data("digits", input=ARCHITECTURE.input)
    images, labels = next(data.test.batches(len(data.test)))
    with torch.inference_mode():
        found = model.run(images)
    macs = model.gate_cost(found.gates > 0) + model.decider_macs
    assert report["after"]["macs"] == pytest.approx(float(macs.double().mean()))
    accuracy = float((found.logits.argmax(1) == labels).double().mean())
    assert report["after"]["accuracy"] == accuracy > 0.8
    assert report["before"]["macs"] == model.cost.total
    assert report["gating"]["gate_macs"] == model.decider_macs == 16 * 17 + 16 * 33 + 32 * 65
    assert report["after"]["kept"] < 0.8
    # What scales is neither 0 nor 1 everywhere, or it would be a gate like others.
    assert bool(((found.gates > 0) & (found.gates < 1)).any())


def test_a_run_keeps_when_its_saliences_are_known(home: Path) -> None:
    model = adaptify.load(home / SALIENT)
    assert isinstance(model, GatedModel)
    closed = torch.zeros(model.gate_cost.gates, dtype=torch.int64)
    first = sum(
        macs for name, macs in model.cost.macs.items() if name.endswith("conv1") and name.startswith("layer")
    )
    around = sum(model.cost.macs[name] for name in ("conv1", "linear"))
    assert int(model.gate_cost(closed)) == first + around


def test_it_can_be_evaluated_and_reported_on(home: Path, cli: Cli) -> None:
    report = read_report(home / SALIENT)
    said = cli("evaluate", SALIENT, "--json")
    assert said.code == 0, said.err
    assert said.json["accuracy"] == pytest.approx(report["after"]["accuracy"])
    assert said.json["macs"] == pytest.approx(report["after"]["macs"])
    (home / SALIENT / "report.html").unlink()
    assert cli("report", SALIENT).code == 0
    assert "lcnet" in (home / SALIENT / "report.html").read_text()
