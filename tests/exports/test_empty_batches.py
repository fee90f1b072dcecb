"""Operations that ask whether a batch is empty: recorded so that they need not, in any network."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from exported_nets import images, leave_by_half, placed
from families import scramble
from torch import Tensor, nn

from adaptify.exports.program import ScaleShift, for_empty_batches
from adaptify.exports.pt2_file import open_pt2
from adaptify.exports.reference import observe
from adaptify.exports.write import Format, Options, prepare, write
from adaptify.gates.exit_head import ExitHead
from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import find_blocks, find_exits, select_sites
from adaptify.graph.trace import Traced, trace
from adaptify.runtime.adaptive import AdaptiveModel, Exit


class Asking(nn.Module):
    """BatchNorm in front of a convolution, rolled rows, a view with -1, and averages of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, padding=1)
        self.linear = nn.Linear(64, 8)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of (N, 1, 8, 8)."""
        x = self.first(x)
        x = F.relu(self.second(F.relu(self.norm(x))))
        x = torch.roll(x, (-3, 2), (2, 3)) + torch.roll(x, 1, 1)
        tokens = self.linear(x.view(x.size(0), x.size(1), -1))
        pooled = F.adaptive_avg_pool2d(tokens.view(x.size(0), 8, 4, 2).permute(0, 3, 1, 2), 1)
        wide = F.adaptive_avg_pool2d(x, (2, 2)).flatten(1)[:, :8]
        scores: Tensor = self.last(pooled.view(x.size(0), -1).repeat(1, 4) + wide)
        return scores


def test_what_asks_is_recorded_otherwise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_exits(trace(scramble(Asking()), (1, 8, 8)), ["first", "second"])
    batch = images(24)
    path = tmp_path / "net.pt2"
    done = write(prepare(model, Options("pt2")), path, observe(model, [batch]))
    assert done.checked.untaken == ()
    run = open_pt2(path)
    with torch.no_grad():
        wanted = model.run(batch)
    for index in range(3):
        rows = wanted.exit_index == index
        logits, told = run(batch[rows])
        assert told.tolist() == [index] * int(rows.sum())
        assert torch.allclose(logits, wanted.logits[rows], atol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
def test_a_factor_and_a_summand_are_batchnorm(affine: bool) -> None:
    torch.manual_seed(0)
    norm = scramble(nn.Sequential(nn.BatchNorm2d(3, affine=affine)))[0]  # type: ignore[index]
    x = torch.randn(4, 3, 5, 5)
    assert torch.allclose(ScaleShift(norm)(x), norm(x), atol=1e-6)
    assert ScaleShift(norm)(x[:0]).shape == (0, 3, 5, 5)


def test_layers_of_a_head_are_folded() -> None:
    torch.manual_seed(0)
    head = scramble(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    )
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        wanted = head(x)
        for_empty_batches(head)
        assert torch.allclose(head(x), wanted, atol=1e-5)
    kinds = [type(layer).__name__ for layer in head]  # type: ignore[union-attr]
    assert kinds == ["Conv2d", "Identity", "ReLU", "ScaleShift"]


def with_exits(traced: Traced, names: list[str] | None = None) -> AdaptiveModel:
    """A network with exits that half of the images that come to them leave at."""
    cost = CostModel(traced)
    sites = find_exits(traced, cost)
    chosen = default_exits(traced, cost, sites) if names is None else select_sites(sites, names)
    classes = AdaptiveModel(traced).num_classes
    torch.manual_seed(0)
    heads = [Exit(site, ExitHead(site.channels, classes, channel_axis=site.channel_axis)) for site in chosen]
    model = AdaptiveModel(traced, heads).eval()
    leave_by_half(model, "distance")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("kind", ["exits", "masks"])
def test_families(family, kind: str, format: Format, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    batch = images(24, family.input_shape)
    if kind == "exits":
        model = with_exits(family.traced)
    else:
        traced = trace(scramble(copy.deepcopy(family.model)), family.input_shape)
        if not find_blocks(traced, CostModel(traced)):
            pytest.skip("no residual blocks")
        model = placed(traced, "sgad")
    done = write(prepare(model, Options(format)), tmp_path / "net", observe(model, [batch]))
    assert done.checked.relative_error < 1e-5
    assert done.checked.turned <= 1
