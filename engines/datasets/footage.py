"""Recordings that training holds in memory, every frame of them at a working size.

    footage = decode(Path("clip.mp4"), "left", (96, 128))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Media
from engines.datasets.decode import Images, whole
from engines.errors import DatasetError

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov"}


@dataclass(frozen=True)
class Footage:
    """Decoded frames at a working size: images uint8 [n, H, W, 3], times_s [n] from 0."""

    label: str
    images: Images
    times_s: NDArray[np.float64]

    @property
    def duration_s(self) -> float:
        """From the first frame to the end of the last one."""
        n = len(self.times_s)
        return float(self.times_s[-1] * n / (n - 1)) if n > 1 else 0.0

    @cached_property
    def median(self) -> NDArray[np.uint8]:
        """What stays when the hand moves: the background, [H, W, 3]."""
        return np.asarray(np.median(self.images[:: max(1, len(self.images) // 24)], axis=0)).astype(np.uint8)


def frames_at(times_s: NDArray[np.float64], when_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of the frames at `times_s` are seen at these moments: the first one from each on, in the end the last."""
    return np.clip(np.searchsorted(times_s, when_s), 0, len(times_s) - 1)


def decode(path: Path, label: str, size_hw: tuple[int, int]) -> Footage:
    """Decodes a whole video at `size_hw` (scaled to cover, centre-cropped). Raises DatasetError if nothing decodes."""
    images, times_s = whole(Media(path), size_hw)
    return Footage(label, images, times_s)


def videos(folders: Iterable[Path]) -> list[Path]:
    """The video files of some folders, by name. Raises DatasetError when one has none."""
    found: list[Path] = []
    for folder in folders:
        here = sorted(path for path in folder.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not here:
            raise DatasetError(f"no video in {folder}", f"a folder of videos ({', '.join(sorted(VIDEO_SUFFIXES))})",
                               "check the path")
        found += here
    return found
