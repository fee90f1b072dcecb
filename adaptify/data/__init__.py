"""Data sets: by short name or folder, decoded once and kept in memory where they fit, streamed otherwise."""

from adaptify.data.dataset import Data, check_labels
from adaptify.data.open import open_data
from adaptify.data.split import MemorySplit, Split
from adaptify.data.stream import StreamSplit

__all__ = ["Data", "MemorySplit", "Split", "StreamSplit", "check_labels", "open_data"]
