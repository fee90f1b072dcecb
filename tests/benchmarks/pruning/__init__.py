"""Measurements of pruning, run by hand: `python -m tests.benchmarks.pruning COMMAND`."""

import sys
from pathlib import Path

# Networks of the tests import one another by their bare names, as pytest lets them.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
