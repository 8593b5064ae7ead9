"""EgoGestAR (Garg et al., DrawInAir, ECCV Workshops 2018): trimmed clips of pointing gestures, and strokes.

A dataset folder holds `manifest.csv` (file, label, source, fold, ...) beside the clips, and may hold `strokes.npz`
(points_xy, offsets, label). Clips labelled `unclassified` are hand motion without a gesture: background. As a dataset
it has one split, whose groups are the folds that share no background.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.datasets import tables
from engines.datasets.base import Dataset, Media, Segment
from engines.errors import DatasetError
from engines.synthetic import BACKGROUND, LABELS

EXPECTED_FILES = "manifest.csv with the columns file, label, source, fold"
UNCLASSIFIED = "unclassified"
MIRRORED = {"left": "right", "right": "left", "up": "up", "down": "down"}  # what a mirror makes of a label


@dataclass(frozen=True)
class Clip:
    """A trimmed recording. times_s: seconds from its first frame; fold: never shares a background with another."""

    name: str
    label: str
    source: str
    fold: int
    path: Path


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


def _once(stroke: NDArray[np.float32]) -> NDArray[np.float32]:
    """A fifth of the published strokes hold the same points twice in a row; drawn like that the finger would jump."""
    half = len(stroke) // 2
    twice = len(stroke) % 2 == 0 and np.allclose(stroke[:half], stroke[half:], atol=0.5)
    return stroke[:half] if twice else stroke


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


def recognise(folder: Path) -> str:
    path = folder / "manifest.csv"
    columns = tables.read_text(path).split("\n", 1)[0].strip().split(",") if path.is_file() else []
    return path.name if {"file", "label", "source", "fold"} <= set(columns) else ""


def read(folder: Path) -> Dataset:
    """Clips of hand motion without a gesture carry the label "background". kind: the clip's source."""
    builder = tables.DatasetBuilder({"gesture": (*LABELS, BACKGROUND)})
    for clip in clips(folder):
        label = BACKGROUND if clip.label == UNCLASSIFIED else clip.label
        builder.add("train", Segment(clip.name, Media(clip.path), labels={"gesture": label}, group=str(clip.fold),
                                       kind=clip.source))
    changed = {label: MIRRORED.get(label, "") for label in LABELS if MIRRORED.get(label) != label}
    return builder.build("EgoGestAR", mirrored={"gesture": changed}, background=BACKGROUND)


READERS = {"egogestar": tables.Reader(recognise, lambda folder, _: read(folder), EXPECTED_FILES)}
