from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from command_line import RUN, Cli, read_report, snapshot, target

import adaptify
from adaptify.data import open_data
from adaptify.models.registry import resolve

QUICK = "train.epochs=2"


def test_a_run_folder_holds_everything_and_nothing_else(home: Path) -> None:
    names = {path.name for path in (home / RUN).iterdir()}
    assert names == {
        "model.safetensors",
        "recipe.yaml",
        "records.safetensors",
        "report.json",
        "report.html",
        "env.json",
    }
    assert [path.name for path in (home / "runs").iterdir()] == [RUN.name]


def test_the_figures_of_the_report_fit_together(home: Path) -> None:
    report = read_report(home / RUN)
    exits = report["exits"]
    assert [row["name"] for row in exits] == ["layer1", "layer2", "output"]
    assert report["after"]["macs"] == pytest.approx(sum(row["share"] * row["macs"] for row in exits))
    assert report["after"]["kept"] == pytest.approx(report["after"]["macs"] / report["before"]["macs"])
    assert report["macs_per_sample"]["mean"] == pytest.approx(report["after"]["macs"])
    assert sum(row["samples"] for row in exits) == report["data"]["test"] == 359
    assert [sum(row) for row in report["classes_per_exit"]] == [row["samples"] for row in exits]
    right = sum(row["samples"] * (row["accuracy_left"] or 0) for row in exits)
    assert report["after"]["accuracy"] == pytest.approx(right / 359)
    assert exits[-1]["accuracy_all"] == report["before"]["accuracy"]
    assert sum(layer["macs"] for layer in report["layers"]) == report["before"]["macs"]
    run_macs = sum(layer["macs"] * layer["executed"] for layer in report["layers"])
    assert 2_560 <= report["after"]["macs"] - run_macs <= 2_560 + 5_120  # what the two gates add
    assert report["calibration"]["request"] == {"max_drop": 1.0}
    drop = report["calibration"]["base_accuracy"] - report["calibration"]["accuracy"]
    assert 100 * drop <= 1.0 + 1e-9
    assert report["after"]["kept"] < 0.9


def test_the_artifact_gives_the_network_of_the_report(home: Path) -> None:
    report = read_report(home / RUN)
    model = adaptify.load(home / RUN)
    checkpoint = torch.load("digits.pt", weights_only=True)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint.items())
    assert {name.split(".")[0] for name in state.keys() - checkpoint.keys()} == {"gates"}
    limits = [row["threshold"] for row in report["exits"][:-1]]
    assert [None if math.isinf(t) else t for t in model.policy.thresholds] == pytest.approx(limits)

    architecture = resolve("adaptify:digits_resnet")
    plain = architecture.build()
    plain.load_state_dict(checkpoint)
    plain.eval()
    images, labels = next(open_data("digits", input=architecture.input).test.batches(400))
    with torch.inference_mode():
        outcome = model.run(images)
        before = (plain(images).argmax(1) == labels).double().mean()
    assert float(before) == report["before"]["accuracy"]
    counts = torch.bincount(outcome.exit_index, minlength=3).tolist()
    assert counts == [row["samples"] for row in report["exits"]]
    assert float((outcome.logits.argmax(1) == labels).double().mean()) == report["after"]["accuracy"]


def test_it_ends_with_the_figures_and_what_to_do_next(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "digits.pt", "--data", "digits", QUICK)
    assert said.code == 0
    assert "Accuracy" in said.out
    assert "layer1" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    run = "runs/digits_resnet-dgate-002"  # the number after the one that is there
    assert f"run: {run}\n" in said.err
    assert f"page: {run}/report.html\n" in said.err
    assert f"adaptify report {run}\n" in said.err
    assert f"adaptify calibrate {run} --max-drop" in said.err
    assert (home / run / "report.html").is_file()


def test_json_is_the_report_and_the_folder(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "digits.pt", "--data", "digits", "-o", "out/mine", "--json", QUICK)
    assert said.code == 0
    value = said.json
    assert value.pop("run") == "out/mine"
    assert value == read_report(home / "out/mine")
    assert "evaluate" in said.err


def test_quiet_says_nothing_on_stderr(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "digits.pt", "--data", "fake:40", "-q", QUICK)
    assert (said.code, said.err) == (0, "")
    assert "Accuracy" in said.out


