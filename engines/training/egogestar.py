"""Reads EgoGestAR (Garg et al., DrawInAir, ECCV Workshops 2018): trimmed clips of pointing gestures, and strokes.

A dataset folder holds `manifest.csv` (file, label, source, fold, ...) beside the clips, and may hold `strokes.npz`
(points_xy, offsets, label). Clips labelled `unclassified` are hand motion without a gesture: background.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import DatasetError
from engines.preprocess import fit

UNCLASSIFIED = "unclassified"
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov"}
Images = NDArray[np.uint8]  # [n, H, W, 3], BGR


@dataclass(frozen=True)
class Clip:
    """A trimmed recording. times_s: seconds from its first frame; fold: never shares a background with another."""

    name: str
    label: str
    source: str
    fold: int
    path: Path


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


def clips(folder: Path) -> list[Clip]:
    """The clips of a dataset folder. Raises DatasetError where the manifest is missing or names missing files."""
    manifest = folder / "manifest.csv"
    try:
        with manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = [Clip(Path(row["file"]).stem, row["label"], row["source"], int(row["fold"]), folder / row["file"])
                 for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise DatasetError(f"dataset folder {folder} ({error})", "an EgoGestAR folder with its manifest.csv",
                           "check the path") from error
    missing = [clip.path.name for clip in found if not clip.path.is_file()]
    if missing or not found:
        raise DatasetError(f"{len(missing)} of {len(found)} clips missing ({', '.join(missing[:3])})",
                           "every clip the manifest names", "get the dataset again")
    return found


def decode(path: Path, label: str, size_hw: tuple[int, int]) -> Footage:
    """Decodes a whole video at `size_hw` (scaled to cover, centre-cropped). Raises DatasetError if nothing decodes."""
    capture = cv2.VideoCapture(str(path))
    images, times = [], []
    while True:
        ok, image = capture.read()
        if not ok:
            break
        images.append(fit(np.asarray(image, dtype=np.uint8), size_hw, size_hw))
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)  # of the frame just read
    fps = capture.get(cv2.CAP_PROP_FPS) or 30.0
    capture.release()
    if not images:
        raise DatasetError(f"{path}, of which no frame decodes", "a video", "remove it or get it again")
    times_s = np.array(times) - times[0]
    if not (np.diff(times_s) > 0).all():
        times_s = np.arange(len(images)) / fps
    return Footage(label, np.stack(images), times_s)


def decode_all(found: Iterable[Clip], size_hw: tuple[int, int]) -> list[Footage]:
    """Decodes many clips, in their order."""
    return [decode(clip.path, clip.label, size_hw) for clip in found]


def _once(stroke: NDArray[np.float32]) -> NDArray[np.float32]:
    """A fifth of the published strokes hold the same points twice in a row; drawn like that the finger would jump."""
    half = len(stroke) // 2
    twice = len(stroke) % 2 == 0 and np.allclose(stroke[:half], stroke[half:], atol=0.5)
    return stroke[:half] if twice else stroke


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


def human_strokes(folder: Path) -> dict[str, list[NDArray[np.float32]]]:
    """Label -> finger strokes [N, 2] in pixels (y down) of the training split; {} without strokes.npz."""
    path = folder / "strokes.npz"
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as data:
        points, offsets, labels, split = (data[key] for key in ("points_xy", "offsets", "label", "split"))
    strokes: dict[str, list[NDArray[np.float32]]] = {}
    for i, label in enumerate(labels):
        stroke = _once(points[offsets[i]:offsets[i + 1]])
        if split[i] == "train" and len(stroke) > 4:
            strokes.setdefault(str(label), []).append(stroke)
    return strokes
