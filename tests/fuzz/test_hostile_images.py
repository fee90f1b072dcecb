"""Image folders that never end, and images that are something else, or far larger than their files."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from adaptify.data import open_data
from adaptify.data.decode import MOST_PIXELS, open_image, read_image
from adaptify.errors import UsageError
from adaptify.input_spec import InputSpec

from .little_memory import in_little_memory

SPEC = InputSpec(height=8, width=8)


def png(width: int, height: int) -> bytes:
    """A PNG of one colour, a few KB large, whatever its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"\0" * 1_000_000, 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def ppm(side: int) -> bytes:
    return f"P5 {side} {side} 255\n".encode()


def postscript() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(executed) (w) file closefile\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (png(50_000, 50_000), "pixels"),
        (png(9_000, 9_000), f"its 9000x9000 pixels are more than {MOST_PIXELS:,}"),
        (ppm(1_000_000), "pixels"),
        (ppm(8_192), "bad.jpg"),
        (postscript(), "it is not an image of a known format"),
        (b"", "it is not an image of a known format"),
        (b"\xff\xd8\xff", "bad.jpg"),
    ],
)
@pytest.mark.parametrize("read", [read_image, open_image])
def test_images_that_are_none_are_named(
    data: bytes, told: str, read: Callable[[str, InputSpec], object], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(data)
    said = in_little_memory(lambda: read(str(tmp_path / "bad.jpg"), SPEC))
    assert said.startswith(f"UsageError: cannot read the image {tmp_path / 'bad.jpg'}: ")
    assert told in said


def test_small_images_and_wrong_extensions_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "one.png")
    (tmp_path / "one.png").rename(tmp_path / "one.jpg")
    assert read_image(str(tmp_path / "one.jpg"), SPEC).shape == (3, 8, 8)


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("P", (64, 64), index % 7) for index in range(3_000)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "many.gif").write_bytes(stream.getvalue())
    assert in_little_memory(lambda: read_image(str(tmp_path / "many.gif"), SPEC), seconds=20) == ""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two classes with four images each."""
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(4):
                colour = (index, ord(name), len(part))
                Image.new("RGB", (4, 4), colour).save(tmp_path / "data" / part / name / f"{index}.png")
    return tmp_path / "data"


def test_links_that_lead_back_are_followed_once(images: Path) -> None:
    for index in range(8):  # without a memory of where one was, 8^40 ways
        (images / "train/a" / f"loop{index}").symlink_to(images / "train/a", target_is_directory=True)
    data = open_data(str(images), input=SPEC, workers=0)
    assert len(data.train) + len(data.holdout) == 8


def test_links_to_elsewhere_are_read_as_images_and_nothing_else(images: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("password")
    (images / "train/a/secret.png").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UsageError, match=r"secret\.png: it is not an image of a known format") as caught:
        open_data(str(images), input=SPEC, workers=0)
    assert "password" not in str(caught.value)


def test_what_is_no_file_is_no_image(images: Path) -> None:
    os.mkfifo(images / "train/a/pipe.png")
    (images / "train/a/zero.png").symlink_to("/dev/zero")
    (images / "train/a/gone.png").symlink_to("/nowhere")
    data = open_data(str(images), input=SPEC, workers=0)
    assert len(data.train) + len(data.holdout) == 8


def test_classes_may_be_called_anything(images: Path) -> None:
    name = "<b>\x1b[2J\n"
    for part in ("train", "val"):
        (images / part / "b").rename(images / part / name)
    assert open_data(str(images), input=SPEC, workers=0).classes == (name, "a")
