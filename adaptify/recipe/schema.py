"""The sections of a recipe; `gates` and `train` are the method's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    PositiveInt,
    SerializeAsAny,
    create_model,
    field_validator,
    model_validator,
)

from adaptify.errors import UsageError
from adaptify.methods.base import find_method
from adaptify.runtime.budget import Budget
from adaptify.settings import Section


class ModelSection(Section):
    """Which network: the checkpoint, and its architecture where it cannot be found in the file.

    Attributes:
        checkpoint: A file, a run folder, or the name of an architecture, which starts from random weights.
        arch: `torchvision:NAME`, `timm:NAME`, `adaptify:NAME` or `package.module:callable`; None: found by
            the names and shapes of the tensors.
        arch_kwargs: Arguments of the architecture.
        trust_pickle: Whether code that the file names may be run.
    """

    checkpoint: str
    arch: str | None = None
    arch_kwargs: dict[str, Any] = Field(default_factory=dict)
    trust_pickle: bool = False


class DataSection(Section):
    """Which images, and how they are shown to the network.

    Attributes:
        source: FOLDER, `cifar10:FOLDER`, `cifar100:FOLDER`, `digits` or `fake:N`.
        holdout: Part of the training images that only the policy is chosen on.
        val_split: Part for reporting, for a folder without train/ and val/.
        input_size: Height and width, or None for the architecture's own.
        mean: Per channel, for pixels in [0, 1], or None for the architecture's own.
        std: Likewise.
        workers: Processes that decode images; None: by the cores.
        skip_corrupt: Whether unreadable images are left out, and do not refuse the data.
    """

    source: str
    holdout: float = Field(default=0.1, gt=0, lt=1)
    val_split: float | None = Field(default=None, gt=0, lt=1)
    input_size: tuple[PositiveInt, PositiveInt] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int | None = Field(default=None, ge=0)
    skip_corrupt: bool = False


class CalibrateSection(Section):
    """What the policy is chosen for; without any of these, a drop of at most 0.5 points.

    Attributes:
        max_drop: Points of top-1 that may be lost.
        max_macs: Fraction of the MACs that may be kept; or, from 1,000 on, MACs for a sample.
        thresholds: One per exit; null for an exit never taken.
        confidence: Probability with which `max_drop` holds for new samples; None: for the held-out ones.
        rule: How thresholds are looked for: by a search over all of them (`search`), or by giving each exit
            its share of the samples (`quota`, budgeted batch).
    """

    max_drop: float | None = Field(default=None, allow_inf_nan=False)
    max_macs: float | None = None
    thresholds: tuple[float | None, ...] | None = None
    confidence: float | None = Field(default=None, gt=0, lt=1)
    rule: Literal["search", "quota"] = "search"

    @field_validator("max_macs")
    @classmethod
    def _budget(cls, value: float | None) -> float | None:
        try:
            return value if value is None else Budget.of(value).amount
        except UsageError as error:
            raise ValueError(error.message) from error

    @field_validator("thresholds")
    @classmethod
    def _never(cls, value: tuple[float | None, ...] | None) -> tuple[float | None, ...] | None:
        if value is not None and any(item is not None and math.isnan(item) for item in value):
            raise ValueError("a threshold is not a number")
        return value and tuple(None if item == math.inf else item for item in value)

    @model_validator(mode="after")
    def _one_way(self) -> CalibrateSection:
        if self.thresholds is not None and (self.max_drop is not None or self.max_macs is not None):
            raise ValueError("thresholds by hand leave nothing to choose: drop max_drop and max_macs")
        if self.confidence is not None and self.max_drop is None:
            raise ValueError("confidence is about max_drop: give one")
        return self

    def request(self) -> dict[str, Any]:
        """What was asked for, the default filled in."""
        asked = self.model_dump(exclude_defaults=True, mode="json")
        aims = {"max_drop", "max_macs", "thresholds"}
        return asked if aims & set(asked) else {"max_drop": 0.5, **asked}

    @classmethod
    def settings(cls, request: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a request, by their keys in a recipe: it takes the place of the whole section."""
        return {
            f"calibrate.{name}": request.get(name, field.default) for name, field in cls.model_fields.items()
        }


class RunSection(Section):
    """How the work is done.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        batch_size: Images in a batch of the backbone.
        seed: Seed of everything random.
    """

    device: str = "auto"
    batch_size: int = Field(default=256, gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class PruneSection(Section):
    """How far `adaptify prune` goes.

    Attributes:
        target: Fraction of the MACs to keep; None: what learned gates leave.
        round_to: Multiple of channels to keep where layers are large enough; 1 for any number.
        finetune: Epochs of training after channels were removed.
    """

    target: float | None = Field(default=None, gt=0, le=1)
    round_to: int = Field(default=16, ge=1)
    finetune: int = Field(default=0, ge=0)


class Recipe(Section):
    """All settings of one run.

    Attributes:
        version: Of the format of recipes.
        method: The method, whose own sections `gates` and `train` are.
        model: Which network.
        data: Which images.
        gates: The gates of the method.
        train: How the method trains them.
        calibrate: What the policy is chosen for.
        prune: How far `adaptify prune` goes.
        run: How the work is done.
    """

    version: Literal[1] = 1
    method: str
    model: ModelSection
    data: DataSection
    gates: SerializeAsAny[Section]
    train: SerializeAsAny[Section]
    calibrate: CalibrateSection = CalibrateSection()
    prune: PruneSection = PruneSection()
    run: RunSection = RunSection()


@functools.cache
def recipe_type(method: str) -> type[Recipe]:
    """The schema of recipes for `method`."""
    kind = find_method(method)
    return create_model(
        "Recipe", __base__=Recipe, gates=(kind.Gates, kind.Gates()), train=(kind.Train, kind.Train())
    )


def known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a schema."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
