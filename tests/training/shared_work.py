"""Work that several processes share, run by one process or by as many as a launcher started.

`python shared_work.py FILE` does all of it and, in the main process, leaves what came of it in FILE.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from exit_nets import with_exits
from gated_nets import DIGITS, gated, shake
from tiny_data import tiny_data
from torch import Tensor, nn

from adaptify.assembly import assemble
from adaptify.data import MemorySplit, open_data
from adaptify.data.augment import Augmentation
from adaptify.errors import UsageError
from adaptify.gates.estimators import NoisyRounding
from adaptify.gates.guide_net import GuideNet
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.methods import find_method
from adaptify.parallel import group
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.runtime.gate_policy import GatePolicy
from adaptify.runtime.gated import GatedModel
from adaptify.runtime.policy import GATE, ThresholdPolicy
from adaptify.training.evaluate import evaluate, top1
from adaptify.training.exit_loss import ExitsObjective, LearnedExitsObjective
from adaptify.training.features import cache_features
from adaptify.training.gate_frontier import sweep_gates
from adaptify.training.gate_loss import GateObjective, Target, TargetSchedule
from adaptify.training.gate_records import observe_gates
from adaptify.training.guided_loss import GuidedObjective
from adaptify.training.loop import train
from adaptify.training.objective import Classification, Distillation, Moment, Objective
from adaptify.training.observe import observe_exits
from adaptify.training.options import LoopOptions
from adaptify.training.salience_loss import SalienceObjective
from adaptify.training.spread import spread

Found = dict[str, Any]
MOMENT = Moment(epoch=1, step=3, steps=8, epochs=2)


def digits(count: int = 150) -> MemorySplit:
    """A few digits, not sorted by class."""
    test = open_data("digits", input=DIGITS.input).test
    pixels = torch.stack([test.image(i) for i in range(count)])
    return MemorySplit(
        lambda report: pixels, test.labels[:count], torch.arange(count), DIGITS.input, Augmentation(flip=True)
    )


def plain() -> nn.Module:
    """The small network of the digits, with random weights and statistics."""
    torch.manual_seed(0)
    network = DIGITS.build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def with_gates(**options: Any) -> GatedModel:
    """It with gates, some open and some closed."""
    return shake(gated(trace(plain().eval(), DIGITS.input.shape), **options))


def with_saliences() -> GatedModel:
    """It with the saliences of LC-Net."""
    traced = trace(plain().eval(), DIGITS.input.shape)
    method = find_method("lcnet")
    placed = method(method.Gates(), method.Train()).place(traced, CostModel(traced), 10)
    torch.manual_seed(0)
    return assemble(traced, placed)


def one_step(model: nn.Module, objective: Objective, companion: nn.Module | None = None) -> Found:
    """The loss of a batch of 32 images and all gradients, and what BatchNorm has seen."""
    model.train()
    torch.manual_seed(1)
    own = digits().batches(32, take=group.own_rows)
    images, labels = next(own)
    loss = objective(spread(model), images, group.gather_rows(labels), MOMENT)
    loss.total.backward()
    modules = nn.ModuleList([model] if companion is None else [model, companion])
    gradients = {
        name: parameter.grad for name, parameter in modules.named_parameters() if parameter.grad is not None
    }
    group.average(gradients.values())
    assert loss.kept is None or bool(torch.isfinite(loss.kept))
    return {
        "loss": loss.total.detach(),
        **{f"term {name}": value for name, value in (loss.terms | loss.figures).items()},
        "kept": loss.kept,
        **{f"gradient {name}": value for name, value in gradients.items()},
        **{f"buffer {name}": value for name, value in modules.named_buffers()},
        "next random number": torch.rand(()),
    }


def gates_step(measure: str, schedule: str = "constant", **options: Any) -> Found:
    """A step towards a target."""
    model = with_gates(**options)
    target = Target(0.4, TargetSchedule(kind=schedule))
    objective = GateObjective(model.gate_cost, target, measure=measure, weight=10.0)
    return one_step(model, objective) | {"target": target.state()}


def salience_step() -> Found:
    """A step of LC-Net at a target that switches the pressure on or off for the whole batch."""
    model = with_saliences()
    target = Target(0.9, TargetSchedule(kind="constant"))
    layers = torch.tensor([site.position == "layer" for site in model.sites for _ in range(site.gates)])
    return one_step(model, SalienceObjective(model.gate_cost, layers, 10.0, 10.0, target))


def guided_step() -> Found:
    """A step of SGAD: masks under noise, held against a guide with BatchNorm."""
    traced = trace(plain().eval(), DIGITS.input.shape)
    method = find_method("sgad")
    placed = method(method.Gates(), method.Train()).place(traced, CostModel(traced), 10)
    torch.manual_seed(0)
    model = assemble(traced, placed)
    guide = GuideNet(1, 10).train()
    model.sample = sampler = NoisyRounding()
    objective = GuidedObjective(model.gate_cost, guide, sampler, max_drop=0.8, noise=2.0)
    return one_step(model, objective, guide)


def exits_step() -> Found:
    """A step of BoostNet, with the shares of samples left to learn, which are a quantile of the batch."""
    model = with_exits("boostnet", trace(plain().eval(), DIGITS.input.shape))
    model.rescale_gradients = True
    return one_step(model, ExitsObjective([1.0, 0.5, 2.0][-len(model.exits) - 1 :]))


def learned_exits_step() -> Found:
    """A step of exits with gates that are drawn."""
    model = with_exits("gumbel_exits", trace(plain().eval(), DIGITS.input.shape), width=8)
    macs = model.exit_macs(ThresholdPolicy((0.0,) * len(model.exits), GATE))
    return one_step(model, LearnedExitsObjective(macs, model.cost.total, 0.3))


class Dropping(nn.Module):
    """A network that draws in training: dropout, of values and of channels, and stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import StochasticDepth

        self.first = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.last = nn.Linear(8 * 36, 10)
        self.drops = nn.Sequential(nn.Dropout2d(0.5), StochasticDepth(0.5, "row"))
        self.drop = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.drops(self.norm(self.first(images))) + 0.1
        return self.last(self.drop(features.flatten(1)))


