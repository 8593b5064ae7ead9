"""What training streams are made from: segments of a dataset, recorded time without actions, rendered hands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Dataset, Segment
from engines.datasets.frame_cache import read_frames
from engines.datasets.selection import IDLE, heads_with
from engines.errors import DatasetError
from engines.synthetic import BACKGROUND, LABELS
from engines.training.loss import UNKNOWN

Labels = Mapping[str, str]  # head -> label
# segment, frames a second, size_hw -> images uint8 [N, H, W, 3], times in the recording [N] in seconds
ReadFrames = Callable[[Segment, float, tuple[int, int]], tuple[NDArray[np.uint8], NDArray[np.float64]]]

LEAST_GAP_S = 1.0  # a shorter stretch without a label is a pause, and belongs to what is before or after it
MARGIN = 4 / 3  # recordings are decoded larger than the input, to leave room for augmentation
DECODED_PER_FRAME = 2  # recordings are decoded at so many times the frame rate, to leave room for other speeds
DECODED_PER_TRIMMED_FRAME = 4  # the same of clips that are one segment each, for whole gestures of half a second
MOST_PLACES = 300  # recordings that lend their place to others
STILLS = 6  # of a video of idle footage, for each place of another recording
ROOMS = 60  # rendered places, for each place of a recording


class TrainingSources:
    """The sections that training streams may show, and what their frames may be labelled.

        sources = TrainingSources(open_dataset("egogestar"), frame_rate=5.0)

    heads: labels by head, with one for background where there is time without actions; truths: the labels that a frame
    may have, as an index for each head, UNKNOWN where a head has none; background: the truth (its index) of "nothing",
    all UNKNOWN for a dataset without; actions: segments by truth; idle: stretches that show nothing; drawable: the
    truth of each label that rendered hands can draw; places: recordings to put hands into, None for a rendered room.

    split: of the dataset; read_frames: decodes a segment; recorded: False to learn nothing from recordings but what
    places look like; rendered: whether to render hands. Raises DatasetError for a split without labelled segments.
    """

    def __init__(self, data: Dataset, split: str = "train", *, frame_rate: float,
                 read_frames: ReadFrames = read_frames, recorded: bool = True, rendered: bool = True) -> None:
        everything = data.splits.get(split, ())
        segments = [one for one in everything if one.labels]
        if not segments:
            raise DatasetError(f"{data.name}: {len(everything)} segments in the split {split!r}, none of them labelled",
                               "labelled segments to train on", "check the dataset's annotations")
        self.name = data.name
        self.recordings: dict[Path, list[Segment]] = {}
        for one in segments:
            self.recordings.setdefault(one.media.path, []).append(one)
        self.untrimmed = any(len(ones) > 1 or ones[0].start_s > 0 for ones in self.recordings.values())
        self.background_label = data.background or (BACKGROUND if self.untrimmed else None)
        self.heads = heads_with(data.heads, self.background_label)
        self.strokes = data.strokes
        self.decode_rate = frame_rate * (DECODED_PER_FRAME if self.untrimmed else DECODED_PER_TRIMMED_FRAME)
        self._truths: dict[tuple[int, ...], int] = {}
        self._mirrored, self._reversed, self._read_frames = data.mirrored, data.reversed, read_frames
        self._medians: dict[str, NDArray[np.uint8]] = {}
        self._nothing = {head: label for head, labels in self.heads.items() for label in labels
                         if label == self.background_label}
        self.background = self.truth(self._nothing)
        self.actions: dict[int, list[Segment]] = {}
        quiet: list[Segment] = []
        for one in segments:
            truth = self.truth(one.labels)
            (quiet if truth == self.background else self.actions.setdefault(truth, [])).append(one)
            for turned in (self.mirror(one.labels), self.reverse(one.labels)):  # all truths are known from the start
                if turned is not None:
                    self.truth(turned)
                    self.truth(self.mirror(turned) or turned)
        self.idle = self._idle(quiet)
        self.drawable = self._drawable() if rendered else {}
        self.renders_idle = rendered and self.background_label is not None
        self.places = self._places(segments) if rendered else []
        if not recorded:
            self.actions, self.idle = {}, []
        if not self.actions and not self.drawable:
            raise DatasetError(f"{data.name}, of whose actions none is recorded and rendered hands can draw none",
                               "segments labelled with an action", "check the dataset's annotations")

    def truth(self, labels: Labels) -> int:
        """Index of the truth of some labels. Raises DatasetError for a label that is none of its head's."""
        for head, label in labels.items():
            known = self.heads.get(head, ())
            if label not in known:
                raise DatasetError(f"label {label!r} of head {head!r}", f"one of {len(known)} labels",
                                   "check the dataset's list of labels")
        indices = tuple(names.index(labels[head]) if head in labels else UNKNOWN for head, names in self.heads.items())
        return self._truths.setdefault(indices, len(self._truths))

    @property
    def renders(self) -> bool:
        """Whether rendered hands are shown at all."""
        return bool(self.drawable) or self.renders_idle

    def summary(self) -> str:
        """What there is, in a line."""
        count = sum(map(len, self.actions.values()))
        drawn = f"rendered hands draw {', '.join(self.drawable)}" if self.drawable else \
            "rendered hands do nothing labelled" if self.renders_idle else "nothing is rendered"
        return (f"{self.name}: {count} recorded actions, {len(self.idle)} stretches without; {drawn}")

    @property
    def truths(self) -> list[tuple[int, ...]]:
        return list(self._truths)

    def mirror(self, labels: Labels) -> dict[str, str] | None:
        """The labels in a mirror; None for what must not be mirrored."""
        return self._turn(labels, {head: self._mirrored.get(head, {}).get(label, label)
                                   for head, label in labels.items()})

    def reverse(self, labels: Labels) -> dict[str, str] | None:
        """The labels of an action that runs backwards; None for what means nothing then."""
        return self._turn(labels, {head: self._reversed.get(head, {}).get(label, "") for head, label in labels.items()})

    def _turn(self, labels: Labels, turned: dict[str, str]) -> dict[str, str] | None:
        return turned if all(label in self.heads.get(head, ()) for head, label in turned.items()) else None

    def read(self, segment: Segment, size_hw: tuple[int, int], start_s: float | None = None, stop_s: float | None = None
             ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Frames of a segment, or of its recording from `start_s` to `stop_s`, MARGIN times as large as the input
        `size_hw`: images uint8 [N, H, W, 3] and their times in the recording [N], seconds. Raises DatasetError."""
        if start_s is not None:
            segment = replace(segment, start_s=start_s, stop_s=stop_s)
        return self._read_frames(segment, self.decode_rate, (round(size_hw[0] * MARGIN), round(size_hw[1] * MARGIN)))

    def place(self, segment: Segment, size_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Where a trimmed clip was recorded; of a longer recording, whose camera moves, a frame."""
        if segment.id in self._medians:
            return self._medians[segment.id]
        images, _ = self.read(segment, size_hw)
        if self.untrimmed or segment.kind == IDLE:
            return np.asarray(images[int(rng.integers(len(images)))])
        return self.median(segment, images)

    def median(self, segment: Segment, images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What stays of a clip when the hand moves, [H, W, 3]. Computed once."""
        if segment.id not in self._medians:
            few = images_NHWC[:: max(1, len(images_NHWC) // 24)]
            self._medians[segment.id] = np.asarray(np.median(few, axis=0)).astype(np.uint8)
        return self._medians[segment.id]

    def _idle(self, quiet: list[Segment]) -> list[Segment]:
        """Stretches that show nothing: labelled so, or before and between the segments of a recording. Videos of idle
        footage come so often that they are about as many as the others."""
        gaps = [one for one in quiet if one.kind != IDLE]
        videos = [one for one in quiet if one.kind == IDLE]
        if self.untrimmed:
            gaps += self._gaps()
        return videos * max(1, len(gaps) // max(1, len(videos))) + gaps

    def _gaps(self) -> Iterator[Segment]:
        for ones in self.recordings.values():
            end_s = 0.0
            for one in sorted(ones, key=lambda one: one.start_s):
                if one.start_s - end_s >= LEAST_GAP_S:
                    yield Segment(f"before {one.id}", one.media, end_s, one.start_s, self._nothing, one.group)
                end_s = max(end_s, math.inf if one.stop_s is None else one.stop_s)

    def _drawable(self) -> dict[str, int]:
        """The labels that rendered hands can draw, of the head that has most of them."""
        head = max(self.heads, key=lambda head: len(set(self.heads[head]) & set(LABELS)))
        return {label: self.truth({head: label}) for label in self.heads[head] if label in LABELS}

    def _places(self, segments: list[Segment]) -> list[Segment | None]:
        recordings = [one for one in segments if one.kind != IDLE]
        return [*recordings[::max(1, -(-len(recordings) // MOST_PLACES))],
                *[one for one in segments if one.kind == IDLE for _ in range(STILLS)], *[None] * ROOMS]

