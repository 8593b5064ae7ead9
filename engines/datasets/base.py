"""What every reader of annotations gives: labelled stretches of recordings, by split.

    Dataset ── splits: {"train": [Segment, ...], "validation": [...], "test": [...]}
            ── heads: {"verb": ("take", "put", ...), "noun": (...)}     labels in the dataset's own class order
            ── problems: what in the annotations is wrong or was left out, and why

Readers read annotations only and open no video: what the videos hold is `check`'s business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line's help needs no numpy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Media:
    """A recording: a video, or a folder of numbered images."""

    path: Path
    rate: float | None = None  # of a folder, frames per second; None for a video, whose own timestamps count
    first: int | None = 1  # of a folder, the number of the image at 0 s; None where numbers mean an order only
    stated_rate: float | None = None  # frames per second that the annotations claim for a video
    stated_s: float | None = None  # duration that they claim


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a recording and what it shows."""

    id: str
    media: Media
    start_s: float = 0.0
    stop_s: float | None = None  # None: to the end
    labels: Mapping[str, str] = field(default_factory=dict)  # by head; empty where they are not published
    group: str = ""  # a person or place; groups are not split between training and testing
    kind: str = ""  # of segments to report apart

    def overlaps(self, other: Segment) -> bool:
        """Whether both show the same time of a recording."""
        return (self.media == other.media and (other.stop_s is None or self.start_s < other.stop_s)
                and (self.stop_s is None or other.start_s < self.stop_s))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one item."""

    kind: str  # a short phrase that items with the same fault share: "no such file"
    where: str  # the item
    detail: str = ""


@dataclass(frozen=True)
class Dataset:
    """Labelled segments by split, and what is known of their labels."""

    name: str
    heads: Mapping[str, tuple[str, ...]]  # labels in the dataset's own class order
    splits: Mapping[str, Sequence[Segment]]
    mirrored: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # {head: {label: in a mirror, "": none}}
    reversed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # {head: {label: run backwards}}
    strokes: Mapping[str, Sequence[NDArray[np.float32]]] = field(default_factory=dict)  # {label: [N, 2]}, y down
    background: str | None = None  # the label that means "nothing", if there is one
    problems: Sequence[Problem] = ()
    rare: Mapping[str, frozenset[str]] = field(default_factory=dict)  # {head: labels} that its benchmark reports apart
    found: str = ""  # files that the reader recognised it by
    split_by_us: bool = False  # its splits are the reader's own choice, as none are stated
