"""Networks without decisions as Python and as tensors: read where there is no adaptify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from exported_nets import DECIDING, SHAPE, STATIC, images, network
from isolated import run_isolated
from safetensors import safe_open
from torch import Tensor, nn

from adaptify.errors import TargetError, UsageError
from adaptify.exports.facts import KEY
from adaptify.exports.python_file import python_code
from adaptify.exports.python_layers import constructor, indices
from adaptify.exports.reference import observe
from adaptify.exports.tensor_file import open_network, write_network
from adaptify.exports.write import Options, prepare, write
from adaptify.freeze import static_network
from adaptify.graph.trace import Traced, trace
from adaptify.runtime.adaptive import AdaptiveModel

FACTS = {"adaptify": "0", "num_classes": 10, "input": {"shape": [1, 8, 8]}, "architecture": "net"}


@pytest.mark.parametrize("name", STATIC)
def test_a_python_file_runs_by_itself(name: str, tmp_path: Path) -> None:
    model = STATIC[name]()
    reference = observe(model, [images()], static=True)
    path = tmp_path / "net.py"
    done = write(prepare(model, Options("python")), path, reference)
    assert [file.name for file in done.files] == ["net.py", "net.safetensors"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.py", "net.safetensors"]
    assert done.checked.relative_error < 1e-5
    torch.save(reference.images, tmp_path / "images.pt")
    script = (
        "import net\nimages = torch.load('images.pt')\n"
        "with torch.no_grad(): torch.save(net.load()(images), 'found.pt')\n"
        "import runpy; runpy.run_path('net.py', run_name='__main__')\n"
    )
    said = run_isolated(script, tmp_path)
    assert torch.allclose(torch.load(tmp_path / "found.pt"), reference.logits, atol=1e-4)
    parameters = sum(item.numel() for item in static_network(model).root.parameters())  # type: ignore[union-attr]
    assert said.strip() == f"{parameters} parameters; scores (2, 10)"


def test_a_python_file_reads_like_one(tmp_path: Path) -> None:
    (code, _) = written_code(STATIC["plain"]())
    assert "self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)" in code
    assert '"conv1": nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),' in code
    assert "        # layer2.0\n        y = self.layer2[0].conv1(x)\n" in code
    assert "        x = F.pad(x, (0, 0, 0, 0, 8, 8))\n" in code
    assert "INPUT_SHAPE = (1, 8, 8)" in code
    assert max(map(len, code.splitlines())) <= 120


def test_adapters_are_written_as_classes_of_the_file() -> None:
    code, traced = written_code(STATIC["frozen channels"]())
    used = {type(module).__name__ for module in traced.root.modules()}
    assert "ChannelGather" in used
    assert "class ChannelGather(nn.Module):" in code
    assert ("class ChannelScatter(nn.Module):" in code) == ("ChannelScatter" in used)


@pytest.mark.parametrize("name", ["plain", "frozen channels"])
def test_tensors_have_the_names_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    model = STATIC[name]()
    reference = observe(model, [images()], static=True)
    path = tmp_path / "net.safetensors"
    write(prepare(model, Options("safetensors")), path, reference)
    with safe_open(path, framework="pt") as opened:
        assert {"conv1.weight", "bn1.running_mean", "linear.bias"} <= set(opened.keys())
        assert opened.get_tensor("conv1.weight").shape[1:] == (1, 3, 3)
        facts = json.loads(opened.metadata()[KEY])
    assert (facts["format"], facts["version"], facts["input"]["shape"]) == (KEY, 1, list(SHAPE))


@pytest.mark.parametrize("format", ["safetensors", "python"])
@pytest.mark.parametrize("name", ["dgate", "sgad"])
def test_networks_that_decide_are_told_where_to_go(name: str, format: str) -> None:
    with pytest.raises(UsageError, match="decides for each image") as caught:
        prepare(DECIDING[name](), Options(format))  # type: ignore[arg-type]
    assert "onnx or pt2" in caught.value.hint


def test_tensors_that_read_back_differently_are_refused(tmp_path: Path) -> None:
    traced = network()
    path = tmp_path / "net.safetensors"
    write_network(path, traced, {})
    open_network(path, traced)
    with torch.no_grad():
        traced.root.get_parameter("linear.bias").add_(1)
    with pytest.raises(TargetError, match="reads back differently"):
        open_network(path, traced)


class Odd(nn.Module):
    """A name with a blank, a table without a name, a tensor that is used twice, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("1", nn.Conv2d(1, 4, 3))
        self.add_module("x y", nn.Conv2d(4, 4, 1))
        self.scale = nn.Parameter(torch.full((4, 1, 1), 2.0))
        self.register_buffer("order", torch.tensor([3, 2, 1, 0]), persistent=False)
        self.order: Tensor
        self.linear = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 3)."""
        x = self.get_submodule("1")(x)
        y = self.get_submodule("x y")(x) * self.scale
        x = (x + y).index_select(1, self.order)
        x = self.drop(torch.nn.functional.dropout(x, training=self.training))
        x = x.view(x.size(0), x.shape[1], -1).mean(-1)
        scores: Tensor = self.linear(x)
        return scores


def test_names_and_tables_of_any_kind_are_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AdaptiveModel(trace(Odd().eval(), SHAPE)).eval()
    reference = observe(model, [images()], static=True)
    write(prepare(model, Options("python")), tmp_path / "odd.py", reference)
    torch.save(reference.images, tmp_path / "images.pt")
    run_isolated("import odd; torch.save(odd.load()(torch.load('images.pt')), 'found.pt')", tmp_path)
    assert torch.allclose(torch.load(tmp_path / "found.pt"), reference.logits, atol=1e-5)


def test_what_a_file_says_of_itself_is_not_obeyed() -> None:
    hostile = {**FACTS, "architecture": 'x"""\nraise SystemExit\n"""', "classes": ['"""', "\n"]}
    code = python_code(network(), hostile, 'a"b.safetensors')
    module: dict[str, object] = {"__file__": "x.py", "__name__": "x"}
    exec(compile(code, "x.py", "exec"), module)
    assert module["CLASSES"] == ['"""', "\n"]
    assert module["WEIGHTS"].name == 'a"b.safetensors'  # type: ignore[attr-defined]


