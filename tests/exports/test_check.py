"""What is refused: files that compute or decide something else, and what is left of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported_nets import DECIDING, STATIC, images
from torch import Tensor

from adaptify.errors import AdaptifyError, ModelError, TargetError, UsageError
from adaptify.exports import onnx_file, pt2_file
from adaptify.exports.check import CLOSE, check
from adaptify.exports.portable import Portable
from adaptify.exports.reference import Reference, observe
from adaptify.exports.write import Options, prepare, write
from adaptify.runtime.gate_policy import GatePolicy


def reference_of(count: int = 6) -> Reference:
    """Three images leave at the first of two exits, the others run to the end."""
    logits = torch.arange(count * 3.0).view(count, 3)
    index = torch.tensor([0, 2] * (count // 2))
    slack = torch.full((count, 2), 0.5)
    paths = {"leaves at a": index == 0, "leaves at b": index == 1, "leaves at output": index == 2}
    return Reference(torch.arange(float(count)).view(count, 1), logits, index, slack, paths)


def runner(reference: Reference, logits: Tensor | None = None, index: Tensor | None = None):  # type: ignore[no-untyped-def]
    """A file that yields what is given, row by row; images are their own places."""

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        rows = batch[:, 0].long()
        told = reference.decisions if index is None else index
        assert told is not None
        return (reference.logits if logits is None else logits)[rows], told[rows]

    return run


def test_the_largest_error_and_the_ways_no_image_took_are_told() -> None:
    reference = reference_of()
    close = reference.logits.clone()
    close[3, 1] += 1e-4
    done = check(runner(reference, close), reference)
    assert done.max_error == pytest.approx(1e-4, rel=0.05)
    assert done.relative_error == pytest.approx(1e-4 / 17, rel=0.05)
    assert (done.images, done.turned, done.untaken) == (6, 0, ("leaves at b",))


@pytest.mark.parametrize("wrong", [1.0, float("nan"), float("inf")])
def test_other_logits_are_refused(wrong: float) -> None:
    reference = reference_of()
    logits = reference.logits.clone()
    logits[2, 0] += wrong
    with pytest.raises(TargetError, match="computes something else: logits differ by up to"):
        check(runner(reference, logits), reference)


def test_other_decisions_are_refused_unless_rounding_explains_them() -> None:
    reference = reference_of()
    assert reference.decisions is not None
    assert reference.slack is not None
    index = reference.decisions.clone()
    index[1] = 0
    with pytest.raises(TargetError, match="decides otherwise for 1 images"):
        check(runner(reference, index=index), reference)
    slack = reference.slack.clone()
    slack[1, 0] = CLOSE / 2
    assert check(runner(reference, index=index), replace(reference, slack=slack)).turned == 1
    slack[:, 0] = CLOSE / 2
    everyone = torch.zeros_like(index)
    with pytest.raises(TargetError, match="decides otherwise for 3 of 6 images"):
        check(runner(reference, index=everyone), replace(reference, slack=slack))


def test_shapes_and_failures_are_refused() -> None:
    reference = reference_of()
    with pytest.raises(TargetError, match="instead of"):
        check(runner(reference, reference.logits[:, :2]), reference)

    def fails(batch: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("no such kernel\nmore")

    with pytest.raises(TargetError, match="the file fails on a batch of 6: no such kernel"):
        check(fails, reference)


def test_a_file_of_one_batch_size_gets_no_other() -> None:
    reference = reference_of()
    sizes = []
    right = runner(reference)

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(batch))
        found: tuple[Tensor, ...] = right(batch)
        return found

    check(run, reference, batch=4)
    assert sizes == [4, 4]
    sizes.clear()
    check(run, reference)
    assert set(sizes) == {6, 1, 2}


class Wrong(torch.nn.Module):
    """Says the same of every image."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Zeros."""
        return (images.new_zeros((images.shape[0], 10)) + images.flatten(1).sum(1, keepdim=True) * 0,)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_wrong_graph_leaves_no_file(format: str, tmp_path: Path) -> None:
    model = STATIC["plain"]()
    reference = observe(model, [images()], static=True)
    prepared = prepare(model, Options(format))  # type: ignore[arg-type]
    wrong = replace(prepared, portable=Portable(Wrong(), ("logits",)))
    with pytest.raises(TargetError, match="computes something else"):
        write(wrong, tmp_path / "new" / "net", reference)
    assert list(tmp_path.iterdir()) == []


def test_wrong_code_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptify.exports import python_file

    model = STATIC["plain"]()
    reference = observe(model, [images()], static=True)
    right = python_file.python_code

    def wrong(*words: object) -> str:
        return right(*words).replace("x = y + x", "x = y", 1)  # type: ignore[arg-type]

    monkeypatch.setattr(python_file, "python_code", wrong)
    (tmp_path / "net.py").write_text("mine")
    with pytest.raises(TargetError, match="computes something else"):
        write(prepare(model, Options("python")), tmp_path / "net.py", reference)
    assert [file.name for file in tmp_path.iterdir()] == ["net.py"]
    assert (tmp_path / "net.py").read_text() == "mine"


def test_gates_that_are_drawn_are_refused() -> None:
    for model in (DECIDING["sgad"](), STATIC["frozen blocks"]()):
        model.policy = GatePolicy("stochastic")
        with pytest.raises(ModelError, match="drawn anew for every batch") as caught:
            prepare(model, Options("pt2"))
        assert "adaptify calibrate" in caught.value.hint


def test_gates_that_are_all_open_are_no_part_of_a_file() -> None:
    model = DECIDING["sgad"]()
    model.policy = GatePolicy("always_on")
    prepared = prepare(model, Options("safetensors"))
    assert prepared.network is not None


def test_what_cannot_be_recorded_is_told(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor]:
            """Depends on a value."""
            return (images.flatten(1) if float(images.sum()) > 0 else images.flatten(1) * 2,)

    with pytest.raises(ModelError, match="PyTorch cannot record this network") as caught:
        pt2_file.write_pt2(tmp_path / "x", Portable(Odd(), ("logits",)), (1, 8, 8), {})
    assert "adaptify prune RUN" in caught.value.hint


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="needs onnxruntime, which is not installed") as caught:
        Options("onnx")
    assert caught.value.hint == "Install it: pip install 'adaptify[onnx]'."
    assert issubclass(UsageError, AdaptifyError)
    assert Options("pt2").format == "pt2"
    with pytest.raises(UsageError):
        onnx_file.check_installed()
