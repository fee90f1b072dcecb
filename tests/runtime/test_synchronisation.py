"""How often the host reads what was computed: on an accelerator each time it waits for all work before.

The counting is done on the CPU, where everything is read through the same calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import pytest
import torch
from exit_nets import KINDS as KINDS_OF_EXITS
from exit_nets import digits, digits_with
from skipping_nets import CPU, KINDS, WAYS, cifar, forced, images_for, place, set_cost
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from adaptify.runtime.optimize import optimize
from adaptify.runtime.policy import leave_at
from adaptify.runtime.skipping.model import SkippingModel

# Operations whose result, or its size, is needed on the host.
_OPERATIONS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal")
# Methods that read memory without an operation.
_METHODS = ("tolist", "numpy", "cpu", "__array__")


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = name.startswith("index") and any(
            isinstance(part, Tensor) and part.dtype == torch.bool for part in _flat(args[1:])
        )
        finds = name == "where" and len(args) == 1
        if name in _OPERATIONS or masks or finds:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _METHODS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class HostReads:
    """Counts what the host reads while it is entered.

    Attributes:
        found: Name of an operation or method -> how often.
    """

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._modes = (_Methods(self.found), _Operations(self.found))

    def __enter__(self) -> HostReads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, traceback)

    @property
    def count(self) -> int:
        """All of them."""
        return self.found.total()


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (list, tuple)):
        return [part for value in values for part in _flat(value)]
    return [values]


READS: Mapping[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.any()),
    "if": lambda x: 1 if x.any() else 0,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("inference", [False, True])
def test_a_read_is_counted_once(name: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        x = torch.arange(4.0)
        with HostReads() as reads:
            READS[name](x)
    assert reads.count == 1, reads.found


def test_work_that_nothing_waits_for_is_not_counted() -> None:
    x = torch.arange(4.0)
    with HostReads() as reads:
        torch.where(x > 1, x, 0 * x).argsort(stable=True)[1:].index_select(0, torch.tensor([0]))
    assert reads.count == 0


@pytest.mark.parametrize("kind", KINDS_OF_EXITS)
@torch.inference_mode()
def test_one_image_is_read_once_at_each_exit_that_it_passes(kind: str) -> None:
    fast, image = optimize(digits_with(KINDS_OF_EXITS[kind])), digits(1)
    count, policy = len(fast.exits), fast.policy
    for index in range(count + 1):
        # All exits are asked, and the image leaves at one of them.
        never = 1e30
        thresholds = tuple(-never if place == index else never for place in range(count))
        fast.policy = replace(policy, thresholds=thresholds)
        assert int(fast.run(image).exit_index) == index
        with HostReads() as reads:
            fast.run(image)
        assert reads.count == min(index + 1, count), reads.found


@torch.inference_mode()
def test_an_exit_that_is_switched_off_is_not_read() -> None:
    fast = optimize(digits_with(KINDS_OF_EXITS["learned"]))
    fast.policy = leave_at(1, len(fast.exits), fast.policy.score)
    with HostReads() as reads:
        outcome = fast.run(digits(1))
    assert int(outcome.exit_index) == 1
    assert reads.count == 1, reads.found


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_one_image_is_read_once_for_each_network_that_decides(kind: str) -> None:
    model = place(cifar(), kind)
    fast = SkippingModel(model, CPU)
    set_cost(fast, WAYS["narrow"])
    image = images_for(model, 1)
    for opened in (0.0, 1.0):
        gates = torch.full((1, sum(site.gates for site in model.sites)), opened)
        fast.warm_up(image, forced(model, gates))
        with HostReads() as reads:
            fast.decide(image, forced(model, gates))
        assert reads.count == len(model.deciders), reads.found