def test_numbers_of_unfinished_runs_are_not_taken(home: Path, cli: Cli) -> None:
    (home / "runs/.digits_resnet-dgate-006.part").mkdir()
    assert cli("retrofit", "digits.pt", "--data", "fake:40", QUICK).code == 0
    assert (home / "runs/digits_resnet-dgate-007/report.json").is_file()


def test_an_output_that_is_there_is_kept(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("retrofit", "digits.pt", "--data", "digits", "-o", RUN)
    assert said.code == 2
    assert f"{RUN} is there already" in said.err
    assert "--force" in said.err
    assert snapshot(home) == before


def test_force_replaces_a_run(home: Path, cli: Cli) -> None:
    (home / RUN / "mine.txt").write_text("from before")
    said = cli("retrofit", "digits.pt", "--data", "fake:40", "-o", RUN, "--force", QUICK)
    assert said.code == 0
    assert read_report(home / RUN)["data"]["name"] == "fake:40"
    assert not (home / RUN / "mine.txt").exists()
    assert [path.name for path in (home / "runs").iterdir()] == [RUN.name]


def test_force_replaces_nothing_but_a_run(home: Path, cli: Cli) -> None:
    (home / "precious").mkdir()
    (home / "precious/thesis.tex").write_text("work of years")
    before = snapshot(home)
    said = cli("retrofit", "digits.pt", "--data", "digits", "-o", "precious", "--force")
    assert said.code == 2
    assert "precious is no run folder" in said.err
    assert snapshot(home) == before


def test_a_dry_run_shows_the_plan_and_writes_nothing(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("retrofit", "digits.pt", "--data", "digits", "--max-macs", "0.6", "--dry-run")
    assert said.code == 0
    assert snapshot(home) == before
    recipe = yaml.safe_load(said.out.split("\n\n")[0])
    assert recipe["calibrate"] == target(max_macs=0.6)
    assert "747.1 k MACs" in said.out
    assert "359 images for testing" in said.out
    # layer1: conv1 9,216 + two convolutions of 147,456; its gate 2,560.
    assert any(
        line.split() == ["layer1", "16", "2.56", "k", "306.7", "k", "41.0%"] for line in said.out.splitlines()
    )
    assert "nothing was trained or written" in said.err


def test_a_dry_run_in_json(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "digits.pt", "--data", "digits", "--sites", "layer2,layer1", "--dry-run", "--json")
    value = said.json
    assert value["macs"] == 747_136
    assert value["recipe"]["gates"]["sites"] == ["layer2", "layer1"]
    first, second = value["sites"]  # in the order of the network
    assert first == {
        "name": "layer1",
        "channels": 16,
        "macs_before": 304_128,
        "gate_macs": 2_560,
        "macs": 306_688,
    }
    assert (second["name"], second["macs"]) == ("layer2", 304_128 + 221_184 + 2_560 + 5_120)
    assert value["data"]["train"] + value["data"]["holdout"] + value["data"]["test"] == 1797


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--thresholds", "1.0"], 2, ["1 thresholds for 2 exits", "layer1, layer2"]),
        (["--thresholds", "1.0,x"], 2, ["--thresholds: 'x' is no number", "1.5,never"]),
        (["--thresholds", "1,2", "--max-drop", "1"], 2, ["leaves nothing to choose", "one or the other"]),
        (["--budget", "224K"], 5, ["30.0% of the MACs cannot be reached", "layer1, is at 41.0%"]),
        (["--max-drop", "0.5", "--confidence", "0.95"], 5, ["on half of the held-out images, 72;", "1,312"]),
        (["calibrate.confidence=0.9"], 3, ["confidence is about max_drop"]),
        (["calibrate.max_macs=45"], 3, ["calibrate.max_macs: a budget of 45 is no fraction of MACs"]),
        (["--max-macs", "0.3"], 5, ["30.0% of the MACs cannot be reached", "layer1, is at 41.0%", "--sites"]),
        (["--sites", "layer9"], 2, ["no exit site is called 'layer9'; did you mean 'layer", "layer1"]),
        (["--sites", " , "], 2, ["--sites names nothing"]),
        (
            ["--method", "dgat"],
            2,
            ["unknown method 'dgat'; did you mean 'dgate'?", "Methods: boostnet, dgate"],
        ),
        (["--input-size", "8by8"], 2, ["--input-size '8by8' is no size", "192x256"]),
        (["--mean", "a"], 2, ["--mean: 'a' is no number"]),
        (["--mean", "0.1,0.2"], 2, ["mean has 2 values for images of 1 channels"]),
        (["--arch-kwargs", "{"], 2, ["--arch-kwargs '{' is not JSON"]),
        (["--device", "gpu"], 2, ["unknown device 'gpu'", "cuda:N"]),
        (["--max-drop", "-1"], 2, ["--max-drop", "0"]),
        (["--holdout", "0"], 3, ["data.holdout", "greater than 0"]),
        (["train.lrr=1"], 3, ["train.lrr: unknown key; did you mean 'train.lr'?", "There are: train.epochs"]),
        (["trian.lr=1"], 3, ["trian: unknown key; did you mean 'train'?"]),
        (["lr=1"], 3, ["lr: unknown key; did you mean 'train.lr'?"]),
        (["train.lr=fast"], 3, ["train.lr: input should be a valid number", "got 'fast'"]),
        (["train.lr.x=1"], 3, ["train.lr"]),
        (["other.pth"], 3, ["'other.pth' is no setting", "key=value"]),
    ],
)
def test_what_cannot_be_asked_for_is_told_before_the_work(
    words: list[str], code: int, told: list[str], home: Path, cli: Cli
) -> None:
    before = snapshot(home)
    said = cli("retrofit", "digits.pt", *words, "--data", "digits")
    assert said.code == code, said.err
    assert said.out == ""
    for text in told:
        assert text in said.err
    assert snapshot(home) == before


