from __future__ import annotations

from pathlib import Path

import pytest
from command_line import RUN, Cli, read_report, snapshot

from adaptify import artifact


def test_it_measures_what_the_report_says(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("evaluate", "--json")
    assert said.code == 0
    found, report = said.json, read_report(RUN)
    assert found["target"] == str(RUN)
    assert found["accuracy"] == report["after"]["accuracy"]
    assert found["macs"] == report["after"]["macs"]
    assert found["kept"] == report["after"]["kept"]
    assert found["base_macs"] == report["before"]["macs"]
    assert found["samples"] == report["data"]["test"]
    assert found["images_per_second"] > 0
    for row, told in zip(found["exits"], report["exits"], strict=True):
        assert (row["name"], row["samples"], row["macs"]) == (told["name"], told["samples"], told["macs"])
        assert row["accuracy"] == told["accuracy_left"]
    assert f"run: {RUN}" in said.err
    assert snapshot(home) == before


def test_the_batch_size_changes_no_figure(home: Path, cli: Cli) -> None:
    one, many = (cli("evaluate", "--batch-size", size, "--json").json for size in ("7", "359"))
    assert one["accuracy"] == many["accuracy"]
    assert one["exits"] == many["exits"]


def test_the_tables_fit_a_terminal(home: Path, cli: Cli) -> None:
    said = cli("evaluate", RUN)
    assert said.code == 0
    report = read_report(RUN)
    assert f"{RUN} on digits (359 test samples)" in said.out
    assert f"{100 * report['after']['accuracy']:.2f}%" in said.out
    assert "Images per second" in said.out
    rows = [line.split() for line in said.out.splitlines() if line.startswith("layer1")]
    assert rows[0][:3] == [
        "layer1",
        f"{100 * report['exits'][0]['share']:.1f}%",
        str(report["exits"][0]["samples"]),
    ]
    assert max(map(len, said.out.splitlines())) <= 80


def test_an_artifact_alone_needs_data(home: Path, cli: Cli) -> None:
    (home / "alone").mkdir()
    (RUN / "model.safetensors").rename(home / "alone/small.safetensors")
    said = cli("evaluate", "alone/small.safetensors")
    assert said.code == 2
    assert "no data to evaluate alone/small.safetensors on" in said.err
    found = cli("evaluate", "alone/small.safetensors", "--data", "digits", "--json").json
    assert found["accuracy"] == read_report(RUN)["after"]["accuracy"]


def test_a_plain_checkpoint_has_one_row(home: Path, cli: Cli) -> None:
    said = cli("evaluate", "digits.pt", "--data", "digits", "--json")
    found, report = said.json, read_report(RUN)
    assert found["accuracy"] == report["before"]["accuracy"]
    assert found["macs"] == found["base_macs"] == report["before"]["macs"]
    assert [row["name"] for row in found["exits"]] == ["output"]
    text = cli("evaluate", "digits.pt", "--data", "digits", "--arch", "adaptify:digits_resnet").out
    assert "Exits" not in text


def test_other_data_for_a_run(home: Path, cli: Cli) -> None:
    found = cli("evaluate", RUN, "--data", "fake:50", "--json").json
    assert (found["data"], found["samples"]) == ("fake:50", 10)
    found = cli("evaluate", RUN, "--data", "digits", "--val-split", "0.5", "--json").json
    assert 890 <= found["samples"] <= 905


def test_each_budget_has_a_row(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    plain = cli("evaluate", "--json").json
    assert "budgets" not in plain
    half = 0.5 * plain["base_macs"]
    said = cli("evaluate", "--budget", f"0.45,{half / 1000:.3f}K,2", "--json")
    assert said.code == 0, said.err
    cheap, middle, dear = said.json["budgets"]
    assert {key: said.json[key] for key in ("accuracy", "macs", "exits")} == {
        key: plain[key] for key in ("accuracy", "macs", "exits")
    }
    assert (cheap["asked"], cheap["absolute"]) == (0.45, False)
    assert (middle["asked"], middle["absolute"]) == (pytest.approx(half, abs=1), True)
    assert cheap["macs"] == pytest.approx(cheap["kept"] * plain["base_macs"])
    frontier = artifact.read_plan(RUN).frontier
    assert frontier is not None
    for row, limit in ((cheap, 0.45), (middle, 0.5), (dear, 2.0)):
        within = [p for p in frontier["points"] if p["macs"] <= limit * plain["base_macs"]]
        chosen = max(within, key=lambda point: (point["accuracy"], -point["macs"]))
        assert row["policy"]["thresholds"] == chosen["thresholds"]
        # The figures are those of the test images: near what the held-out ones had, and not the same.
        assert row["kept"] == pytest.approx(chosen["macs"] / plain["base_macs"], abs=0.05)
        assert 0.5 < row["accuracy"] <= 1
        assert row["images_per_second"] > 0
    assert snapshot(home) == before


def test_the_table_of_budgets_fits_a_terminal(home: Path, cli: Cli) -> None:
    said = cli("evaluate", RUN, "--budget", "0.45,0.6")
    assert said.code == 0, said.err
    assert "Budgets (policies chosen on held-out samples)" in said.out
    rows = [line.split() for line in said.out.splitlines() if line.startswith(("45.0%", "60.0%"))]
    assert [row[0] for row in rows] == ["45.0%", "60.0%"]
    assert max(map(len, said.out.splitlines())) <= 80


def test_budgets_that_can_be_reached_are_shown_beside_one_that_cannot(home: Path, cli: Cli) -> None:
    said = cli("evaluate", RUN, "--budget", "0.6,0.001,0.5", "--json")
    assert said.code == 5
    assert [row["asked"] for row in said.json["budgets"]] == [0.6, 0.5]
    (missed,) = said.json["missed"]
    assert (missed["asked"], missed["absolute"]) == (0.001, False)
    assert said.err.splitlines()[-2].startswith("error: no thresholds bring the mean MACs down to 0.1%")
    assert said.err.splitlines()[-1].startswith("  The cheapest point keeps ")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([str(RUN), "--budget", "0.5,half"], 2, "--budget 'half' is neither a fraction of the MACs"),
        ([str(RUN), "--budget", "0.002,0.001"], 5, "down to 0.2% of the network's"),
        ([str(RUN), "--budget", "0.5K"], 2, "--budget '0.5K' is neither a fraction of the MACs"),
        ([str(RUN), "--budget", "0.001K"], 2, "--budget '0.001K' is neither a fraction of the MACs"),
        ([str(RUN), "--budget", "1K"], 5, "The cheapest point keeps"),
        (["digits.pt", "--data", "digits", "--budget", "0.5"], 2, "it carries no frontier"),
    ],
)
def test_what_no_budget_can_be_is_told(words: list[str], code: int, told: str, home: Path, cli: Cli) -> None:
    said = cli("evaluate", *words)
    assert said.code == code, said.err
    assert told in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["digits.pt"], 2, "no data to evaluate digits.pt on"),
        (["digits.pth"], 2, "there is no file or run 'digits.pth'; did you mean 'digits.pt'?"),
        (["digits_resnet-dgate-01"], 2, "did you mean 'digits_resnet-dgate-001'?"),
        ([str(RUN), "--data", "fake:50:7"], 2, "has 7 classes, the network has 10 outputs"),
        ([str(RUN), "--data", "nowhere"], 2, "'nowhere' is neither a folder nor a known data set"),
        ([str(RUN), "--input-size", "16"], 2, "is made for images of 8x8, not 16x16"),
        ([str(RUN), "--device", "cuda:99"], 2, "device 'cuda:99' is not here"),
        ([str(RUN), "--val-split", "1"], 3, "data.val_split"),
        (["runs"], 2, "runs has no model.safetensors"),
    ],
)
def test_what_cannot_be_evaluated_is_told(
    words: list[str], code: int, told: str, home: Path, cli: Cli
) -> None:
    said = cli("evaluate", *words)
    assert said.code == code, said.err
    assert told in said.err
    assert said.out == ""


def test_a_damaged_artifact_is_told(home: Path, cli: Cli) -> None:
    model = RUN / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1000])
    said = cli("evaluate")
    assert said.code == 4
    assert "model.safetensors is not a readable safetensors file" in said.err
    model.unlink()
    said = cli("evaluate", RUN)
    assert said.code == 2
    assert "has no model.safetensors" in said.err
