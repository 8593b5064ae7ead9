"""Image files as a stream: natural order (img2 before img10), a fixed rate, unreadable ones passed over."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import FrameError, SourceError
from stream.frame import Frame, Gap, Image
from stream.images import PIXEL_LIMIT, as_bgr, check_size, parse_size_hw
from stream.sources.base import Source, SourceInfo
from stream.sources.capture import silence_opencv, silence_stderr

DEFAULT_FPS = 30.0
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
                      ".webp"})
LARGEST_FILE_BYTES = 8 * PIXEL_LIMIT


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts runs of digits by their value: img2 before img10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower())
            for part in re.split(r"(\d+)", str(path)) if part]


def is_image(path: Path) -> bool:
    """Whether the name is an image's; hidden files are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path) -> Image:
    """One image file as BGR uint8 [H, W, 3], upright by its EXIF orientation. Raises FrameError."""
    do = "check the file, or save it again as jpg or png"
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise FrameError(f"{path}: over {LARGEST_FILE_BYTES} bytes", "an image file", do)
        data = path.read_bytes()
    except OSError as error:
        raise FrameError(f"{path}: {error.strerror or error}", "a readable image file", do) from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Image:
    """Decodes the bytes of an image file; `name` is for messages. Raises FrameError."""
    size_hw = parse_size_hw(data)
    if size_hw is not None:
        check_size(size_hw)
    pixels = _decode(data) if data else None
    if pixels is None:
        raise FrameError(f"{name}: cannot be decoded", "an image file (jpg, png, bmp, tiff, webp)",
                         "check the file, or save it again as jpg or png")
    return as_bgr(pixels)


def _decode(data: bytes) -> NDArray[Any] | None:
    silence_opencv()
    try:
        with silence_stderr():
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        return None


class ImageFiles(Source):
    """Images in natural order, 1 / fps seconds apart. Sizes may differ; an unreadable image keeps its place in time.

    `frames` raises SourceError when not one of them can be read.
    """

    def __init__(self, paths: Sequence[Path], camera: str, fps: float | None = None) -> None:
        self._paths = sorted(paths, key=natural_key)
        self._fps = fps or DEFAULT_FPS
        self.info = SourceInfo(camera, False, None, self._fps, len(self._paths))

    def frames(self) -> Iterator[Frame | Gap]:
        lost, refusal = 0, None
        for index, path in enumerate(self._paths):
            if self._closed:
                return
            try:
                image_bgr = read_image(path)
            except FrameError as error:
                lost, refusal = lost + 1, error
                self.lost += 1
                continue
            yield Frame(image_bgr, index / self._fps, index, self.info.camera, lost)
            lost = 0
        if self.lost == len(self._paths) and refusal is not None:
            raise SourceError(f"{len(self._paths)} images, none readable ({refusal.got})", refusal.wanted, refusal.do)
