"""From a file of any kind to a network with its weights."""

from adaptify.checkpoint.architecture import find_architecture
from adaptify.checkpoint.load import LoadedModel, load_model
from adaptify.checkpoint.read import Checkpoint, read_checkpoint

__all__ = ["Checkpoint", "LoadedModel", "find_architecture", "load_model", "read_checkpoint"]
