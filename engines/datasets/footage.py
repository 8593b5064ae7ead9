"""Frames of recordings, decoded once; the videos of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.datasets import decode
from engines.datasets.base import Media, Segment
from engines.datasets.frame_cache import FrameCache, default_folder
from engines.datasets.media import VIDEOS, is_video
from engines.errors import DatasetError

GIVE_UP = 50  # unreadable segments in a row end a training


def read_frames(segment: Segment, rate: float, size_hw: tuple[int, int]) -> tuple[decode.Images, NDArray[np.float64]]:
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
        with decode.VideoReader(media.path) as video:
            found = next((found for found in video.frames() if found is not None), None)
        image = None if found is None else found[1]()
    else:
        stills = decode.stills(media)
        image = decode.read_still(stills[0][1]) if stills else None
    if image is None:
        raise DatasetError(f"{media.path}, of which no frame decodes", "a video, or a folder of images",
                           "remove it or get it again")
    return image.shape[0], image.shape[1]


def frames_at(times_s: NDArray[np.float64], when_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of the frames at `times_s` are seen at these moments: the first one from each on, in the end the last."""
    return np.clip(np.searchsorted(times_s, when_s), 0, len(times_s) - 1)


def videos(folders: Iterable[Path]) -> list[Path]:
    """The video files of some folders, by name. Raises DatasetError when one has none."""
    found: list[Path] = []
    for folder in folders:
        here = sorted(path for path in folder.glob("*") if is_video(path))
        if not here:
            raise DatasetError(f"no video in {folder}", f"a folder of videos ({', '.join(VIDEOS)})", "check the path")
        found += here
    return found
