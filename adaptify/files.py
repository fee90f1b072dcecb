"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adaptify.errors import OutsideError

if TYPE_CHECKING:
    from torch import Tensor

OLD = ".old"
"""How names end that files have while others take their place."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block succeeds.

    The temporary file is removed when the block fails, so nothing is left half-written.

    Raises:
        OutsideError: The folder cannot be written or the disk is full.
    """
    with atomic_write_all([Path(path)]) as (temporary,):
        yield temporary


@contextmanager
def atomic_write_all(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary paths beside `targets`, of one folder, that replace all of them, or none.

    No file gets its name before the last one is on the disk. Should the disk refuse a name even then, those
    that were replaced come back.

    Raises:
        OutsideError: The folder cannot be written or the disk is full.
    """
    temporaries: list[Path] = []
    made: list[Path] = []
    try:
        with telling(targets[0]):
            _make_folder(targets[0].parent, made)
        for target in targets:
            with telling(target):
                handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
                os.close(handle)
            temporaries.append(Path(name))
        with telling(targets[0]):
            yield list(temporaries)
        for temporary, target in zip(temporaries, targets, strict=True):
            with telling(target):
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                # mkstemp makes private files; results should have the permissions of any other new file.
                temporary.chmod(0o666 & ~_umask())
        replace_all(temporaries, targets)
        made.clear()
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
        for folder in reversed(made):  # of a file that is not there; another's file keeps its folder
            with suppress(OSError):
                folder.rmdir()


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it, and note which were not there."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        made.append(parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def replace_all(temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    """Give files their names; if one cannot have it, the others go back to what they were.

    Raises:
        OutsideError: The disk refuses a name.
    """
    replaced: list[tuple[Path, Path | None]] = []
    *first, last = zip(temporaries, targets, strict=True)
    try:
        for temporary, target in first:
            with telling(target):
                old = _second_name(target, temporary.with_name(f"{temporary.name}{OLD}"))
                replaced.append((target, old))
                os.replace(temporary, target)
        with telling(last[1]):
            os.replace(*last)
    except BaseException:
        for target, old in reversed(replaced):
            with suppress(OSError):
                if old is None:
                    target.unlink(missing_ok=True)
                else:
                    os.replace(old, target)
        raise
    for _, old in replaced:
        if old is not None:
            old.unlink(missing_ok=True)


def _second_name(file: Path, name: Path) -> Path | None:
    """Let a file have a second name, so that the first can be given away; None if there is no such file."""
    name.unlink(missing_ok=True)  # of a process that was killed here
    try:
        os.link(file, name)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(file, name)  # a file system without hard links
    return name


@contextmanager
def telling(target: Path) -> Iterator[None]:
    """Turn what the system says in the block into an error that names `target` and says what to do.

    Raises:
        OutsideError: As it says.
    """
    try:
        yield
    except OSError as error:
        raise OutsideError(f"cannot write {target}: {error.strerror or error}", _what_to_do(error)) from error


def _what_to_do(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Check the permissions, or choose another place with --output."
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Free some space or choose another place with --output."
    return "Check the disk, or choose another place with --output."


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, where `atomic_write` says; the same content gives the same bytes.

    Raises:
        OSError: It cannot be written, which safetensors has an error of its own for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which the library writes in the order of a hash table."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, read piece by piece."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
