"""Running means of a training epoch, read from the device seldom: each reading waits for its work."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from adaptify.training.objective import Loss


class NonFiniteLossError(ArithmeticError):
    """A loss that is infinite or not a number.

    Attributes:
        step: The optimizer step at which it was computed.
        value: The loss.
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step = step
        self.value = value


class Meter:
    """Means over the images of an epoch of the loss, its terms, the accuracy and the fraction of MACs kept.

    Attributes:
        images: Images seen.
        means: Mean of each figure at the last reading: `loss`, `accuracy`, `loss.<term>`; if told, `kept`
            and `train.<figure>`.
    """

    def __init__(self) -> None:
        self.images = 0
        self.means: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._unread: list[tuple[int, int, dict[str, Tensor]]] = []
        self._started = self._read_at = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last reading."""
        return time.monotonic() - self._read_at

    @property
    def images_per_second(self) -> float:
        """Images in a second, up to the last reading."""
        return self.images / max(self._read_at - self._started, 1e-9)

    @property
    def terms(self) -> dict[str, float]:
        """Means of the terms of the loss."""
        return self._under("loss.")

    @property
    def figures(self) -> dict[str, float]:
        """Means of what else the objective tells."""
        return self._under("train.")

    @property
    def shown(self) -> dict[str, float]:
        """What is worth watching while the epoch lasts."""
        figures = {"loss": self.means["loss"], "accuracy": self.means["accuracy"]}
        if "kept" in self.means:
            figures["MACs kept"] = self.means["kept"]
        return {**figures, "images/s": self.images_per_second}

    def _under(self, prefix: str) -> dict[str, float]:
        found = {name: mean for name, mean in self.means.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): mean for name, mean in found.items()}

    def add(self, step: int, loss: Loss, labels: Tensor) -> None:
        """Take in one batch with `labels` (B,) of optimizer step `step`; waits for nothing."""
        figures = {
            "loss": loss.total.detach(),
            "accuracy": (loss.logits.detach().argmax(1) == labels).float().mean(),
            **{f"loss.{name}": value.detach() for name, value in loss.terms.items()},
            **{f"train.{name}": value.detach() for name, value in loss.figures.items()},
        }
        if loss.kept is not None:
            figures["kept"] = loss.kept.detach()
        self._unread.append((step, len(labels), figures))

    def read(self) -> None:
        """Wait for the device, and bring `means` up to date.

        Raises:
            NonFiniteLossError: A loss since the last reading was not finite.
        """
        if not self._unread:
            return
        device = self._unread[0][2]["loss"].device
        scalars = [value for _, _, figures in self._unread for value in figures.values()]
        values = iter(
            torch.stack([scalar.to(device, torch.float32).reshape(()) for scalar in scalars]).tolist()
        )
        for step, images, figures in self._unread:
            for name in figures:
                value = next(values)
                if name == "loss" and not math.isfinite(value):
                    raise NonFiniteLossError(step, value)
                self._sums[name] = self._sums.get(name, 0.0) + images * value
                self._counts[name] = self._counts.get(name, 0) + images
            self.images += images
        self._unread.clear()
        self._read_at = time.monotonic()
        self.means = {name: total / self._counts[name] for name, total in self._sums.items()}
