"""Networks of every method as ONNX and .pt2: for any batch they yield what the network yields."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exported_nets import DECIDING, STATIC, images
from isolated import run_isolated
from torch import Tensor

from adaptify.assembly import Adapted
from adaptify.exports.facts import KEY
from adaptify.exports.onnx_file import open_onnx
from adaptify.exports.pt2_file import open_pt2, read_facts
from adaptify.exports.reference import Reference, observe
from adaptify.exports.write import Format, Options, Prepared, Written, prepare, write
from adaptify.runtime.adaptive import AdaptiveModel

OPENERS = {"onnx": open_onnx, "pt2": open_pt2}
QUICK = ("dgate", "gumbel exits", "sgad", "lcnet")
"""What is written as ONNX in every run of the tests: that takes seconds."""


SLOW = ("margin of convolutional heads", "entropy with temperatures", "parallel lcnet")
"""What differs little from another, and is written as .pt2 in slow runs alone."""

PT2_NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in DECIDING]
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DECIDING]


@functools.cache
def made(name: str) -> tuple[Adapted, Reference]:
    model = {**DECIDING, **STATIC}[name]()
    prepared = prepare(model, Options("pt2"))
    batch = images(24, model.traced.input_shape)
    return model, observe(model, [batch], static=prepared.network is not None)


def written(name: str, format: Format, folder: Path) -> tuple[Path, Prepared, Written]:
    model, reference = made(name)
    prepared = prepare(model, Options(format))
    path = folder / f"net.{format}"
    return path, prepared, write(prepared, path, reference, [f"class {n}" for n in range(10)])


def decisions(model: Adapted, batch: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        run = model.run(batch)
    return run.logits, run.exit_index if isinstance(model, AdaptiveModel) else run.gates


def assert_same(model: Adapted, run: Callable[[Tensor], tuple[Tensor, ...]], reference: Reference) -> None:
    """The file yields what the network yields, for batches of any size, and where no row goes on."""
    batches = [reference.images[:size] for size in (1, 2, 7, 24)]
    batches += [reference.images[taken][:3] for taken in reference.paths.values() if taken.any()]
    for batch in batches:
        logits, decided = decisions(model, batch)
        found, told = run(batch)
        assert found.shape == logits.shape
        assert torch.allclose(found, logits, rtol=0, atol=2e-5 * float(logits.abs().max()))
        assert told.dtype == decided.dtype
        assert torch.allclose(told, decided, atol=1e-5)


@pytest.mark.parametrize("name", PT2_NAMES)
def test_pt2_decides_and_computes_as_the_network_does(name: str, tmp_path: Path) -> None:
    model, reference = made(name)
    path, prepared, done = written(name, "pt2", tmp_path)
    assert prepared.network is None
    assert done.checked.untaken == ()
    assert done.checked.relative_error < 1e-5
    assert_same(model, open_pt2(path), reference)


@pytest.mark.parametrize("name", NAMES)
def test_onnx_decides_and_computes_as_the_network_does(name: str, tmp_path: Path) -> None:
    model, reference = made(name)
    path, _, done = written(name, "onnx", tmp_path)
    assert done.checked.relative_error < 1e-5
    assert_same(model, open_onnx(path), reference)


@pytest.mark.parametrize(
    ("name", "format"), [*((name, "pt2") for name in STATIC), ("frozen channels", "onnx")]
)
def test_what_is_the_same_for_all_images_is_a_plain_graph(name: str, format: Format, tmp_path: Path) -> None:
    model, reference = made(name)
    path, prepared, done = written(name, format, tmp_path)
    assert prepared.network is not None
    assert done.checked.relative_error < 1e-5
    with torch.no_grad():
        for size in (1, 2, 7):
            (found,) = OPENERS[format](path)(reference.images[:size])
            assert torch.allclose(found, model(reference.images[:size]), atol=1e-4)


def test_what_frozen_gates_close_is_not_in_the_file(tmp_path: Path) -> None:
    sizes = {name: written(name, "pt2", tmp_path)[0].stat().st_size for name in ("plain", "frozen channels")}
    assert sizes["frozen channels"] < 0.9 * sizes["plain"]


def test_onnx_says_what_it_takes_yields_and_is(tmp_path: Path) -> None:
    import onnx

    path, _, _ = written("dgate", "onnx", tmp_path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 20
    (given,) = model.graph.input
    shape = given.type.tensor_type.shape.dim
    assert (given.name, shape[0].dim_param) == ("images", "batch")
    assert [axis.dim_value for axis in shape[1:]] == [1, 8, 8]
    assert [item.name for item in model.graph.output] == ["logits", "exit_index"]
    facts = json.loads(next(entry.value for entry in model.metadata_props if entry.key == KEY))
    assert (facts["format"], facts["version"], facts["batch"]) == (KEY, 1, None)
    assert facts["policy"] == made("dgate")[0].policy_json()
    assert facts["exits"] == ["layer1", "layer2", "output"]
    assert facts["classes"][3] == "class 3"


def test_one_batch_size_and_another_opset(tmp_path: Path) -> None:
    import onnx

    model, reference = made("dgate")
    path = tmp_path / "net.onnx"
    write(prepare(model, Options("onnx", batch=2, opset=18)), path, reference)
    loaded = onnx.load(path)
    assert loaded.opset_import[0].version == 18
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    logits, index = decisions(model, reference.images[4:6])
    found, told = open_onnx(path)(reference.images[4:6])
    assert torch.allclose(found, logits, atol=1e-4)
    assert told.tolist() == index.tolist()


def test_pt2_runs_where_there_is_no_adaptify(tmp_path: Path) -> None:
    torch.save(images(), tmp_path / "images.pt")
    for name in ("dgate", "sgad"):
        (tmp_path / name).mkdir()
        path, _, _ = written(name, "pt2", tmp_path / name)
        assert json.loads(read_facts(path))["outputs"][0] == "logits"
    script = (
        "for name in ('dgate', 'sgad'):\n"
        "    net = torch.export.load(name + '/net.pt2').module()\n"
        "    torch.save(net(torch.load('images.pt')), name + '/found.pt')\n"
    )
    run_isolated(script, tmp_path)
    for name in ("dgate", "sgad"):
        found, told = torch.load(tmp_path / name / "found.pt")
        logits, decided = decisions(made(name)[0], images())
        assert torch.allclose(found, logits, atol=1e-4)
        assert torch.equal(told, decided)
