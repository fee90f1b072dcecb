"""Measurements, run by hand: `python -m tests.benchmarks.NAME`. None of them is a test."""
