"""Frames of a segment, decoded where they are asked for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import DatasetError
from engines.preprocess import fit
from engines.training.datasets.base import Media, Segment

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
Images = NDArray[np.uint8]


def frames_of(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[Images, NDArray[np.float64]]:
    """A segment at `rate` frames a second: images uint8 [n, H, W, 3] (BGR, scaled to cover, centre-cropped), and their
    times in the recording [n], in seconds. Raises DatasetError if no frame decodes."""
    found = _folder(segment, rate, size_hw) if segment.media.path.is_dir() else _video(segment, rate, size_hw)
    if not found:
        raise DatasetError(f"{segment.id}: no frame of {segment.media.path} from {segment.start_s:g} s on decodes",
                           "a video, or a folder of images", "remove it or get it again")
    return np.stack([image for image, _ in found]), np.array([time_s for _, time_s in found])


def size_of(media: Media) -> tuple[int, int]:
    """Height and width of a recording. Raises DatasetError."""
    return _size_of(media.path)


@lru_cache(maxsize=65536)
def _size_of(path: Path) -> tuple[int, int]:
    if path.is_dir():
        images = _images(path)
        image = cv2.imread(str(images[0])) if images else None
        size_hw = (0, 0) if image is None else (image.shape[0], image.shape[1])
    else:
        capture = cv2.VideoCapture(str(path))
        size_hw = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        capture.release()
    if not all(size_hw):
        raise DatasetError(f"{path}, which does not open", "a video, or a folder of images",
                           "remove it or get it again")
    return size_hw


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _folder(segment: Segment, rate: float, size_hw: tuple[int, int]) -> list[tuple[Images, float]]:
    images, native = _images(segment.media.path), segment.media.rate or rate
    stop_s = min(len(images) / native, segment.stop_s or np.inf)
    found: list[tuple[Images, float]] = []
    for time_s in np.arange(segment.start_s, stop_s - 1e-9, 1 / rate):
        image = cv2.imread(str(images[min(int(time_s * native + 1e-6), len(images) - 1)]))
        if image is not None:
            found.append((fit(np.asarray(image, np.uint8), size_hw, size_hw), float(time_s)))
    return found


def _video(segment: Segment, rate: float, size_hw: tuple[int, int]) -> list[tuple[Images, float]]:
    capture = cv2.VideoCapture(str(segment.media.path))
    if segment.start_s > 0:
        capture.set(cv2.CAP_PROP_POS_MSEC, 1e3 * segment.start_s)
    found: list[tuple[Images, float]] = []
    while capture.grab():
        time_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        if segment.stop_s is not None and time_s >= segment.stop_s:
            break
        if time_s < segment.start_s - 1e-3 or time_s < segment.start_s + len(found) / rate - 1e-3:
            continue
        ok, image = capture.retrieve()
        if ok:
            found.append((fit(np.asarray(image, np.uint8), size_hw, size_hw), time_s))
    capture.release()
    return found
