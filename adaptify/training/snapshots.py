"""Weights of a run on disk: those of the last epoch and those of the best."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adaptify.errors import UsageError
from adaptify.files import atomic_write, write_tensors

Which = Literal["last", "best"]


class Snapshots:
    """The files `last.safetensors` and `best.safetensors` in a folder, each whole or not there.

    They hold the state dict of the network, under its own names.

    Args:
        folder: Made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, which: Which) -> Path:
        """Where a snapshot is, or would be."""
        return self.folder / f"{which}.safetensors"

    def save(self, model: nn.Module, which: Which, epoch: int) -> None:
        """Write the weights of `model` as they are after `epoch`.

        Raises:
            AdaptifyError: The file cannot be written.
        """
        # Safetensors refuses shared storage and any layout but the plain one.
        tensors = {
            name: value.detach().cpu().contiguous().clone()
            for name, value in model.state_dict().items()
            if isinstance(value, Tensor)
        }
        metadata = {"format": "adaptify.snapshot", "version": "1", "epoch": str(epoch)}
        with atomic_write(self.path(which)) as temporary:
            write_tensors(temporary, tensors, metadata)

    def require(self, which: Which) -> None:
        """Make sure that a snapshot is there.

        Raises:
            UsageError: It is not.
        """
        if not self.path(which).is_file():
            raise UsageError(f"{self.path(which)} is missing", "Start anew: its weights may be the result.")

    def restore(self, model: nn.Module, which: Which) -> None:
        """Give `model` the weights of a snapshot that was saved from it.

        Raises:
            UsageError: The file is damaged.
        """
        device = next((str(value.device) for value in model.state_dict().values()), "cpu")
        try:
            tensors = load_file(self.path(which), device=device)
        except SafetensorError as error:
            raise UsageError(
                f"{self.path(which)} is damaged: {error}", "Start anew: the same command without --resume."
            ) from error
        model.load_state_dict(tensors, strict=False)
