"""Removing blocks that no sample runs: the rest of the network decides and computes as before."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from families import Family, scramble
from gated_nets import DIGITS

from adaptify import artifact
from adaptify.assembly import assemble
from adaptify.data import Data, open_data
from adaptify.errors import ModelError, TargetError
from adaptify.gates.gumbel import DependentGates
from adaptify.gates.mask_net import MaskNet
from adaptify.graph.cost import CostModel
from adaptify.graph.sites import find_blocks
from adaptify.graph.trace import Traced, trace
from adaptify.methods.gumbel import Gates as GumbelGates
from adaptify.methods.gumbel import Gumbel
from adaptify.methods.gumbel import Train as GumbelTrain
from adaptify.methods.sgad import Gates, Sgad, Train
from adaptify.models.cifar_resnet import CifarResNet
from adaptify.pipeline.dead_blocks import (
    can_have_dead_blocks,
    find_dead_blocks,
    verify_on_samples,
    without_blocks,
)
from adaptify.plan import GatesStep, PlaceMaskNet, Plan, RemoveBlocks
from adaptify.runtime.gated import GatedModel

CPU = torch.device("cpu")
# Projections, streams that skip layers without a block, two blocks in a module, maps with channels last.
KINDS = {"resnet18", "mobilenet_v2", "swin_t", "convnext_tiny"}
SAMPLES = {"batch_size": 256, "device": CPU}


def stirred(model: GatedModel, dead: Collection[str]) -> GatedModel:
    """Let gates decide as chance will have it, and never open those of some blocks."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for decider in model.deciders:
            module = decider.module
            rows = [row for row, site in enumerate(decider.sites) if site.name in dead]
            if isinstance(module, MaskNet):
                module.linear.weight.normal_(generator=generator)
                module.linear.bias.normal_(generator=generator)
                module.linear.weight[rows] = 0
                module.linear.bias[rows] = -5
            else:
                assert isinstance(module, DependentGates)
                module.weight.normal_(generator=generator)
                module.bias.normal_(generator=generator)
                module.weight[rows] = 0
                module.bias[rows] = torch.tensor([5.0, 0.0])
    return model.eval()


def masked(traced: Traced, dead: Collection[str]) -> tuple[GatedModel, GatesStep]:
    """The network with a mask net for all blocks but the last, which never opens some of them."""
    (step,) = Sgad(Gates(), Train()).place(traced, CostModel(traced), 10)
    assert isinstance(step, PlaceMaskNet)
    torch.manual_seed(0)
    model = assemble(traced, (step,))
    assert isinstance(model, GatedModel)
    return stirred(model, dead), step


def test_what_is_left_decides_and_computes_as_before(family: Family) -> None:
    """Over the families, with the first block dead: what the mask net sees stays what it was."""
    if family.name not in KINDS:
        pytest.skip("a family of each kind is enough")
    names = [block.name for block in find_blocks(family.traced, family.cost)][:-1]
    traced = trace(scramble(copy.deepcopy(family.model)), family.input_shape)
    dead = (names[0], names[len(names) // 2])
    model, step = masked(traced, dead)
    smaller, steps = without_blocks(model, model.backbone(), step, dead)
    assert isinstance(steps[0], RemoveBlocks)
    ends = [site.block.add for site in model.sites if site.name not in dead]
    assert [site.block.add for site in smaller.sites] == ends
    rows = [row for row, name in enumerate(names) if name not in dead]
    with torch.no_grad():
        before, after = model.run(family.images), smaller.run(family.images)
    torch.testing.assert_close(after.odds, before.odds[:, rows], atol=1e-4, rtol=1e-4)
    scale = float(before.logits.abs().max())
    assert float((after.logits - before.logits).abs().max()) <= 1e-5 * scale
    opened = torch.tensor([name not in dead for name in names]).long()
    assert smaller.cost.total == int(model.gate_cost(opened))


@pytest.fixture(scope="module")
def data() -> Data:
    """The embedded digits."""
    return open_data("digits", input=DIGITS.input)


def digits(blocks: int = 2) -> Traced:
    torch.manual_seed(0)
    model = scramble(CifarResNet(blocks=blocks, in_channels=1))
    return trace(model, DIGITS.input.shape)


DEAD = ("layer1.0", "layer2.1")


def test_blocks_that_no_sample_runs_are_found(data: Data) -> None:
    model, _ = masked(digits(), DEAD)
    assert can_have_dead_blocks(model)
    found = find_dead_blocks(model, data.holdout, **SAMPLES)
    assert set(found) >= set(DEAD)
    images, _ = next(data.holdout.batches(len(data.holdout)))
    with torch.no_grad():
        opened = model.run(images).gates.any(0)
    assert found == tuple(site.name for site, some in zip(model.sites, opened, strict=True) if not some)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "dependent", "granularity": "layer"}, True),
        ({"kind": "independent", "granularity": "layer"}, False),
        ({"kind": "dependent", "granularity": "channel", "positions": ["channels"]}, False),
    ],
    ids=str,
)
def test_only_branches_closed_sample_by_sample_can_be_dead(options: dict[str, Any], expected: bool) -> None:
    traced = digits(1)
    steps = Gumbel(GumbelGates.model_validate(options), GumbelTrain()).place(traced, CostModel(traced), 10)
    model = assemble(traced, steps)
    assert isinstance(model, GatedModel)
    assert can_have_dead_blocks(model) is expected


