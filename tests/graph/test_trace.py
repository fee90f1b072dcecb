"""A traced network is the network: in evaluation, in training, in its state."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptify.errors import ModelError
from adaptify.graph.trace import trace

WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


def check_same_in_training(model, traced, images, with_own_state, run_graph) -> None:
    """Output and running statistics of both, each from the same seed and state."""
    original = with_own_state(model).train()
    rewritten = copy.copy(traced)
    object.__setattr__(rewritten, "root", with_own_state(traced.root))
    torch.manual_seed(7)
    with torch.no_grad():
        expected = original(images)
    assert torch.equal(run_graph(rewritten, images, training=True, seed=7), expected)
    after = rewritten.root.state_dict()
    for name, value in original.state_dict().items():
        assert torch.equal(after[name], value), name


def test_evaluates_as_the_original(family, run_graph):
    assert torch.equal(run_graph(family.traced, family.images), family.logits)


def test_trains_as_the_original(family, with_own_state, run_graph):
    if family.name in WITH_AUXILIARY_HEADS:
        pytest.skip("traced as in evaluation; see the test without auxiliary heads")
    check_same_in_training(family.model, family.traced, family.images, with_own_state, run_graph)


@pytest.mark.parametrize("name", sorted(WITH_AUXILIARY_HEADS))
def test_trains_as_the_original_without_auxiliary_heads(name, build_family, with_own_state, run_graph):
    family = build_family(name, aux_logits=False)
    assert family.traced.notes == ()
    check_same_in_training(family.model, family.traced, family.images, with_own_state, run_graph)


def test_says_that_auxiliary_heads_are_left_out(family):
    told = any("auxiliary outputs" in note for note in family.traced.notes)
    assert told == (family.name in WITH_AUXILIARY_HEADS)


def test_keeps_the_state_dict_and_shares_its_tensors(family):
    ours, theirs = family.traced.root.state_dict(), family.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in theirs)


def test_leaves_the_original_alone(family):
    model = family.model
    names = [sorted(vars(module)) for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.get_submodule(next(name for name, _ in model.named_children())).eval()
    modes = [module.training for module in model.modules()]
    traced = trace(model, family.input_shape)
    assert [sorted(vars(module)) for module in model.modules()] == names
    assert [module.training for module in model.modules()] == modes
    # The copy has the modes of the original too, module by module.
    assert [module.training for module in traced.root.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()


def test_names_are_unique_and_stable(family):
    names = [node.meta["name"] for node in family.traced.graph.nodes]
    again = trace(family.model, family.input_shape)
    assert len(set(names)) == len(names)
    assert [node.meta["name"] for node in again.graph.nodes] == names
    assert [node.name for node in again.graph.nodes] == [node.name for node in family.traced.graph.nodes]


class Block(nn.Module):
    """A convolution with batch normalisation; the toy networks are made of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    """A stem, a middle given by the test, a classifier."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem = Block(3, 4)
        self.middle = middle
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.stem(x)).mean((2, 3)))


class OnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class NoiseInTraining(nn.Module):
    """In evaluation this does nothing at all: no node of the graph tells of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class SkippedInTraining(nn.Module):
    """Calls its child in one mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else self.child(x)


class ModeAsArgument(nn.Module):
    """Its own operations are the same in both modes; what it tells its child is not."""

    class Child(nn.Module):
        def forward(self, x: Tensor, noisy: bool) -> Tensor:
            return x + torch.randn_like(x) if bool(noisy) else x * float(x.shape[1])

    def __init__(self) -> None:
        super().__init__()
        self.child = self.Child()

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x, self.training)


class UntraceableInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.sum() > 0:
            return x
        return self.child(x)


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, self.training)


class CountsItsCalls(nn.Module):
    """Changes its buffers in its own Python code, as normalisation layers of many projects do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.average.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
        return x - self.average[None, :, None, None]


class CachesTensors(nn.Module):
    """Keeps what it computed, and would keep a proxy of the tracer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = None
        self.history = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = x * 2
        self.history.append(self.last)
        return self.last


class PlainTensors(nn.Module):
    """Tensors that are neither parameters nor buffers, and one made in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.table = {"shift": torch.tensor(0.5)}

    def forward(self, x: Tensor) -> Tensor:
        return (x.movedim(1, -1) * self.scale).movedim(-1, 1) + self.table["shift"] + torch.tensor([0.25])


