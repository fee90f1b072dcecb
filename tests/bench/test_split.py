"""What was promised, and what networks say they do while they run."""

from __future__ import annotations

import pytest
import torch

from adaptify.bench.memory import PeakMemory
from adaptify.bench.parts import Stopwatch
from adaptify.bench.split import Spent, split_time
from adaptify.gates.exit_head import ExitHead
from adaptify.graph.cost import CostModel
from adaptify.graph.placement import default_exits
from adaptify.graph.sites import find_exits
from adaptify.graph.trace import trace
from adaptify.models.registry import resolve
from adaptify.runtime.adaptive import AdaptiveModel, Exit
from adaptify.runtime.policy import ThresholdPolicy

CPU = torch.device("cpu")


@pytest.fixture
def exiting() -> AdaptiveModel:
    """Two exits; images leave by the mean of their score."""
    torch.manual_seed(0)
    architecture = resolve("adaptify:digits_resnet")
    traced = trace(architecture.build().eval(), architecture.input.shape)
    cost = CostModel(traced)
    sites = default_exits(traced, cost, find_exits(traced, cost))[:2]
    model = AdaptiveModel(traced, [Exit(site, ExitHead(site.channels, 10)) for site in sites]).eval()
    with torch.inference_mode():
        scores = [logits.amax(1).mean().item() for logits in model.dense(images())[1].values()]
    model.policy = ThresholdPolicy(tuple(scores))
    return model


def images() -> torch.Tensor:
    return torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_what_images_cost_is_what_the_exits_say(exiting: AdaptiveModel) -> None:
    spent = Spent.on(exiting, images().split(7))
    left = exiting.run(images()).exit_index
    assert set(left.tolist()) == {0, 1, 2}
    macs = torch.tensor(exiting.exit_macs(exiting.policy)).double()[left].mean()
    assert spent.macs == pytest.approx(float(macs))
    assert spent.reached == tuple(float((left >= index).double().mean()) for index in range(3))
    before = [*(item.site.macs_before for item in exiting.exits), exiting.cost.total]
    assert spent.network == pytest.approx(sum(before[index] for index in left.tolist()) / 24)
    assert spent.network < spent.macs
    static = AdaptiveModel(exiting.backbone()).eval()
    assert Spent.on(static, images().split(24)) == Spent(static.cost.total, static.cost.total, (1.0,))


@torch.inference_mode()
def test_the_parts_add_up_and_the_policy_is_put_back(exiting: AdaptiveModel) -> None:
    static = AdaptiveModel(exiting.backbone()).eval()
    parts, policy = images().split(8), exiting.policy
    spent = Spent.on(exiting, parts)
    split = split_time(exiting, static, parts, spent, static.cost.total, CPU)
    assert split.batches is not None
    beyond = split.layers + split.batches + split.gates + split.rows + split.other
    assert split.kept + beyond == pytest.approx(split.time)
    assert split.kept == pytest.approx(spent.macs / static.cost.total)
    assert exiting.policy is policy


@torch.inference_mode()
def test_a_network_names_what_it_runs(exiting: AdaptiveModel) -> None:
    watch = Stopwatch(CPU)
    with watch.running():
        exiting.run(images())
    found = watch.seconds()
    assert {key for key in found if key[0] == "network"} == {("network", index) for index in range(3)}
    assert {key for key in found if key[0] == "gates"} == {("gates", 0), ("gates", 1)}
    assert ("rows", 0) in found
    assert all(seconds >= 0 for seconds in found.values())


def test_the_peak_is_of_what_runs() -> None:
    memory = PeakMemory(CPU)
    small = memory.of(lambda: torch.zeros(10))
    if small is None:
        pytest.skip("this system does not tell")
    large = memory.of(lambda: torch.ones(64 << 18))
    assert large is not None
    assert large >= 60 << 20
    assert small < 32 << 20
