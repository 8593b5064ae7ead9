"""Any picture, an array or an image file -> BGR uint8 [H, W, 3]. One rule for every way in.

    grey [H, W], [H, W, 1]   the value in all three channels
    BGR  [H, W, 3]           as it is
    BGRA [H, W, 4]           alpha is dropped, not blended
    uint8                    as it is
    uint16                   / 257, rounded (65535 -> 255)
    float16, 32, 64          in [0, 1], times 255, rounded; NaN or values outside are refused
    anything else            refused by name"""

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.decoding.paths import printable, read_head
from engines.decoding.silence import silence_opencv, silence_stderr
from engines.errors import FrameError

Image = NDArray[np.uint8]  # BGR [H, W, 3]
PIXEL_LIMIT = 100_000_000
LARGEST_FILE_BYTES = 8 * PIXEL_LIMIT


def as_bgr(array: NDArray[Any]) -> Image:
    """The picture as BGR uint8 [H, W, 3], contiguous; the same array when it is that already.
    Raises FrameError for a shape, type, value range or size that is none of the above."""
    if not isinstance(array, np.ndarray):
        raise FrameError(f"an image of type {type(array).__name__}", "a numpy array [H, W, 3]",
                         "pass the array that OpenCV or numpy gives")
    check_size(array.shape)
    pixels = _as_uint8(array)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    elif pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    return np.ascontiguousarray(pixels)


def check_size(shape: tuple[int, ...]) -> None:
    """Raises FrameError unless `shape` is [H, W] or [H, W, 1 | 3 | 4] of 1 to PIXEL_LIMIT pixels."""
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise FrameError(f"an image of shape {shape}", "[H, W], or [H, W, C] of 1, 3 or 4 channels",
                         "pass one image at a time, channels last")
    if not 0 < shape[0] * shape[1] <= PIXEL_LIMIT:
        raise FrameError(f"an image of {shape[1]} x {shape[0]} pixels", f"1 to {PIXEL_LIMIT} pixels",
                         "scale it to the size of a camera image")


def _as_uint8(array: NDArray[Any]) -> Image:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.asarray((array.astype(np.uint32) + 128) // 257, np.uint8)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise FrameError(f"a float image with values from {low:g} to {high:g}", "values from 0 to 1",
                             "scale the image to 0..1, or convert it to uint8")
        return np.asarray(np.rint(array * 255), np.uint8)
    raise FrameError(f"an image of type {array.dtype}", "uint8, uint16 or float in 0..1", "convert it to uint8")


def parse_size_hw(data: bytes) -> tuple[int, int] | None:
    """Height and width as a PNG, BMP or JPEG file states them before any decoding; None for other formats."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data[:2] == b"BM" and len(data) >= 26:
        width, height = struct.unpack("<ii", data[18:26])
        return abs(height), abs(width)
    return _jpeg_size_hw(data) if data[:2] == b"\xff\xd8" else None


def _jpeg_size_hw(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame, ITU T.81 table B.1
            height, width = struct.unpack(">HH", data[at + 5:at + 9])
            return height, width
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return None


def read_image(path: Path) -> Image:
    """One image file as BGR uint8 [H, W, 3], upright by its EXIF orientation. Raises FrameError."""
    do = "check the file, or save it again as jpg or png"
    try:
        if path.exists() and not path.is_file():
            raise FrameError(f"{printable(path)}: it is no file", "an image file", do)
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise FrameError(f"{printable(path)}: over {LARGEST_FILE_BYTES} bytes", "an image file", do)
        data = path.read_bytes()
    except OSError as error:
        raise FrameError(f"{printable(path)}: {error.strerror or error}", "a readable image file", do) from error
    return decode_image(data, printable(path))


def decode_image(data: bytes, name: str) -> Image:
    """Decodes the bytes of an image file; `name` is for messages. Raises FrameError."""
    size_hw = parse_size_hw(data)
    if size_hw is not None:
        check_size(size_hw)
    silence_opencv()
    try:
        with silence_stderr():
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # of an empty file, too
        pixels = None
    if pixels is None:
        raise FrameError(f"{name}: cannot be decoded", "an image file (jpg, png, bmp, tiff, webp)",
                         "check the file, or save it again as jpg or png")
    return as_bgr(pixels)


def is_animated(path: Path) -> bool:
    """Whether a WebP or PNG file is an animation, of which `read_image` gives the first picture."""
    head = read_head(path, 41)
    webp = len(head) > 20 and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)
    return webp or (head[:4] == b"\x89PNG" and head[37:] == b"acTL")
