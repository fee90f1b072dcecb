"""Beside other tools, on the same checkpoint and images, in one run: `python -m tests.benchmarks.peers`."""
