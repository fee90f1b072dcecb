"""What all parts of a report have in common: how they are checked, and the kinds of their figures."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _never_is_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Threshold = Annotated[float | None, BeforeValidator(_never_is_none)]
Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]*$")]


class Part(BaseModel):
    """A part of a report: frozen, without NaN or infinity.

    Unknown keys are passed over: a later adaptify may add some without a new version.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