def test_checkpoint_and_data_must_come_from_somewhere(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "digits.pt")
    assert said.code == 2
    assert "no data" in said.err
    assert "--data FOLDER" in said.err
    said = cli("retrofit", "--data", "digits")
    assert said.code == 2
    assert "no checkpoint" in said.err
    assert cli("retrofit", "data.source=digits", "model.checkpoint=digits.pt", "--dry-run").code == 0
    said = cli("retrofit", "model.checkpoint=./no/such.pt", "data.source=digits")
    assert said.code == 2
    assert "there is no file no/such.pt" in said.err


def test_overrides_beat_options_and_are_kept(home: Path, cli: Cli) -> None:
    words = ["gates.loss=cross_entropy", "train.epochs=1", "run.seed=7"]
    said = cli("retrofit", "digits.pt", *words, "--seed", "3", "--data", "digits", "-o", "out")
    assert said.code == 0
    recipe = yaml.safe_load((home / "out/recipe.yaml").read_text())
    assert recipe["gates"]["loss"] == "cross_entropy"
    assert recipe["train"]["epochs"] == 1
    assert recipe["run"]["seed"] == 7
    limits = [row["threshold"] for row in read_report(home / "out")["exits"][:-1]]
    assert all(limit is None or limit <= 1 for limit in limits)  # confidences, not distances


def test_thresholds_by_hand(home: Path, cli: Cli) -> None:
    said = cli(
        "retrofit",
        "digits.pt",
        "--data",
        "digits",
        "--thresholds",
        "never,-100",
        "-o",
        "out",
        "--json",
        QUICK,
    )
    exits = said.json["exits"]
    assert [row["threshold"] for row in exits] == [None, -100.0, None]
    assert [row["share"] for row in exits] == [0.0, 1.0, 0.0]
    assert exits[1]["macs"] == 304_128 + 221_184 + 5_120  # a closed exit costs nothing
    assert exits[0]["accuracy_left"] is None


def test_the_recipe_of_a_run_makes_the_run_again(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "--recipe", RUN / "recipe.yaml", "-o", "again", "--json")
    assert said.code == 0
    again, first = said.json, read_report(home / RUN)
    for report in (again, first):  # times are measured anew
        assert report["before"].pop("milliseconds") > 0
        assert report["after"].pop("milliseconds") > 0
    for part in ("model", "method", "data", "before", "after", "calibration", "exits", "frontier"):
        assert again[part] == first[part]
    assert (home / "again/recipe.yaml").read_bytes() == (home / RUN / "recipe.yaml").read_bytes()
    tensors = [
        torch.cat([t.flatten() for t in adaptify.load(run).state_dict().values()]) for run in (RUN, "again")
    ]
    assert torch.equal(tensors[0], tensors[1])


