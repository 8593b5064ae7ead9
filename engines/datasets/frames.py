"""Frames of a segment with their times, decoded once."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.datasets import decode
from engines.datasets.base import Media, Segment
from engines.datasets.frame_cache import FrameCache, default_folder
from engines.errors import DatasetError

GIVE_UP = 50  # unreadable segments in a row end a training


def frames_of(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[decode.Images, NDArray[np.float64]]:
    """A segment at `rate` frames a second, from the user's cache of decoded frames: images uint8 [n, H, W, 3] (BGR,
    scaled to cover, centre-cropped; read-only, perhaps), and their times in the recording [n], in seconds. Raises
    DatasetError."""
    images = _cache(str(default_folder())).frames(segment, rate, size_hw)
    return images, (decode.cell_range(segment, rate)[0] + np.arange(len(images))) / rate


@lru_cache(maxsize=4)
def _cache(_: str) -> FrameCache:
    return FrameCache(default_folder())


@lru_cache(maxsize=65536)
def size_of(media: Media) -> tuple[int, int]:
    """Height and width of a recording. Raises DatasetError."""
    if media.rate is None:
        capture = decode.open_video(media.path)
        size_hw = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        capture.release()
    else:
        stills = decode.stills(media)
        image = cv2.imread(str(stills[0][1])) if stills else None
        size_hw = (0, 0) if image is None else (image.shape[0], image.shape[1])
    if not all(size_hw):
        raise DatasetError(f"{media.path}, of which no frame decodes", "a video, or a folder of images",
                           "remove it or get it again")
    return size_hw
