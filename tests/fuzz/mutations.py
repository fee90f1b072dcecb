"""Damage to files: bytes at random, and changes that keep a format valid up to the place that is changed."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from safetensors.torch import load

from adaptify.plan import FORMAT
from adaptify.training.state import _checksum

from .structures import damaged, written

Mutation = Callable[[bytes, Random], bytes]

_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
_GADGETS = (
    b"cos\nsystem\n(X\x0e\x00\x00\x00touch executedtR",
    b"cbuiltins\neval\n(X\x1c\x00\x00\x00open('executed','w').close()tR",
    b"cposix\nsystem\nX\x0e\x00\x00\x00touch executed\x85R",
    b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R",
    b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R",
    b"ccollections\nOrderedDict\n)R",
    b"(lp0\n",
    b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x08\x00\x00\x00V9999999\x85R\x85R",
    b"}(X\x01\x00\x00\x00ah\x00u",
)
_YAML = (
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
    "&x [*x]\n",
    "!!python/object/apply:os.system ['touch executed']\n",
    "!!binary gaaaa\n",
    "!!timestamp 2001-99-99\n",
    "!!int 'x'\n",
    "!!float 'x'\n",
    "!!set {a, b}\n",
    "? [a, b]\n: 1\n",
    "<<: {a: 1}\n",
    "<<: 5\n",
    "1: 2\n",
    "null: 3\n",
    "%YAML 9.9\n---\n",
    "---\n",
    "\t",
    "\x00",
    "\u2028",
    "- ",
    ": ",
    "'",
    "|\n",
    "=: =\n",
    "[" * 5000,
    "{a: " * 5000,
    "9" * 5000,
)


def flipped(data: bytes, random: Random) -> bytes:
    """Change bytes without looking at what they mean."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        size = len(changed)
        at, length = random.randint(0, max(size - 1, 0)), random.choice((1, 4, 8, 64))
        action = random.randint(0, 5)
        if action == 0 and size:
            changed[at] ^= 1 << random.randint(0, 7)
        elif action == 1:
            del changed[at:]
        elif action == 2:
            del changed[at : at + length]
        elif action == 3:
            changed[at:at] = random.randbytes(length)
        elif action == 4:
            start = random.randint(0, max(size - 1, 0))
            changed[at:at] = changed[start : start + length]
        else:
            code = random.choice(("<I", "<Q", ">I", "<H"))
            value = random.choice(_NUMBERS) % (1 << 8 * struct.calcsize(code))
            changed[at : at + struct.calcsize(code)] = struct.pack(code, value)
    return bytes(changed)


def pickled(data: bytes, random: Random) -> bytes:
    """Change the operations of the first pickles in a file."""
    parts: list[bytes] = []
    stream = io.BytesIO(data)
    end = 0
    try:
        for _ in range(5):
            starts = [position for _, _, position in pickletools.genops(stream)]
            stops = [*starts[1:], stream.tell()]
            parts += [data[start:stop] for start, stop in zip(starts, stops, strict=True)]
            end = stream.tell()
    except ValueError:
        pass
    for _ in range(random.randint(1, 3)):
        if not parts:
            break
        at = random.randrange(len(parts))
        action = random.randint(0, 5)
        if action == 0:
            del parts[at]
        elif action == 1:
            parts.insert(at, parts[at])
        elif action == 2:
            other = random.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif action == 3:
            parts[at] = b"\x8a\x08" + struct.pack("<Q", random.choice(_NUMBERS))
        elif action == 4:
            parts.insert(at, random.choice(_GADGETS))
        else:
            parts[at] = flipped(parts[at], random)
    return b"".join(parts) + data[end:]


def zipped(data: bytes, random: Random) -> bytes:
    """Change the entries of a zip archive, most often its pickle."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    at = next(index for index, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    action = random.randint(0, 9)
    if action >= 5:
        entries[at] = entries[at][0], pickled(entries[at][1], random)
    else:
        at = random.randrange(len(entries))
        name, content = entries[at]
        if action == 0:
            del entries[at]
        elif action == 1:
            entries[at] = (
                random.choice(("../../executed", "archive/data/1e9", "", "/etc/x", "a" * 300)),
                content,
            )
        elif action == 2:
            entries[at] = name, flipped(content, random)
        elif action == 3:
            entries[at] = name, b"\0" * random.choice((0, 1, len(content) * 2, 1 << 20))
        else:
            entries.append((f"archive/{random.choice(('constants.pkl', 'code/x', 'byteorder'))}", content))
    result = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(result, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name or "x", content)
    return result.getvalue()


def tensor_file(data: bytes, random: Random) -> bytes:
    """Change the header of a safetensors file: names, types, shapes, offsets, its length."""
    header, rest = _split(data)
    if random.randint(0, 4) == 0:
        length = random.choice((*_NUMBERS, len(data), 2 << 30))
        return struct.pack("<Q", length % (1 << 64)) + data[8:]
    return _joined(written(damaged(header, random)), rest)


def planned(data: bytes, random: Random) -> bytes:
    """Change the plan of an artifact."""
    return _with_metadata(data, FORMAT, lambda text: written(damaged(json.loads(text), random)))


def stated(data: bytes, random: Random) -> bytes:
    """Change the facts of a training state, and let its checksum be right again."""
    changed = _with_metadata(data, "facts", lambda text: written(damaged(json.loads(text), random)))
    tensors = load(data)
    facts = _split(changed)[0]["__metadata__"]["facts"]
    return _with_metadata(changed, "sha256", lambda _: _checksum(facts, tensors))


def json_text(data: bytes, random: Random) -> bytes:
    """Change the values of a JSON file."""
    return written(damaged(json.loads(data), random)).encode()


def yaml_text(data: bytes, random: Random) -> bytes:
    """Change a YAML file: its values, or its text."""
    import yaml

    if random.randint(0, 1):
        return written(damaged(yaml.safe_load(data), random)).encode()
    lines = data.decode().splitlines(keepends=True)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines) + 1)
        if random.randint(0, 2):
            lines.insert(at, random.choice(_YAML))
        elif at < len(lines):
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {random.choice(_YAML)}"
    return "".join(lines).encode()


def batch(data: bytes, random: Random) -> bytes:
    """Change a pickled batch of CIFAR: its operations, or its values."""
    if random.randint(0, 1):
        return pickled(data, random)
    value: dict[Any, Any] = pickle.loads(data, encoding="bytes")
    key = random.choice(list(value))
    value[key] = random.choice((None, [], [1], {}, b"x" * 1000, [10**12] * 4, [None] * 4))
    return pickle.dumps(value, protocol=2)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _joined(header: str, rest: bytes) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def _with_metadata(data: bytes, key: str, change: Callable[[str], str]) -> bytes:
    header, rest = _split(data)
    metadata = header["__metadata__"]
    metadata[key] = change(metadata[key])
    return _joined(json.dumps(header), rest)
