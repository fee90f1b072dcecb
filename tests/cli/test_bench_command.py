from __future__ import annotations

from pathlib import Path

import pytest
from command_line import RUN, Cli, read_report, snapshot

from adaptify.bench import backends
from adaptify.bench.backends import DEFAULT
from adaptify.errors import UsageError
from adaptify.exports import onnx_file

QUICK = ("--rounds", "2", "--batch-sizes")


def test_a_run_beside_what_it_started_from(home: Path, cli: Cli) -> None:
    (home / "digits.pt").unlink()  # the original is made of the plan
    before = snapshot(home)
    said = cli("bench", *QUICK, "16,1", "--threads", "1", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert (found["format"], found["version"]) == ("adaptify.bench", 1)
    assert (found["target"], found["original"]) == (str(RUN), "adaptify:digits_resnet")
    assert (found["data"], found["device"], found["threads"]) == ("digits", "cpu", 1)
    assert found["environment"]["allocator"]
    measured = found["measured"]
    assert measured["missing"] == []
    wanted = [(backend, size) for size in (1, 16) for backend in DEFAULT]
    assert [(row["backend"], row["batch"]) for row in measured["rows"]] == wanted
    for row in measured["rows"]:
        for side in ("original", "result"):
            assert row[side]["ms"]["count"] == 2
            assert 0 < row[side]["ms"]["low"] <= row[side]["ms"]["median"] <= row[side]["ms"]["high"]
            rate = 1000 * row["batch"] / row[side]["ms"]["median"]
            assert row[side]["images_per_second"] == pytest.approx(rate)
            assert row[side]["memory"] is None or row[side]["memory"] >= 0
        assert row["time"]["count"] == 2
    base = read_report(RUN)["before"]["macs"]
    one, many = measured["batches"]
    assert (one["batch"], one["images"], many["batch"], many["images"]) == (1, 64, 16, 64)
    assert one["macs"] == many["macs"], "the same images"
    assert one["kept"] == pytest.approx(one["macs"] / base)
    assert 0.35 < one["kept"] < 0.75, "real images leave early"
    for batch in measured["batches"]:
        split = batch["split"]
        parts = ("kept", "layers", "batches", "gates", "rows", "other")
        assert sum(split[part] for part in parts) == pytest.approx(split["time"])
        assert split["kept"] == batch["kept"]
        assert split["rows"] >= 0
    assert "random weights" in said.err
    assert snapshot(home) == before


@pytest.mark.slow
def test_the_tables_fit_a_terminal(home: Path, cli: Cli) -> None:
    said = cli("bench", RUN, *QUICK, "8")
    assert said.code == 0, said.err
    assert "against adaptify:digits_resnet" in said.out
    rows = {line.split()[0] for line in said.out.splitlines() if line}
    assert set(DEFAULT) <= rows
    assert "Where the saving went" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_a_checkpoint_alone_has_nothing_to_be_compared_with(home: Path, cli: Cli) -> None:
    said = cli("bench", "digits.pt", *QUICK, "2", "--backends", "fast,eager,fast", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert (found["original"], found["data"]) == (None, None)
    assert "means nothing" not in said.err, "nothing is decided"
    rows = found["measured"]["rows"]
    assert [row["backend"] for row in rows] == ["fast", "eager"]
    assert all(row["original"] is None and row["time"] is None for row in rows)
    (batch,) = found["measured"]["batches"]
    assert (batch["kept"], batch["split"]) == (None, None)
    assert batch["macs"] == read_report(RUN)["before"]["macs"]
    text = cli("bench", "digits.pt", *QUICK, "2", "--data", "random").out
    assert "against" not in text
    assert "random images" in text
    assert max(map(len, text.splitlines())) <= 80


def test_two_networks_of_choice(home: Path, cli: Cli) -> None:
    words = ("bench", "digits.pt", "--against", RUN, *QUICK, "4", "--backends", "fast", "--data", "digits")
    found = cli(*words, "--json").json
    assert (found["target"], found["original"]) == ("digits.pt", str(RUN))
    (batch,) = found["measured"]["batches"]
    assert batch["kept"] > 1, "the run saves, the checkpoint does not"
    assert batch["split"] is None


def test_random_images_are_told(home: Path, cli: Cli) -> None:
    said = cli("bench", *QUICK, "2", "--backends", "fast", "--data", "random", "--json")
    assert said.json["data"] is None
    assert "random images means nothing" in said.err
    recipe = RUN / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("source: digits", "source: gone-away"))
    said = cli("bench", *QUICK, "2", "--backends", "fast", "--json")
    assert said.code == 0, said.err
    assert said.json["data"] is None
    assert "random images: 'gone-away' is neither a folder" in said.err
    assert "random images means nothing" in said.err


def test_gates_that_look_at_nothing_are_frozen(home: Path, cli: Cli) -> None:
    made = ["prune", "digits.pt", "--target", "0.5", "--importance", "l2", "-o", "pruned", "-q"]
    assert cli(*made).code == 0
    found = cli("bench", "pruned", *QUICK, "2", "--backends", "fast", "--json").json
    (batch,) = found["measured"]["batches"]
    assert batch["kept"] == pytest.approx(0.5, abs=0.05)
    assert batch["split"] is None, "nothing is decided"


def test_a_backend_that_fails_is_told_and_left_out(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: object, device: object) -> object:
        return lambda images: backends.BACKENDS["eager"](model, device)(images) + 1  # type: ignore[arg-type]

    def broken(model: object, device: object) -> object:
        raise RuntimeError("no such kernel\nand more")

    ways = dict(backends.BACKENDS)
    monkeypatch.setattr(backends, "BACKENDS", {**ways, "folded": wrong, "channels_last": broken})
    said = cli("bench", *QUICK, "2", "--json")
    assert said.code == 0, said.err
    measured = said.json["measured"]
    assert [row["backend"] for row in measured["rows"]] == ["eager", "fast"]
    reasons = {(item["backend"], item["network"]): item["reason"] for item in measured["missing"]}
    assert len(reasons) == 4
    assert reasons["channels_last", "result"] == "RuntimeError: no such kernel"
    assert "it computes something else" in reasons["folded", "original"]
    assert "folded: not for the original: it computes something else" in said.err


def test_onnxruntime_runs_both(home: Path, cli: Cli) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = cli("bench", *QUICK, "1,3", "--backends", "onnxruntime", "--json").json
    assert found["measured"]["missing"] == []
    assert [(row["batch"], row["time"] is None) for row in found["measured"]["rows"]] == [
        (1, False),
        (3, False),
    ]


def test_a_missing_package_is_told_before_the_work(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UsageError("onnxruntime is not installed", "Install it.")

    monkeypatch.setattr(onnx_file, "check_installed", missing)
    said = cli("bench", "--backends", "fast,onnxruntime")
    assert said.code == 2
    assert "onnxruntime is not installed" in said.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--backends", "fats"], 2, "unknown backend 'fats'; did you mean 'fast'?"),
        (["--backends", ","], 2, "--backends names nothing"),
        (["--batch-sizes", "1,many"], 2, "--batch-sizes: 'many' is no number of images"),
        (["--batch-sizes", "0"], 2, "--batch-sizes: '0' is no number of images"),
        (["--batch-sizes", ""], 2, "--batch-sizes: '' is no number of images"),
        (["--rounds", "3", "--seconds", "1"], 2, "both say how long to measure"),
        (["--rounds", "0"], 2, "--rounds"),
        (["--seconds", "-1"], 2, "--seconds -1 is no length of time"),
        (["--seconds", "nan"], 2, "--seconds nan is no length of time"),
        (["--data", "nowhere"], 2, "'nowhere' is neither a folder nor a known data set"),
        (["--device", "cuda:99"], 2, "device 'cuda:99' is not here"),
        (["--against", "nothing.pt"], 2, "there is no file or run 'nothing.pt'"),
        (["nothing.pt"], 2, "there is no file or run 'nothing.pt'"),
    ],
)
def test_what_cannot_be_measured_is_told(
    words: list[str], code: int, told: str, home: Path, cli: Cli
) -> None:
    said = cli("bench", *words)
    assert said.code == code, said.err
    assert told in said.err
    assert said.out == ""