def drawing_step() -> Found:
    """A step of a network that draws, towards a teacher."""
    torch.manual_seed(0)
    teacher = plain().eval()
    return one_step(Dropping(), Classification(0.1, Distillation(teacher)))


def training(**options: Any) -> Found:
    """Two epochs of the loop."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(72, 4),
    )  # fmt: skip
    settings = {"epochs": 2, "batch_size": 32, "lr": 0.05, **options}
    with tempfile.TemporaryDirectory() as folder:
        history = train(
            model,
            tiny_data(train=140),
            LoopOptions(**settings),
            objective=Classification(),
            device="cpu",
            seed=3,
            folder=Path(folder),
        )
        written = sorted(path.name for path in Path(folder).rglob("*") if path.is_file())
    rows = [row.figures() for row in history.rows]
    told = [{name: row[name] for name in ("lr", "loss", "train_accuracy", "accuracy")} for row in rows]
    return {**model.state_dict(), "rows": told, "chosen": history.chosen, "written": written}


def refusals() -> Found:
    """What cannot be shared is refused."""
    found = {}
    for name, options in {"batch": {"batch_size": 33}, "compile": {"compile": True}}.items():
        try:
            training(**options, epochs=1)
        except UsageError as error:
            found[name] = str(error)
    return found


def evaluation() -> Found:
    """What networks do on a split that is cut into batches of 32, the last of which is smaller."""
    split = digits()
    exits = with_exits("dgate", trace(plain().eval(), DIGITS.input.shape))
    exits.policy = ThresholdPolicy((0.0,) * len(exits.exits), "margin")
    found = evaluate(exits, split, batch_size=32)
    gates = with_gates(kind="dependent").eval()
    seen = observe_gates(gates, split, batch_size=32, by_class=True)
    static = observe_gates(with_gates(kind="independent").eval(), split, batch_size=32)
    gates.policy = GatePolicy(mode="stochastic")
    torch.manual_seed(5)
    drawn = observe_gates(gates, split, batch_size=32)
    gates.policy = GatePolicy()
    everything = observe_exits(exits, split, batch_size=32)
    base = AdaptiveModel(trace(plain().eval(), DIGITS.input.shape)).eval()
    frontier = sweep_gates(gates, base, split, batch_size=32)
    return {
        "predictions": found.predictions,
        "exit_index": found.exit_index,
        "scores": found.scores,
        "accuracy": found.accuracy,
        "top1": top1(plain(), split, "cpu", batch_size=32),
        "timed": found.seconds is not None and found.seconds > 0,
        **{
            f"{kind} {name}": getattr(records, name)
            for kind, records in {"dependent": seen, "independent": static, "drawn": drawn}.items()
            for name in ("predictions", "macs", "open", "histogram", "kept", "logits", "opened_by_class")
        },
        "exits": everything.exits,
        "output": everything.output,
        "frontier": [(*point.thresholds, point.accuracy, point.macs) for point in frontier.points],
    }


def features() -> Found:
    """Features, cached once plain and once augmented, in memory and on disk."""
    split = digits()

    def forward(images: Tensor) -> Mapping[str, Tensor]:
        return {"mean": images.mean((2, 3)), "flat": images.flatten(1)}

    found = {}
    for name, limit in (("memory", 1 << 20), ("disk", 0)):
        turns = group.Turns()
        batches = [
            batch
            for augment in (False, True)
            for batch in split.batches(32, augment=augment, seed=7, take=turns)
        ]
        with cache_features(forward, batches, ram_limit=limit) as cache:
            found |= {f"{name} {site}": cache.site(site).tensor().clone() for site in ("mean", "flat")}
            found[f"{name} labels"] = cache.labels.clone()
    return found


def in_bfloat16(work: Callable[[], Found]) -> Found:
    """Do it as `train.bf16` would."""
    with torch.autocast("cpu", torch.bfloat16):
        return work()


STEPS: Mapping[str, Callable[[], Found]] = MappingProxyType(
    {
        "macs, gates of samples": lambda: gates_step("macs", kind="dependent"),
        "macs, gates of layers": lambda: gates_step("macs", kind="dependent", granularity="layer"),
        "macs, gates for all": lambda: gates_step("macs", kind="independent"),
        "activation": lambda: gates_step("activation", kind="dependent"),
        "each gate": lambda: gates_step("per_gate", kind="dependent"),
        "a variable target": lambda: gates_step("macs", "variable", kind="dependent"),
        "saliences": salience_step,
        "a guide": guided_step,
        "exits": exits_step,
        "learned exits": learned_exits_step,
        "dropout and a teacher": drawing_step,
    }
)
# A few of these steps in mixed precision.
ROUNDED: Mapping[str, Callable[[], Found]] = MappingProxyType(
    {
        f"{name}, bfloat16": partial(in_bfloat16, STEPS[name])
        for name in ("macs, gates of samples", "a guide", "exits", "dropout and a teacher")
    }
)
TRAININGS: Mapping[str, Callable[[], Found]] = MappingProxyType(
    {
        "sgd": training,
        "adamw, averaged, clipped": lambda: training(optimizer="adamw", ema=0.8, clip=0.5, lr=0.01),
        "two batches a step, the best epoch": lambda: training(accumulate=2, keep="best"),
        "one batch": lambda: training(batch_size=256),
    }
)
EXACT: Mapping[str, Callable[[], Found]] = MappingProxyType({"evaluation": evaluation, "features": features})


def main(file: str) -> None:
    """Do all of it together with the other processes."""
    torch.set_num_threads(1)
    with group.processes():
        found = {name: work() for name, work in {**STEPS, **ROUNDED, **TRAININGS, **EXACT}.items()}
        found["refusals"] = refusals()
        everyone = list(group.in_turns([found["exits"]["loss"]]))
        found["processes"] = {"size": group.size(), "losses": everyone}
        if group.is_main():
            torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