MIDDLES = [
    OnData,
    NoiseInTraining,
    SkippedInTraining,
    ModeAsArgument,
    UntraceableInTraining,
    FunctionalDropout,
    CountsItsCalls,
    CachesTensors,
    PlainTensors,
]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("middle", MIDDLES)
def test_modules_with_habits_behave_as_the_original(middle, images, with_own_state, run_graph):
    model = Net(middle())
    before = copy.deepcopy(model.state_dict())
    attributes = {name: str(value) for name, value in vars(model.middle).items()}
    traced = trace(model, (3, 8, 8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {name: str(value) for name, value in vars(model.middle).items()} == attributes
    assert list(traced.root.state_dict()) == list(before)
    with torch.no_grad():
        expected = with_own_state(model).eval()(images)
    assert torch.equal(run_graph(traced, images), expected)
    check_same_in_training(model, traced, images, with_own_state, run_graph)


@pytest.mark.parametrize("middle", [OnData, UntraceableInTraining])
def test_untraceable_submodule_is_kept_whole_and_named(middle):
    traced = trace(Net(nn.Sequential(middle())), (3, 8, 8))
    assert any(note.startswith("middle.0 is kept whole: it cannot be traced") for note in traced.notes)
    assert "middle.0" in {node.target for node in traced.graph.nodes if node.op == "call_module"}


def test_modules_that_read_their_mode_are_kept_whole_and_named():
    traced = trace(Net(NoiseInTraining()), (3, 8, 8))
    assert traced.notes == (
        "1 modules are kept whole, as they behave differently in training: NoiseInTraining",
    )


def test_chosen_leaves_are_kept_whole(images, run_graph):
    model = Net(Block(4, 4)).eval()
    traced = trace(model, (3, 8, 8), leaves=["middle"])
    assert "middle" in {node.target for node in traced.graph.nodes}
    assert torch.equal(run_graph(traced, images), model(images))


class RootOnData(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if x.sum() > 0 else -x


def test_untraceable_root_says_what_to_do():
    with pytest.raises(ModelError, match="RootOnData cannot be traced") as caught:
        trace(RootOnData(nn.Identity()), (3, 8, 8))
    assert "into a submodule" in caught.value.hint


class RootDropout(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.stem(x), p=0.5, training=self.training)
        x = functional.dropout2d(self.middle(x), 0.5, self.training)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("middle", [nn.Identity, NoiseInTraining])
def test_flags_in_the_networks_own_code_follow_its_mode(middle, images, with_own_state, run_graph):
    model = RootDropout(middle()).eval()
    traced = trace(model, (3, 8, 8))
    assert torch.equal(run_graph(traced, images), model(images))
    check_same_in_training(model, traced, images, with_own_state, run_graph)


class TwoHeadsInTraining(Net):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return (logits, logits * 2) if self.training else logits


def test_root_that_differs_in_training_is_traced_as_in_evaluation(images, run_graph):
    model = TwoHeadsInTraining(nn.Identity()).eval()
    traced = trace(model, (3, 8, 8))
    assert any("auxiliary outputs" in note for note in traced.notes)
    assert torch.equal(run_graph(traced, images), model(images))


class OptionalArguments(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
        if mask is not None:
            x = x * mask
        return super().forward(x) * scale


def test_optional_arguments_keep_their_defaults(images, run_graph):
    model = OptionalArguments(nn.Identity()).eval()
    traced = trace(model, (3, 8, 8))
    assert [node.op for node in traced.graph.nodes].count("placeholder") == 1
    assert torch.equal(run_graph(traced, images), model(images))


def test_model_that_cannot_be_copied_is_refused():
    model = Net(nn.Identity())
    model.middle.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"Net cannot be copied: .*lock"):
        trace(model, (3, 8, 8))


class WrongSize(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 8, f"expected 8 rows, not {x.shape[2]}")
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)), (3, 9, 9)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)), (1, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(8)), (3, 8, 8)),
        (WrongSize(nn.Identity()), (3, 9, 9)),
    ],
    ids=["linear", "channels", "pooled away", "assertion"],
)
def test_input_size_that_does_not_fit_is_named(model, shape):
    with pytest.raises(ModelError, match=f"{type(model).__name__} does not run on") as caught:
        trace(model, shape)
    assert "x".join(map(str, shape)) in caught.value.message
    assert "--input-size" in caught.value.hint


def test_constants_of_the_code_stay_out_of_the_state_dict():
    model = Net(PlainTensors())
    traced = trace(model, (3, 8, 8))
    constants = [node.target for node in traced.graph.nodes if node.op == "get_attr"]
    assert any(name.startswith("_tensor_constant") for name in constants)
    assert "middle.scale" in constants
    assert list(traced.root.state_dict()) == list(model.state_dict())


def test_buffers_are_read_when_the_graph_runs(images, run_graph):
    model = Net(CountsItsCalls()).eval()
    traced = trace(model, (3, 8, 8))
    with torch.no_grad():
        model.middle.average.fill_(3.0)
    assert torch.equal(run_graph(traced, images), model(images))


class Tied(nn.Module):
    """A weight under two names, a module under two names, and a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.same = nn.Conv2d(3, 3, 3, padding=1)
        self.same.weight = self.conv.weight
        self.norm = nn.BatchNorm2d(3)
        self.alias = self.norm
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = self.alias(self.same(x))
        return self.fc(self.conv(x).mean((2, 3)))


def test_shared_modules_and_weights_stay_shared(images, with_own_state, run_graph):
    model = Tied()
    traced = trace(model, (3, 8, 8))
    root = traced.root
    assert root.conv.weight is root.same.weight is model.conv.weight
    assert root.norm is root.alias
    assert [name for name, _ in root.named_parameters()] == [name for name, _ in model.named_parameters()]
    calls = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == "conv"]
    assert [node.meta["name"] for node in calls] == ["conv", "conv_1"]
    check_same_in_training(model, traced, images, with_own_state, run_graph)


def test_shapes_are_those_of_a_run(family):
    shapes = {node.name: node.meta["shape"] for node in family.traced.graph.nodes}
    placeholder, *_, output = family.traced.graph.nodes
    assert shapes[placeholder.name] == (2, *family.input_shape)
    assert output.args[0].meta["shape"] == tuple(family.logits.shape)


@pytest.mark.slow
def test_traces_in_a_second(family):
    trace(family.model, family.input_shape)
    times = []
    for _ in range(3):
        start = time.process_time()
        trace(family.model, family.input_shape)
        times.append(time.process_time() - start)
    print(f"\n{family.name}: traced in {min(times):.2f} s")
    # Seconds of processor time: others may share the machine, and half of it goes when they do.
    assert min(times) < 3
