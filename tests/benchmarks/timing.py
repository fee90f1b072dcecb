"""The timer of the package, by the name under which benchmarks know it."""

from adaptify.runtime.timing import interleaved, median_ratio

__all__ = ["interleaved", "median_ratio"]
