from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command_line import RUN, Cli, snapshot

import adaptify
from adaptify.exports import pt2_file


@pytest.fixture(scope="session")
def pruned(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `adaptify prune`; only to be copied."""
    from adaptify.cli.main import main

    run = tmp_path_factory.mktemp("pruned") / "run"
    words = ["prune", str(finished / "digits.pt"), "-t", "0.6", "--importance", "l2", "-o", str(run), "-q"]
    assert main(words) == 0
    return run


def test_the_newest_run_becomes_a_graph_that_was_checked_on_its_own_images(home: Path, cli: Cli) -> None:
    said = cli("export", "--json")
    assert said.code == 0, said.err
    assert f"run: {RUN}" in said.err
    found = said.json["exported"]
    assert found["files"] == [str(RUN / "export/model.onnx")]
    assert found["data"] == "digits"
    assert found["images"] >= 32
    assert found["untaken"] == []
    assert found["relative_error"] < 1e-5
    assert found["facts"]["outputs"] == ["logits", "exit_index"]
    assert found["facts"]["classes"] == [str(digit) for digit in range(10)]
    assert found["bytes"] == (RUN / "export/model.onnx").stat().st_size
    # The run is what it was.
    assert cli("evaluate", "--json").code == 0


def test_the_line_that_people_see(home: Path, cli: Cli) -> None:
    said = cli("export", RUN, "--format", "pt2", "-o", "net.pt2")
    assert said.code == 0, said.err
    assert said.out.startswith("net.pt2: ")
    assert "images of digits: logits differ by at most" in said.out
    model = adaptify.load(RUN)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.run(images)
    logits, index = pt2_file.open_pt2(home / "net.pt2")(images)
    assert torch.allclose(logits, wanted.logits, atol=1e-4)
    assert torch.equal(index, wanted.exit_index)


def test_a_pruned_network_becomes_a_python_file(home: Path, pruned: Path, cli: Cli) -> None:
    shutil.copytree(pruned, "small")
    said = cli("export", "small", "--format", "python")
    assert said.code == 0, said.err
    assert "weights: small/export/model.safetensors" in said.out
    assert "compared on random images: no data is known" in said.err
    assert "class Network(Part):" in (home / "small/export/model.py").read_text()
    said = cli(
        "export", "small", "--format", "safetensors", "--data", "digits", "-o", "w.safetensors", "--json"
    )
    assert said.code == 0, said.err
    assert said.json["exported"]["data"] == "digits"
    assert said.json["exported"]["relative_error"] < 1e-5


def test_images_that_are_gone_are_replaced_by_random_ones(home: Path, cli: Cli) -> None:
    recipe = RUN / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("source: digits", "source: /gone"))
    said = cli("export", "--format", "pt2", "--json")
    assert said.code == 0, said.err
    assert said.json["exported"]["data"] is None
    assert "compared on random images: '/gone' is neither a folder" in said.json["exported"]["notes"][0]
    said = cli("export", "--format", "pt2", "--data", "/gone", "--force")
    assert said.code == 2
    assert "'/gone' is neither a folder" in said.err


def test_a_file_that_is_there_stays_unless_forced(home: Path, cli: Cli) -> None:
    Path("net.pt2").write_text("mine")
    before = snapshot(home)
    said = cli("export", "--format", "pt2", "-o", "net.pt2")
    assert said.code == 2
    assert "net.pt2 is there already" in said.err
    assert snapshot(home) == before
    assert cli("export", "--format", "pt2", "-o", "net.pt2", "--force").code == 0
    assert Path("net.pt2").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-f", "pt2", "-o", f"{RUN}/model.safetensors", "--force"], "is what is exported"),
        (["-f", "python", "-o", f"{RUN}/model.py", "--force"], "model.safetensors is what is exported"),
        (["-f", "pt2", "-o", "runs", "--force"], "runs is a folder"),
        (["-f", "python", "-o", "net.safetensors"], "net.safetensors is the name of its weights"),
        (["-f", "python"], "python holds layers, and this network decides for each image what it runs"),
        (["-f", "safetensors"], "safetensors holds layers"),
        (["-f", "pt2", "--control-flow", "if"], "branches are written as ONNX only"),
        (["-f", "pt2", "--opset", "20"], "pt2 has no opset"),
        (["--opset", "3"], "operations of version 3 cannot be written"),
        (["-f", "tflite"], "'tflite'"),
    ],
)
def test_what_cannot_be_exported_is_told_and_leaves_nothing(
    words: list[str], told: str, home: Path, cli: Cli
) -> None:
    before = snapshot(home)
    said = cli("export", RUN, *words)
    assert said.code == 2, said.err
    assert told in said.err
    assert said.out == ""
    assert snapshot(home) == before


def test_a_folder_that_cannot_be_is_told(home: Path, cli: Cli) -> None:
    before = snapshot(home)
    said = cli("export", RUN, "-f", "pt2", "-o", "digits.pt/net.pt2")
    assert said.code == 1
    assert "cannot write digits.pt/net.pt2" in said.err
    assert snapshot(home) == before


def test_a_checkpoint_is_no_run(home: Path, cli: Cli) -> None:
    said = cli("export", "digits.pt")
    assert said.code == 4
    assert "digits.pt" in said.err


def test_a_graph_that_computes_something_else_is_not_kept(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pt2_file.open_pt2

    def wrong(path: Path) -> pt2_file.Runner:
        run = right(path)
        return lambda images: (run(images)[0] * 1.01, run(images)[1])

    monkeypatch.setattr(pt2_file, "open_pt2", wrong)
    before = snapshot(home)
    said = cli("export", "--format", "pt2", "--json")
    assert said.code == 5
    assert "the file computes something else" in said.err
    assert said.out == ""
    assert snapshot(home) == before
    assert not (RUN / "export").exists()


def test_missing_packages_are_told_before_the_work(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = cli("export")
    assert said.code == 2
    assert "needs onnx, which is not installed" in said.err
    assert "pip install 'adaptify[onnx]'" in said.err
    assert "load images" not in said.err


def test_branches_for_one_image_at_a_time(home: Path, cli: Cli) -> None:
    said = cli("export", "--control-flow", "if", "-o", "one.onnx", "--json")
    assert said.code == 0, said.err
    assert said.json["exported"]["facts"]["batch"] == 1
    import onnx

    model = onnx.load("one.onnx")
    assert [node.op_type for node in model.graph.node].count("If") == 1
    facts = json.loads(model.metadata_props[0].value)
    assert facts["input"]["mean"] == [pytest.approx(0.3053)]
