"""The methods, one file a paper. Importing this package registers them all."""

from adaptify.methods import dgate
from adaptify.methods.base import Fit, FitContext, Method, find_method, method_names

__all__ = ["Fit", "FitContext", "Method", "dgate", "find_method", "method_names"]
