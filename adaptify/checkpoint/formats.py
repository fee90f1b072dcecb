"""What kind of file a checkpoint is, decided by its first bytes, whatever its name ends with."""

from __future__ import annotations

import enum
import zipfile
from pathlib import Path

from adaptify.bounds import room
from adaptify.errors import ModelError
from adaptify.text import memory

_HEAD = 512
_MOST_HEADER = 100_000_000  # bytes of the header of a safetensors file, which is the limit of the format too


class Format(enum.Enum):
    """The kinds of file that tensors are read from."""

    TORCH = "torch.save"
    SAFETENSORS = "safetensors"


# What people pass by mistake: first bytes, what it is, what to do.
_OTHERS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "Fetch it with: git lfs pull"),
    (b"<!doctype html", "is a web page, not a checkpoint", "The download failed; fetch the file itself."),
    (b"<html", "is a web page, not a checkpoint", "The download failed; fetch the file itself."),
    (b"\x89hdf", "is an HDF5 file (Keras or TensorFlow)", "Give a PyTorch or safetensors checkpoint."),
    (b"\x1f\x8b", "is compressed with gzip", "Unpack it first, with gunzip or tar."),
    (b"bzh", "is compressed with bzip2", "Unpack it first, with bunzip2 or tar."),
    (b"\xfd7zxz", "is compressed with xz", "Unpack it first, with unxz or tar."),
    (b"\x93numpy", "is a NumPy array", "Give a PyTorch or safetensors checkpoint."),
)


def detect(path: Path) -> Format:
    """Return the format of the file `path`.

    Raises:
        ModelError: It is none that tensors can be read from.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise ModelError(f"{path} is empty (0 bytes)", "Copy or download the checkpoint again.")
    # First, because the length that such a file begins with may look like anything.
    if _is_safetensors(head, size):
        length = int.from_bytes(head[:8], "little")
        if length > _MOST_HEADER:  # before the file is mapped into memory
            raise ModelError(
                f"{path} is damaged or cut short: its header would take {memory(length)}",
                "Copy or download the checkpoint again.",
            )
        return Format.SAFETENSORS
    if head.startswith(b"PK"):
        return _zip_format(path, size)
    # Before the pickle: torch would unpack such a file, whatever its first byte is.
    if head[257:262] == b"ustar":
        raise ModelError(f"{path} is a tar archive", "Unpack it and give the checkpoint inside.")
    if head[:1] == b"\x80":  # a pickle: what torch.save wrote before version 1.6
        return Format.TORCH
    for magic, what, hint in _OTHERS:
        if head.lower().startswith(magic):
            raise ModelError(f"{path} {what}", hint)
    kind = "a text file" if _is_text(head) else "not a checkpoint of any known format"
    raise ModelError(f"{path} is {kind}", "Give a file written by torch.save or safetensors.")


def _zip_format(path: Path, size: int) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # the reader of archives lets through what its parts raise
        raise ModelError(
            f"{path} is damaged or cut short: {error or type(error).__name__}",
            "Copy or download the checkpoint again.",
        ) from error
    members = {entry.filename.partition("/")[2] or entry.filename for entry in entries}
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > room(size):
        raise ModelError(
            f"{path} unpacks to {memory(unpacked)} from {memory(size)}, which no weights do",
            "Do not use it; if it is yours, save the weights again with torch.save.",
        )
    if members & {"archive_format", "models/model.json"} or any("serialized_exported" in m for m in members):
        raise ModelError(
            f"{path} is a program exported by torch.export, whose layers cannot be changed",
            f"Save its weights: torch.save(torch.export.load('{path}').state_dict, 'weights.pt')",
        )
    if "constants.pkl" in members or any(member.startswith("code/") for member in members):
        raise ModelError(
            f"{path} is a TorchScript archive, a compiled program whose layers cannot be changed",
            f"Save its weights: torch.save(torch.jit.load('{path}').state_dict(), 'weights.pt')",
        )
    if "data.pkl" not in members:
        raise ModelError(
            f"{path} is a zip archive without PyTorch weights", "Unpack it and give the checkpoint inside."
        )
    return Format.TORCH


def _is_safetensors(head: bytes, size: int) -> bool:
    """Eight bytes with the length of a JSON header, then the header."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length < max(size, _MOST_HEADER)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
