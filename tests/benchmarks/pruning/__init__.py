"""Measurements of pruning, run by hand: `python -m tests.benchmarks.pruning COMMAND`."""
