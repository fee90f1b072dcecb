"""The methods, one file a paper. Importing this package registers them all."""

from adaptify.methods import dgate, gumbel, importance, lcnet, sgad
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
    "dgate",
    "find_method",
    "gumbel",
    "importance",
    "lcnet",
    "method_names",
    "sgad",
]
