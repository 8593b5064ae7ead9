"""EgoGestAR as a dataset: one split, whose groups are the folds that share no background. See training/egogestar.py."""

from __future__ import annotations

from pathlib import Path

from engines.synthetic import BACKGROUND, LABELS
from engines.training.datasets import tables
from engines.training.datasets.base import Dataset, Media, Segment
from engines.training.egogestar import MIRRORED, UNCLASSIFIED, clips

LOOKED_FOR = "manifest.csv with the columns file, label, source, fold"


def recognised(folder: Path) -> str:
    path = folder / "manifest.csv"
    columns = tables.text(path).split("\n", 1)[0].strip().split(",") if path.is_file() else []
    return path.name if {"file", "label", "source", "fold"} <= set(columns) else ""


def read(folder: Path) -> Dataset:
    """Clips of hand motion without a gesture carry the label "background". kind: the clip's source."""
    gathering = tables.Gathering({"gesture": (*LABELS, BACKGROUND)})
    for clip in clips(folder):
        label = BACKGROUND if clip.label == UNCLASSIFIED else clip.label
        gathering.add("train", Segment(clip.name, Media(clip.path), labels={"gesture": label}, group=str(clip.fold),
                                       kind=clip.source))
    changed = {label: MIRRORED.get(label, "") for label in LABELS if MIRRORED.get(label) != label}
    return gathering.dataset("EgoGestAR", mirrored={"gesture": changed}, background=BACKGROUND)
