"""The methods, one file a paper. Importing this package registers them all."""

from adaptify.methods import dgate, gumbel
from adaptify.methods.base import ExitFit, Fit, FitContext, GateFit, Method, find_method, method_names

__all__ = [
    "ExitFit",
    "Fit",
    "FitContext",
    "GateFit",
    "Method",
    "dgate",
    "find_method",
    "gumbel",
    "method_names",
]