@pytest.mark.parametrize("per", ["block", "stage"])
def test_gumbel_gates_are_left_out_one_by_one(per: str, data: Data) -> None:
    traced = digits(3)
    options = {"kind": "dependent", "granularity": "layer", "per": per}
    (step,) = Gumbel(GumbelGates.model_validate(options), GumbelTrain()).place(traced, CostModel(traced), 10)
    assert isinstance(step, GatesStep)
    model = assemble(traced, (step,))
    assert isinstance(model, GatedModel)
    dead = ("layer1.1", "layer2.2")
    stirred(model, dead)
    smaller, _ = without_blocks(model, model.backbone(), step, dead)
    assert smaller.gate_cost.gates == 7
    verified = verify_on_samples(model, smaller, dead, data.test, **SAMPLES)
    assert verified.would_run == 0
    assert verified.difference <= 1e-5


def opened_again(model: GatedModel, name: str) -> None:
    """Let chance decide about a block again."""
    (decider,) = model.deciders
    assert isinstance(decider.module, MaskNet)
    row = [site.name for site in decider.sites].index(name)
    with torch.no_grad():
        decider.module.linear.weight[row].normal_(generator=torch.Generator().manual_seed(3))
        decider.module.linear.bias[row] = 0


def test_samples_that_would_run_a_removed_block_are_told_apart(data: Data) -> None:
    model, step = masked(digits(), DEAD)
    opened_again(model, DEAD[1])
    smaller, _ = without_blocks(model, model.backbone(), step, DEAD)
    verified = verify_on_samples(model, smaller, DEAD, data.test, **SAMPLES)
    images, _ = next(data.test.batches(len(data.test)))
    names = [site.name for site in model.sites]
    with torch.no_grad():
        runs = int(model.run(images).gates[:, names.index(DEAD[1])].sum())
    assert 0 < runs < len(data.test)
    assert verified.would_run == runs
    assert verified.difference <= 1e-5


@pytest.mark.parametrize("part", ["gates", "weights"])
def test_a_network_that_decides_or_computes_otherwise_is_refused(part: str, data: Data) -> None:
    model, step = masked(digits(), DEAD)
    smaller, _ = without_blocks(model, model.backbone(), step, DEAD)
    with torch.no_grad():
        if part == "gates":
            smaller.gate_parameters[-2].neg_()
        else:
            dict(smaller.named_parameters())["linear.bias"][0] += 1
    with pytest.raises(TargetError, match="without its dead blocks"):
        verify_on_samples(model, smaller, DEAD, data.test, **SAMPLES)


def test_it_is_written_and_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    traced = trace(scramble(DIGITS.build()), DIGITS.input.shape)
    model, step = masked(traced, ["layer1.0"])
    smaller, steps = without_blocks(model, model.backbone(), step, ["layer1.0"])
    smaller.plan = Plan(architecture=DIGITS.to_json(), steps=steps)
    artifact.save(smaller, tmp_path / "small.safetensors")
    again = artifact.load(tmp_path / "small.safetensors")
    images = torch.randn(5, *DIGITS.input.shape)
    with torch.no_grad():
        assert again(images).equal(smaller(images))


@pytest.mark.parametrize("source", ["no_such_node", "linear"])
def test_a_plan_that_decides_from_elsewhere_is_refused(source: str) -> None:
    traced = digits(1)
    _, step = masked(traced, ())
    with pytest.raises(ModelError, match=f"decides from {source}"):
        assemble(traced, [step.model_copy(update={"source": source})])


def test_a_network_all_of_whose_gates_are_dead_is_refused() -> None:
    model, step = masked(digits(1), ())
    with pytest.raises(ModelError, match="every block that has a gate is dead"):
        without_blocks(model, model.backbone(), step, [site.name for site in model.sites])