class Whole(nn.Module):
    """A module that cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice, or not."""
        return x * 2 if float(x.sum()) > 0 else x


def test_what_cannot_be_written_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Whole(), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(UsageError, match="Whole cannot be written as Python") as caught:
        python_code(trace(net.eval(), SHAPE), FACTS, "w")
    assert "--format onnx or pt2" in caught.value.hint


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        (nn.Conv2d(4, 8, (3, 1), stride=2, groups=2), "nn.Conv2d(4, 8, (3, 1), stride=2, groups=2)"),
        (nn.Conv2d(4, 8, 3, padding="same"), "nn.Conv2d(4, 8, 3, padding='same')"),
        (nn.BatchNorm2d(4, eps=1e-3, affine=False), "nn.BatchNorm2d(4, eps=0.001, affine=False)"),
        (nn.LayerNorm(4), "nn.LayerNorm((4,))"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "nn.MaxPool2d(3, stride=2, ceil_mode=True)"),
        (nn.AdaptiveAvgPool2d((1, None)), "nn.AdaptiveAvgPool2d((1, None))"),
        (nn.ReLU(inplace=True), "nn.ReLU(inplace=True)"),
        (nn.Linear(3, 2, bias=False), "nn.Linear(3, 2, bias=False)"),
        (nn.MultiheadAttention(8, 2, batch_first=True), "nn.MultiheadAttention(8, 2, batch_first=True)"),
        (nn.Hardtanh(0, 6), "nn.Hardtanh(min_val=0, max_val=6)"),
        (Whole(), None),
    ],
)
def test_layers_are_written_as_they_are_made(layer: nn.Module, code: str | None) -> None:
    assert constructor(layer) == code
    if code is not None:
        again = eval(code, {"nn": nn})
        assert str(again) == str(layer)
        assert {n: t.shape for n, t in again.state_dict().items()} == {
            n: t.shape for n, t in layer.state_dict().items()
        }


def test_runs_of_numbers_are_ranges() -> None:
    assert indices([0, 1, 2, 3, 7, 9, 10]) == "[*range(0, 4), 7, 9, 10]"
    assert indices([]) == "[]"


def written_code(model: object) -> tuple[str, Traced]:
    traced = static_network(model)  # type: ignore[arg-type]
    assert traced is not None
    return python_code(traced, FACTS, "net.safetensors"), traced
