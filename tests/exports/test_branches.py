"""ONNX with branches: one image at a time, and what is behind an exit or in a closed block does not run."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from exported_nets import DECIDING, images

from adaptify.errors import UsageError
from adaptify.exports.onnx_branches import move_into_branches
from adaptify.exports.onnx_file import open_onnx
from adaptify.exports.reference import Reference, observe
from adaptify.exports.write import Options, prepare, write

SLOW = ("margin of convolutional heads", "entropy with temperatures", "boostnet", "gumbel exits", "own exits")
SLOW += ("gumbel layers", "lcnet", "parallel lcnet")
NAMES = ["dgate", "sgad", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def branches(graph: Any) -> list[Any]:
    return [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def used(graph: Any) -> set[str]:
    names = {name for node in graph.node for name in node.input}
    return names.union(*(used(branch) for branch in branches(graph)))


def count(graph: Any, kind: str) -> int:
    own = sum(node.op_type == kind for node in graph.node)
    return own + sum(count(branch, kind) for branch in branches(graph))


def executed(path: Path, image: torch.Tensor, kind: str) -> int:
    """How many nodes of a kind run for an image."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"images": image.numpy()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return sum(
        event.get("args", {}).get("op_name") == kind and event["name"].endswith("kernel_time")
        for event in events
    )


def gate_places(name: str) -> list[tuple[int, str]]:
    """Where the first gate of each site is, and what it closes."""
    found, place = [], 0
    for site in DECIDING[name]().sites:  # type: ignore[union-attr]
        found.append((place, site.position))
        place += site.gates
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("branches")


@functools.cache
def written(name: str, folder: Path) -> tuple[Path, Reference]:
    model = DECIDING[name]()
    reference = observe(model, [images(24, model.traced.input_shape)])
    path = folder / f"{name}.onnx"
    done = write(prepare(model, Options("onnx", "if")), path, reference)
    assert done.checked.relative_error < 1e-5
    assert done.facts["batch"] == 1
    return path, reference


@pytest.mark.parametrize("name", NAMES)
def test_branches_hold_their_weights_and_are_skipped(name: str, folder: Path) -> None:
    path, reference = written(name, folder)
    assert reference.untaken == ()
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        direct = {n for node in graph.node for n in node.input} | {item.name for item in graph.output}
        inner = branches(graph)
        for item in graph.initializer:
            # What only one branch uses is in that branch.
            assert item.name in direct or sum(item.name in used(branch) for branch in inner) > 1
        pending += inner
    assert count(model.graph, "If") >= 2
    assert reference.decisions is not None
    rows = [int(taken.nonzero()[0]) for taken in reference.paths.values()]
    runs = [executed(path, reference.images[row : row + 1], "Conv") for row in rows]
    if reference.decisions.dim() == 1:
        assert runs == sorted(set(runs)), "each exit spares the layers behind it"
        assert name != "dgate" or runs == [3, 5, 7]
    else:
        layers = [place for place, gate in gate_places(name) if gate == "layer"]
        closed = (reference.decisions[rows][:, layers] == 0).sum(1)
        assert int(closed.max()) > 0
        # A block has two convolutions.
        assert runs == (count(model.graph, "Conv") - 2 * closed).tolist()


def test_each_image_decides_for_itself(folder: Path) -> None:
    path, reference = written("dgate", folder)
    run = open_onnx(path)
    assert reference.decisions is not None
    for row in range(len(reference.images)):
        logits, index = run(reference.images[row : row + 1])
        assert index.tolist() == reference.decisions[row : row + 1].tolist()
        assert torch.allclose(logits[0], reference.logits[row], atol=1e-4)


def test_weights_of_two_branches_stay_where_both_see_them() -> None:
    def branch(name: str, weight: str) -> Any:
        out = onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, [1])
        nodes = [
            onnx.helper.make_node("Add", ["x", weight], [f"{name}_sum"]),
            onnx.helper.make_node("Add", [f"{name}_sum", "shared"], [f"{name}_out"]),
        ]
        return onnx.helper.make_graph(nodes, name, [], [out])

    node = onnx.helper.make_node(
        "If", ["yes"], ["y"], then_branch=branch("then", "a"), else_branch=branch("else", "b")
    )
    weights = [
        onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [float(place)])
        for place, name in enumerate(("a", "b", "shared"))
    ]
    graph = onnx.helper.make_graph([node], "main", [], [], weights)
    move_into_branches(graph)
    assert [item.name for item in graph.initializer] == ["shared"]
    held = {inner.name: [item.name for item in inner.initializer] for inner in branches(graph)}
    assert held == {"then": ["a"], "else": ["b"]}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "pt2", "control_flow": "if"}, "branches are written as ONNX only"),
        ({"format": "onnx", "control_flow": "if", "batch": 8}, "for one image at a time, not for 8"),
        ({"format": "pt2", "opset": 20}, "pt2 has no opset"),
        ({"format": "onnx", "opset": 5}, "operations of version 5 cannot be written"),
        ({"format": "python", "batch": 2}, "python takes batches of any size"),
        ({"format": "tflite"}, "unknown format 'tflite'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Options(**options)


@pytest.mark.parametrize("name", ["gumbel channels"])
def test_where_there_is_nothing_to_branch_at_branches_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no block to branch around"):
        prepare(DECIDING[name](), Options("onnx", "if"))
