"""What every reader of annotations gives: labelled stretches of recordings, by split.

    Dataset ── splits: {"train": [Segment, ...], "validation": [...], "test": [...]}
            ── heads: {"verb": ("take", "put", ...), "noun": (...)}     labels in the dataset's own class order
            ── problems: what in the annotations is wrong or was left out, and why

Readers read annotations only and open no video: what the videos hold is `check`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Media:
    """A recording. path: a video file, or a folder of numbered images; rate: of a folder, its frames per second, None
    for a video, whose own timestamps count; first: of a folder, the number of the image at 0 s, None where numbers
    mean nothing but an order; stated_rate, stated_s: frames per second and duration that the annotations claim for a
    video, to compare."""

    path: Path
    rate: float | None = None
    first: int | None = 1
    stated_rate: float | None = None
    stated_s: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a recording and what it shows.

    start_s, stop_s: its times in the recording, stop_s None for "to the end"; labels: {head: label}, empty where
    they are not published; group: recordings of one group (a person, a background) are never split between training
    and testing; kind: a group to report apart.
    """

    id: str
    media: Media
    start_s: float = 0.0
    stop_s: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one item. kind: a short phrase that items with the same fault share ("no such file");
    where: the item; detail: what exactly."""

    kind: str
    where: str
    detail: str = ""


@dataclass(frozen=True)
class Dataset:
    """See the file's top. mirrored: {head: {label: its label in a mirror}}, for labels that a horizontal flip
    changes; a label that maps to "" must not be flipped. reversed: the same for labels that mean something when run
    backwards. strokes: {label: recorded finger strokes [N, 2], x right, y down, any unit}. background: the label that
    means "nothing", if there is one.
    rare: {head: labels} that the dataset's own benchmark reports apart. found: what the reader recognised it by.
    """

    name: str
    heads: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, Sequence[Segment]]
    mirrored: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reversed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    strokes: Mapping[str, Sequence[NDArray[np.float32]]] = field(default_factory=dict)
    background: str | None = None
    problems: Sequence[Problem] = ()
    rare: Mapping[str, frozenset[str]] = field(default_factory=dict)
    found: str = ""
