"""Pictures of any kind become BGR uint8 [H, W, 3], or are refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engines.decoding.images import PIXEL_LIMIT, as_bgr, check_size, parse_size_hw, read_image
from engines.errors import FrameError


def picture(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_a_camera_image_is_passed_on_as_it_is() -> None:
    image_bgr = picture(4, 5, 3)
    assert as_bgr(image_bgr) is image_bgr


@pytest.mark.parametrize(("array", "wanted"), [
    (np.array([[7, 9]], np.uint8), [[[7, 7, 7], [9, 9, 9]]]),
    (np.array([[[7], [9]]], np.uint8), [[[7, 7, 7], [9, 9, 9]]]),
    (np.array([[[1, 2, 3, 0]]], np.uint8), [[[1, 2, 3]]]),
    (np.array([[[0, 257, 65535]]], np.uint16), [[[0, 1, 255]]]),
    (np.array([[[128, 129, 65406]]], np.uint16), [[[0, 1, 254]]]),
    (np.array([[[0.0, 0.5, 1.0]]], np.float32), [[[0, 128, 255]]]),
    (np.array([[[0.0, 1 / 255, 1.0]]], np.float64), [[[0, 1, 255]]]),
    (np.array([[1.0]], np.float16), [[[255, 255, 255]]]),
], ids=["grey", "grey with axis", "alpha", "16 bit", "16 bit rounded", "float32", "float64", "float16 grey"])
def test_conversions(array: np.ndarray[Any, Any], wanted: list[Any]) -> None:
    image_bgr = as_bgr(array)
    assert image_bgr.dtype == np.uint8
    assert image_bgr.flags.c_contiguous
    assert image_bgr.tolist() == wanted


def test_a_view_with_strides_is_made_contiguous() -> None:
    image_bgr = picture(6, 8, 3)
    view = image_bgr[::2, ::-1]
    assert as_bgr(view).flags.c_contiguous
    assert (as_bgr(view) == view).all()


@pytest.mark.parametrize(("array", "word"), [
    (np.zeros((4, 4), bool), "bool"),
    (np.zeros((4, 4, 3), np.int32), "int32"),
    (np.zeros((4, 4, 3), np.complex64), "complex64"),
    (np.full((2, 2, 3), np.nan, np.float32), "nan"),
    (np.full((2, 2, 3), 255.0, np.float32), "255"),
    (np.full((2, 2, 3), -0.1), "-0.1"),
    (np.full((2, 2, 3), np.inf), "inf"),
    (np.zeros((0, 4, 3), np.uint8), "4 x 0"),
    (np.zeros((4, 4, 2), np.uint8), "(4, 4, 2)"),
    (np.zeros((1, 4, 4, 3), np.uint8), "(1, 4, 4, 3)"),
    (np.zeros(4, np.uint8), "(4,)"),
    (np.broadcast_to(np.uint8(0), (PIXEL_LIMIT // 1000 + 1, 1000, 3)), "pixels"),
    ([[1, 2], [3, 4]], "list"),
    (None, "NoneType"),
])
def test_refused_by_name(array: Any, word: str) -> None:
    with pytest.raises(FrameError) as refusal:
        as_bgr(array)
    assert word in refusal.value.got


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4000), (6000, 8000, 3), (8000, 6000, 4)])
def test_sizes_that_pass(shape: tuple[int, ...]) -> None:
    check_size(shape)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    image_bgr = np.full((20, 30, 3), (10, 130, 250), np.uint8)
    path = tmp_path / f"image{suffix}"
    assert cv2.imwrite(str(path), image_bgr)
    found = read_image(path)
    assert found.shape == (20, 30, 3)
    assert np.abs(found.astype(int) - image_bgr).max() <= 6


@pytest.mark.parametrize(("pixels", "wanted"), [
    (np.full((3, 3), 77, np.uint8), [77, 77, 77]),
    (np.full((3, 3), 257 * 77, np.uint16), [77, 77, 77]),
    (np.full((3, 3, 4), (1, 2, 3, 0), np.uint8), [1, 2, 3]),
    (np.full((3, 3, 3), (257, 514, 65535), np.uint16), [1, 2, 255]),
], ids=["grey", "16-bit grey", "alpha", "16 bit"])
def test_image_files_follow_the_same_rules(tmp_path: Path, pixels: np.ndarray[Any, Any], wanted: list[int]) -> None:
    path = tmp_path / "image.png"
    assert cv2.imwrite(str(path), pixels)
    assert read_image(path)[1, 1].tolist() == wanted


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    lying = np.zeros((16, 32, 3), np.uint8)
    lying[:, :16] = 255
    jpeg = cv2.imencode(".jpg", lying)[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: turn right
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    upright = read_image(path)
    assert upright.shape == (32, 16, 3)
    assert upright[:12].min() > 240
    assert upright[20:].max() < 15


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_the_size_is_read_before_decoding(suffix: str) -> None:
    data = cv2.imencode(suffix, picture(37, 21, 3))[1].tobytes()
    assert parse_size_hw(data) == (37, 21)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_reading_the_size_survives_files_cut_off_anywhere(suffix: str) -> None:
    data = cv2.imencode(suffix, picture(9, 9, 3))[1].tobytes()
    for length in range(len(data)):
        assert parse_size_hw(data[:length]) in (None, (9, 9))


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = zlib.compress(bytes(1000))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def damaged_png() -> bytes:
    data = bytearray(cv2.imencode(".png", picture(60, 60, 3))[1].tobytes())
    data[len(data) // 2:len(data) // 2 + 50] = bytes(50)
    return bytes(data)


@pytest.mark.parametrize(("data", "word"), [
    (b"", "cannot be decoded"),
    (b"this is a letter, not a picture", "cannot be decoded"),
    (cv2.imencode(".png", picture(60, 60, 3))[1].tobytes()[:4000], "cannot be decoded"),
    (damaged_png(), "cannot be decoded"),
    (bomb(60_000, 60_000), "60000 x 60000"),
    (bomb(0, 10), "0 x 10"),
], ids=["empty", "text", "cut off", "damaged", "bomb", "no width"])
def test_unreadable_files_are_refused_without_chatter(tmp_path: Path, data: bytes, word: str,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(FrameError) as refusal:
        read_image(path)
    assert word in refusal.value.got
    assert capfd.readouterr() == ("", "")


def test_a_picture_of_48_megapixels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    assert cv2.imwrite(str(path), np.zeros((6000, 8000), np.uint8))
    assert read_image(path).shape == (6000, 8000, 3)


def test_a_missing_file_is_a_refused_frame(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="No such file"):
        read_image(tmp_path / "image.png")
