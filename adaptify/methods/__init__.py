"""The methods, one file a paper. Importing this package registers them all."""

from adaptify.methods import boostnet, dgate, gumbel, gumbel_exits, importance, lcnet, sgad
from adaptify.methods.base import (
    ExitFit,
    Fit,
    FitContext,
    GateFit,
    GatingMethod,
    JudgingMethod,
    Method,
    find_method,
    method_names,
)

__all__ = [
    "ExitFit",
    "Fit",
    "FitContext",
    "GateFit",
    "GatingMethod",
    "JudgingMethod",
    "Method",
    "boostnet",
    "dgate",
    "find_method",
    "gumbel",
    "gumbel_exits",
    "importance",
    "lcnet",
    "method_names",
    "sgad",
]
