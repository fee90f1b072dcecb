"""The functions on a module and loaders of the user's own."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Lab, retrofitted
from plain_net import SHAPE, PlainNet

import adaptify
from adaptify.errors import ModelError, UsageError
from adaptify.reports.schema import read_report

HERE = Path(__file__).parent


def test_a_retrofitted_module_skips_and_the_module_stays_as_it_was(lab: Lab) -> None:
    lab.net.train()
    before = copy.deepcopy(lab.net.state_dict())
    run = retrofitted(lab)
    assert lab.net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in lab.net.state_dict().items())
    lab.net.eval()
    assert run.report.after.kept < 0.9
    assert run.report.data is not None
    assert (run.report.data.train, run.report.data.holdout) == (1165, 129)
    assert "session:PlainNet" in run.report.model.architecture
    images, _ = next(iter(lab.test))
    assert torch.allclose(run.model.dense(images)[0], lab.net(images), atol=1e-5)


def test_evaluate_finds_what_the_report_says(run: adaptify.Run, lab: Lab) -> None:
    for found in (adaptify.evaluate(run), adaptify.evaluate(run.model, lab.test)):
        assert found.accuracy == pytest.approx(run.report.after.accuracy)
        assert found.macs == pytest.approx(run.report.after.macs)
        assert [row.name for row in found.exits] == ["first", "second", "output"]
    plain = adaptify.evaluate(lab.net, lab.test)
    assert plain.accuracy == pytest.approx(run.report.before.accuracy)
    assert plain.macs == run.report.before.macs


def test_the_name_of_a_module_lasts_as_long_as_what_was_made_of_it(lab: Lab) -> None:
    run = retrofitted(lab)
    model, folder = run.model, run.folder
    del run
    gc.collect()
    assert not folder.exists()
    with pytest.raises(UsageError, match="nothing says how to build this module again") as caught:
        adaptify.save(model, "never.safetensors")
    assert "arch='package.module:callable'" in caught.value.hint


def test_calibrating_a_run_and_a_model(lab: Lab) -> None:
    run = retrofitted(lab)
    assert adaptify.calibrate(run, budget=0.6) is run
    assert run.report.after.kept < 0.65
    assert adaptify.evaluate(run).macs == pytest.approx(run.report.after.macs)
    model = run.model
    assert isinstance(model, adaptify.AdaptiveModel)
    assert adaptify.calibrate(model, lab.test, thresholds=[None, None]) is model
    assert adaptify.evaluate(model, lab.test).macs == model.cost.total
    chosen = adaptify.calibrate(model, lab.test, budget=0.5)
    # Chosen on the images that it runs on: the budget is met to the letter.
    assert adaptify.evaluate(chosen, lab.test).macs <= 0.5 * model.cost.total
    with pytest.raises(UsageError, match="a run chooses on the images that were held out"):
        adaptify.calibrate(run, lab.test, budget=0.6)
    with pytest.raises(UsageError, match="no images to choose on"):
        adaptify.calibrate(model)


def test_pruned_modules_take_exits(lab: Lab) -> None:
    pruned = adaptify.prune(lab.net, target=0.5, train=lab.train, test=lab.test, round_to=2)
    assert pruned.report.after.kept == pytest.approx(0.5, abs=0.02)
    assert not pruned.model.exits  # type: ignore[union-attr]
    both = adaptify.retrofit(
        pruned, train=lab.train, test=lab.test, settings={"gates.sites": ["first"], "train.epochs": 2}
    )
    assert both.report.before.macs == pruned.report.after.macs
    assert both.report.before.accuracy == pytest.approx(pruned.report.after.accuracy)
    assert "importance of PlainNet" in both.report.model.checkpoint


def test_learning_what_to_prune_needs_images_and_meets_the_target(lab: Lab) -> None:
    with pytest.raises(UsageError, match="gumbel needs images: there is no train="):
        adaptify.prune(lab.net, target=0.6, method="gumbel", test=lab.test)
    settings = {"train.epochs": 1, "gates.kind": "independent"}
    pruned = adaptify.prune(
        lab.net, target=0.6, method="gumbel", train=lab.train, test=lab.test, round_to=2, settings=settings
    )
    assert pruned.report.after.kept == pytest.approx(0.6, abs=0.02)
    assert pruned.report.method.options["train"]["target"] == 0.6


def test_a_named_module_is_saved_and_loaded_by_another_process(lab: Lab, tmp_path: Path) -> None:
    run = retrofitted(lab, arch="plain_net:PlainNet", arch_kwargs={"width": 8}, output=tmp_path / "run")
    assert run.folder == tmp_path / "run"
    assert read_report(run.folder / "report.json").to_json() == run.report.to_json()
    file = run.save(tmp_path / "model.safetensors")
    images, _ = next(iter(lab.test))
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import adaptify, json, sys, torch; model = adaptify.load(sys.argv[1], trust_code=True);"
        "print(json.dumps(model(torch.load(sys.argv[2])).tolist()))"
    )
    words = [sys.executable, "-c", script, str(file), str(tmp_path / "images.pt")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=HERE)
    assert torch.equal(torch.tensor(json.loads(done.stdout)), run.model(images))
    copied = run.save(tmp_path / "copy")
    assert {path.name for path in copied.iterdir()} == {path.name for path in run.folder.iterdir()}


def test_an_architecture_that_is_another_one_is_refused(lab: Lab) -> None:
    with pytest.raises(ModelError, match="plain_net:PlainNet is another network"):
        retrofitted(lab, arch="plain_net:PlainNet", arch_kwargs={"width": 4})
    with pytest.raises(UsageError, match="nothing says how to build"):
        retrofitted(lab, output="a-run")


def test_export_holds_the_file_against_the_network(run: adaptify.Run, lab: Lab, tmp_path: Path) -> None:
    written = adaptify.export(run, tmp_path / "net.pt2", images=lab.test)
    assert written.format == "pt2"
    assert (written.data, written.images > 0) == ("TensorDataset", True)
    assert written.relative_error < 1e-4
    images, _ = next(iter(lab.test))
    program = torch.export.load(tmp_path / "net.pt2").module()
    assert torch.allclose(program(images)[0], run.model(images), atol=1e-4)
    with pytest.raises(UsageError, match="does not say which format"):
        adaptify.export(run, tmp_path / "net.bin")


def test_a_notebook_shows_the_page_in_a_frame(run: adaptify.Run) -> None:
    shown = run._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert "&lt;h1&gt;PlainNet" in shown
    assert shown.count('"') == 4  # the page's own quotes are escaped
    assert "Exits (test samples" in str(run)
    assert repr(run).startswith("<dgate: ")


def test_reports_side_by_side(run: adaptify.Run, lab: Lab, tmp_path: Path) -> None:
    pruned = adaptify.prune(lab.net, target=0.7, train=lab.train, test=lab.test, round_to=2)
    page = adaptify.report(run, pruned)
    text = str(page)
    assert "[1] dgate" in text
    assert "[2] importance" in text
    saved = page.save(tmp_path / "both.html").read_text(encoding="utf-8")
    assert saved == page.html
    with pytest.raises(UsageError, match="no run to report on"):
        adaptify.report()


def test_images_of_another_network_are_refused(lab: Lab) -> None:
    class Two(PlainNet):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(16, 2)

    with pytest.raises(UsageError, match="train has images of class 9, and the network tells 2 classes"):
        adaptify.retrofit(Two(), train=lab.train, test=lab.test)
    with pytest.raises(UsageError, match="there is no test="):
        adaptify.retrofit(lab.net, train=lab.train)
    with pytest.raises(UsageError, match="the size of the images is not known"):
        adaptify.prune(lab.net, target=0.5)
    assert adaptify.prune(lab.net, target=0.5, input_shape=SHAPE, round_to=2).report.after.accuracy is None
