"""Networks that are trained together with their exits, through the commands."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from command_line import Cli, read_report, snapshot

import adaptify
from adaptify.cli.main import main
from adaptify.data import open_data
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.policy import GATE

FRESH = "adaptify:digits_msdnet"
BOOSTED = Path("boosted")
QUICK = ["--data", "digits", "train.epochs=1", "train.batch_size=64", "train.lr=0.1", "-q"]


@pytest.fixture(scope="module")
def with_own_exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a boosted run of a network with exits of its own; only to be read."""
    home = tmp_path_factory.mktemp("own-exits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        words = ["retrofit", FRESH, "--method", "boostnet", "-o", str(BOOSTED), *QUICK]
        assert main([*words, "train.epochs=2", "gates.scale=true"]) == 0
    return home


@pytest.fixture
def own(with_own_exits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the working directory."""
    monkeypatch.chdir(with_own_exits)
    return with_own_exits


def test_the_report_of_a_boosted_run_says_what_the_network_does(own: Path) -> None:
    report, model = read_report(BOOSTED), adaptify.load(BOOSTED)
    assert isinstance(model, AdaptiveModel)
    assert model.boost == (0.5,) * 3
    assert model.policy.temperatures is not None
    data = open_data("digits", input=resolve(FRESH).input)
    images, labels = next(data.test.batches(len(data.test)))
    with torch.inference_mode():
        found = model.run(images)
        everything = model.everything(images)
    macs = torch.tensor(model.exit_macs(model.policy))[found.exit_index].double()
    assert report["after"]["macs"] == pytest.approx(float(macs.mean()))
    assert report["after"]["accuracy"] == pytest.approx(
        float((found.logits.argmax(1) == labels).double().mean()), abs=0.003
    )
    rows = report["exits"]
    assert [row["name"] for row in rows] == [*everything.exits, "output"]
    for row, logits in zip(rows, (*everything.exits.values(), everything.logits), strict=True):
        right = float((logits.argmax(1) == labels).double().mean())
        assert row["accuracy_all"] == pytest.approx(right, abs=0.003)
    assert report["before"]["macs"] == model.cost.total == rows[-1]["macs"]
    assert (BOOSTED / "metrics.csv").is_file()


def test_a_boosted_run_can_be_evaluated_inspected_reported_on_and_calibrated(
    own: Path, tmp_path: Path, cli: Cli
) -> None:
    report = read_report(BOOSTED)
    said = cli("evaluate", BOOSTED, "--json")
    assert said.code == 0, said.err
    assert said.json["accuracy"] == pytest.approx(report["after"]["accuracy"])
    assert said.json["macs"] == pytest.approx(report["after"]["macs"])
    said = cli("inspect", BOOSTED)
    assert said.code == 0
    assert "classifier.2" in said.out
    assert cli("report", BOOSTED).code == 0
    copied = shutil.copytree(BOOSTED, tmp_path / "copied")
    said = cli("calibrate", copied, "--thresholds", "0.5,never,0.9", "--json")
    assert said.code == 0, said.err
    assert [row["threshold"] for row in said.json["exits"]] == [0.5, None, 0.9, None]
    # Heads that are switched off still count in the sum.
    macs = [row["macs"] for row in said.json["exits"]]
    assert macs == [row["macs"] for row in report["exits"]]


def test_networks_from_random_weights_follow_from_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def artifact_of(folder: str, seed: str) -> bytes:
        words = ["retrofit", FRESH, "--method", "boostnet", "--seed", seed, "-o", folder, *QUICK]
        assert main([*words, "--data", "fake:80", "train.batch_size=16"]) == 0
        return (tmp_path / folder / "model.safetensors").read_bytes()

    first = artifact_of("first", "3")
    assert artifact_of("again", "3") == first
    assert artifact_of("other", "4") != first
    assert adaptify.load("first").plan.source.checkpoint == f"{FRESH} (random weights, seed 3)"


def test_a_trained_network_with_exits_is_calibrated_without_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    network = resolve(FRESH).build()
    torch.save(network.state_dict(), "msdnet.pt")
    words = ["--method", "boostnet", "--arch", FRESH, "gates.ensemble=none", "gates.score=entropy"]
    said = cli("retrofit", "msdnet.pt", "--data", "digits", "-o", "out", "--json", *words, "train.epochs=0")
    assert said.code == 0, said.err
    assert said.json["before"]["accuracy"] == said.json["exits"][-1]["accuracy_all"]
    model = adaptify.load("out")
    assert isinstance(model, AdaptiveModel)
    assert model.policy.score == "entropy"
    ours, theirs = model.state_dict(), network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


USER_CODE = """
import torch
from torch import nn

class Cascade(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.heads = nn.ModuleList([nn.Linear(8, classes), nn.Linear(8, classes)])

    def forward(self, x):
        first = torch.relu(self.stem(x))
        second = torch.relu(self.body(first))
        return [head(x.mean((2, 3))) for head, x in zip(self.heads, (first, second))]
"""


def test_a_network_of_the_user_that_returns_a_list_has_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cascade", raising=False)
    Path("cascade.py").write_text(USER_CODE)
    sys.path.insert(0, str(tmp_path))
    from cascade import Cascade  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(Cascade().state_dict(), "cascade.pt")
    shape = ["--input-size", "8", "--mean", "0.3", "--std", "0.4", "--arch", "cascade:Cascade"]
    words = ["retrofit", "cascade.pt", "--method", "boostnet", "--trust-code", "-o", "out", *QUICK]
    said = cli(*words, *shape, "--arch-kwargs", '{"classes": 10}')
    assert said.code == 0, said.err
    assert [row["name"] for row in read_report(Path("out"))["exits"]] == ["heads.0", "output"]
    said = cli("evaluate", "out", "--json")
    assert said.code == 4  # it runs the user's code, which has to be allowed
    assert "--trust-code" in said.err
    assert cli("evaluate", "out", "--trust-code", "--json").code == 0
    sys.modules.pop("cascade", None)


def test_learned_exits_of_a_checkpoint(home: Path, cli: Cli) -> None:
    words = ["retrofit", "digits.pt", "--method", "gumbel_exits", "gates.width=4", "train.target=0.7", *QUICK]
    said = cli(*words, "--max-drop", "5", "-o", "out", "--json")
    assert said.code == 0, said.err
    assert [row["name"] for row in said.json["exits"]] == ["layer1", "layer2", "output"]
    model = adaptify.load("out")
    assert isinstance(model, AdaptiveModel)
    assert model.policy.score == GATE
    assert said.json["exits"][0]["macs"] == model.exit_macs(model.policy)[0]
    said = cli("evaluate", "out", "--json")
    assert said.code == 0
    assert said.json["accuracy"] == pytest.approx(read_report(Path("out"))["after"]["accuracy"])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--method", "dgate"], 2, ["MSDNet has 3 exits of its own", "--method boostnet", "train.epochs=0"]),
        (["--method", "gumbel_exits"], 2, ["MSDNet has 3 exits of its own", "--method boostnet"]),
        (["--method", "gumbel"], 4, ["beside which nothing else can be closed", "--method boostnet"]),
        (["--method", "sgad"], 4, ["beside which nothing else can be closed", "--method boostnet"]),
        (["--method", "lcnet"], 4, ["beside which nothing else can be closed", "--method boostnet"]),
        (
            ["--method", "boostnet", "--sites", "blocks.0"],
            2,
            ["no others can be added", "without gates.sites"],
        ),
        (
            ["--method", "boostnet", "--arch", "adaptify:digits_resnet"],
            2,
            [
                "is the architecture adaptify:digits_msdnet, and --arch is adaptify:digits_resnet",
                "--arch out",
            ],
        ),
        (
            ["--method", "boostnet", "gates.temperature=[0.5,1]"],
            2,
            ["has 2 numbers for 3 exits", "or 3: one"],
        ),
        (["--method", "boostnet", "gates.temperature=-1"], 3, ["gates.temperature", "0 or more"]),
        (["--method", "boostnet", "train.weights=[1,2]"], 2, ["has 2 numbers for 3 exits", "Give 4"]),
        (["--method", "boostnet", "train.weights=[1,2,3,-1]"], 3, ["train.weights.3"]),
        (["--method", "boostnet", "--thresholds", "0.5"], 2, ["1 thresholds for 3 exits", "classifier.0"]),
        (
            ["--method", "boostnet", "--max-macs", "0.1"],
            5,
            ["cannot be reached", "classifier.0, is at 30.4%"],
        ),
    ],
)
def test_what_cannot_be_asked_of_own_exits(
    words: list[str], code: int, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("retrofit", FRESH, "--data", "digits", *words)
    assert said.code == code, said.err
    for text in told:
        assert text in said.err
    assert snapshot(tmp_path) == {}


def test_networks_with_exits_are_not_pruned(own: Path, cli: Cli) -> None:
    said = cli("prune", BOOSTED, "--target", "0.5")
    assert said.code == 4
    assert "has 3 exits of its own: what they need cannot be pruned yet" in said.err
    assert "--method boostnet" in said.err


def test_what_a_boosted_network_is_without_its_exits_is_told(own: Path, cli: Cli) -> None:
    said = cli("retrofit", BOOSTED, "--method", "boostnet", "--data", "digits", "--dry-run")
    assert said.code == 0
    assert "its last classifier alone, which is what this starts from, is less accurate" in said.err


def test_help_says_where_random_weights_come_from(cli: Cli) -> None:
    said = cli("retrofit", "--help")
    assert said.code == 0
    assert "starts from random weights" in " ".join(said.out.replace("│", " ").split())