def test_what_is_not_said_leaves_the_recipe_alone(home: Path, cli: Cli) -> None:
    recipe = yaml.safe_load((home / RUN / "recipe.yaml").read_text())
    recipe["run"] = {"batch_size": 50, "seed": 3}
    recipe["data"]["holdout"] = 0.25
    Path("mine.yaml").write_text(yaml.safe_dump(recipe))
    value = cli("retrofit", "--recipe", "mine.yaml", "--dry-run", "--json").json["recipe"]
    assert value["run"] == {"device": "auto", "batch_size": 50, "seed": 3}
    assert value["data"]["holdout"] == 0.25
    assert value["calibrate"]["max_drop"] == 1.0
    words = ["--batch-size", "60", "--max-macs", "0.7", "train.lr=2", "--dry-run", "--json"]
    value = cli("retrofit", "--recipe", "mine.yaml", *words).json["recipe"]
    assert value["run"]["batch_size"] == 60
    assert value["run"]["seed"] == 3
    assert value["train"]["lr"] == 2.0
    # A target takes the place of the recipe's target as a whole.
    assert value["calibrate"] == target(max_macs=0.7)


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("train:\n  lrr: 1\n", 3, "mine.yaml:2:3 train.lrr: unknown key; did you mean 'train.lr'?"),
        ("trian:\n  lr: 1\n", 3, "mine.yaml:1:1 trian: unknown key; did you mean 'train'?"),
        ("train:\n  lr: fast\n", 3, "mine.yaml:2:3 train.lr: input should be a valid number"),
        ("train: [\n", 3, "mine.yaml:2:1: "),
        ("- a\n", 3, "mine.yaml is no recipe"),
        ("", 3, "mine.yaml is no recipe"),
        ("version: 2\n", 3, "mine.yaml:1:1 version: input should be 1"),
        ("train:\n", 3, "data.source is missing"),
        ("method: dgaet\n", 3, "mine.yaml:1:1 unknown method 'dgaet'; did you mean 'dgate'?"),
        ("method: 3\n", 3, "mine.yaml:1:1 method is no name"),
    ],
)
def test_a_bad_recipe_is_told_with_its_place(text: str, code: int, told: str, home: Path, cli: Cli) -> None:
    Path("mine.yaml").write_text(text)
    said = cli("retrofit", "digits.pt", "--recipe", "mine.yaml")
    assert said.code == code
    assert f"error: {told}" in said.err


def test_a_recipe_that_is_not_there(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "digits.pt", "--recipe", "none.yaml")
    assert said.code == 3
    assert "there is no recipe 'none.yaml'" in said.err


def test_a_wrong_word_is_not_blamed_on_the_recipe(home: Path, cli: Cli) -> None:
    said = cli("retrofit", "--recipe", RUN / "recipe.yaml", "train.lrr=1")
    assert said.code == 3
    assert said.err.startswith("error: train.lrr: unknown key")


def test_a_run_can_be_retrofitted_again(home: Path, cli: Cli) -> None:
    said = cli("retrofit", RUN, "--data", "digits", "--sites", "layer2", "-o", "out", "--json", QUICK)
    assert said.code == 0
    assert "the exits that the network has are taken out" in said.err
    assert [row["name"] for row in said.json["exits"]] == ["layer2", "output"]
    assert said.json["before"]["accuracy"] == read_report(home / RUN)["before"]["accuracy"]


def test_no_promise_where_the_same_images_choose_the_epoch(home: Path, cli: Cli) -> None:
    words = ["--method", "boostnet", "--data", "digits", "--max-drop", "10", "--confidence", "0.9"]
    said = cli("retrofit", "digits.pt", *words, "train.keep=best", "train.epochs=1")
    assert said.code == 2
    assert "train.keep=best chooses the epoch on the images that the promise would be tested on" in said.err
    assert "train.keep=last" in said.err
