"""EgoGestAR (Garg et al., DrawInAir, ECCV Workshops 2018): trimmed clips of pointing gestures, and strokes.

A dataset folder holds `manifest.csv` (file, label, source, fold, ...) beside the clips, and may hold `strokes.npz`
(points_xy, offsets, label, split). Clips labelled `unclassified` are hand motion without a gesture: background. There
is one split, whose groups are the folds that share no background."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from engines.datasets import tables
from engines.datasets.base import Dataset, Media, Segment
from engines.errors import DatasetError
from engines.synthetic import BACKGROUND, LABELS

COLUMNS = ("file", "label", "source", "fold")
UNCLASSIFIED = "unclassified"
MIRRORED = {"left": "right", "right": "left", "up": "up", "down": "down"}  # a mirrored square is no square
REVERSED = {"left": "right", "right": "left", "up": "down", "down": "up"}


def recognise(folder: Path) -> str:
    path = folder / "manifest.csv"
    return path.name if path.is_file() and {*COLUMNS} <= {*tables.read_header(path)} else ""


def read(folder: Path) -> Dataset:
    """Clips of hand motion without a gesture carry the label "background". kind: the clip's source.
    Raises DatasetError where the manifest is missing, or names files that are."""
    rows = tables.read_csv(folder / "manifest.csv", COLUMNS)
    missing = [row["file"] for row in rows if not (folder / row["file"]).is_file()]
    if missing or not rows:
        raise DatasetError(f"{len(missing)} of {len(rows)} clips missing ({', '.join(missing[:3])})",
                           "every clip the manifest names", "get the dataset again")
    builder = tables.DatasetBuilder({"gesture": (*LABELS, BACKGROUND)})
    for row in rows:
        label = BACKGROUND if row["label"] == UNCLASSIFIED else row["label"]
        builder.add("train", Segment(Path(row["file"]).stem, Media(folder / row["file"]), labels={"gesture": label},
                                       group=row["fold"], kind=row["source"]))
    mirrored = {label: MIRRORED.get(label, "") for label in LABELS if MIRRORED.get(label) != label}
    return builder.build("EgoGestAR", background=BACKGROUND, mirrored={"gesture": mirrored},
                             reversed={"gesture": REVERSED}, strokes=read_strokes(folder / "strokes.npz"))


def read_strokes(path: Path) -> dict[str, list[NDArray[np.float32]]]:
    """Label -> finger strokes [N, 2] in pixels (y down) of the training split; {} without the file.
    Raises DatasetError for a file that is not what it should be."""
    strokes: dict[str, list[NDArray[np.float32]]] = {}
    if not path.is_file():
        return strokes
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            points, offsets, labels, split = (data[key] for key in ("points_xy", "offsets", "label", "split"))
        for i, label in enumerate(labels):
            stroke = _once(points[offsets[i]:offsets[i + 1]])
            if split[i] == "train" and len(stroke) > 4:
                strokes.setdefault(str(label), []).append(stroke)
    except (OSError, EOFError, BadZipFile, *tables.BROKEN) as error:
        raise DatasetError(f"{path} ({error})", "points_xy, offsets, label and split of strokes", "get it again, or "
                           "remove it") from error
    return strokes


def _once(stroke: NDArray[np.float32]) -> NDArray[np.float32]:
    """A fifth of the published strokes hold the same points twice in a row; drawn like that the finger would jump."""
    half = len(stroke) // 2
    twice = len(stroke) % 2 == 0 and np.allclose(stroke[:half], stroke[half:], atol=0.5)
    return stroke[:half] if twice else stroke


READERS = {"egogestar": tables.Reader(recognise, lambda folder, _: read(folder),
                                      "manifest.csv with the columns file, label, source, fold")}
