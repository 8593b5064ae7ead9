"""What training streams are made from: segments of a dataset, recorded time without actions, rendered hands."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_Key = tuple[tuple[int, ...], ...]  # indices of the labels of each head, in order
Frames = tuple[NDArray[np.uint8], NDArray[np.float64]]  # images [N, H, W, 3], times in the recording [N] in seconds
ReadFrames = Callable[[Segment, float, tuple[int, int]], Frames]  # segment, frames a second, size_hw

LEAST_GAP_S = 1.0  # a shorter stretch without a label is a pause, and belongs to what is before or after it
MARGIN = 4 / 3  # recordings are decoded larger than the input, to leave room for augmentation
DECODED_PER_FRAME = 2  # recordings are decoded at so many times the frame rate, to leave room for other speeds
DECODED_PER_TRIMMED_FRAME = 4  # the same of clips that are one segment each, for whole actions of half a second
MOST_PLACES = 300  # recordings that lend their place to others
STILLS, ROOMS = 6, 60  # places of a video of idle footage, and rendered ones, beside one of each recording


class TrainingSources:
    """The sections that training streams may show, and what their frames may be labelled.

        sources = TrainingSources(open_dataset("egogestar"), frame_rate=5.0)

    heads: labels by head, with one for background where there is time without actions; truths: the labels that a frame
    may have, as an index for each head, UNKNOWN where a head has none; background: the truth (its index) of "nothing",
    all UNKNOWN for a dataset without; actions: segments by truth; idle: stretches that show nothing; drawable: the
    truth of each label that rendered hands can draw; renders_idle: whether they may do nothing labelled, too; places:
    recordings to put hands into, None for a rendered room.

    split: of the dataset; read_frames: decodes a segment; recorded: False to learn nothing from recordings but what
    places look like; rendered: whether to render hands; names_background: whether the time between actions is labelled
    where the dataset does not. Raises DatasetError for a split without labelled actions."""

    def __init__(self, data: Dataset, split: str = "train", *, frame_rate: float,
                 read_frames: ReadFrames = read_frames, recorded: bool = True, rendered: bool = True,
                 names_background: bool = True, multi_label: bool = False) -> None:
        everything = data.splits.get(split, ())
        segments = [one for one in everything if one.labels]
        if not segments:
            raise DatasetError(f"{data.name}: {len(everything)} segments in the split {split!r}, none of them labelled",
                               "labelled segments to train on", "check the dataset's annotations")
        self.recordings: dict[Path, list[Segment]] = {}
        for one in segments:
            self.recordings.setdefault(one.media.path, []).append(one)
        self.name, self.strokes = data.name, data.strokes
        self.untrimmed = any(len(ones) > 1 or ones[0].start_s > 0 for ones in self.recordings.values())
        self.multi_label = multi_label
        self.background_label = None if multi_label else \
            data.background or (BACKGROUND if self.untrimmed and names_background else None)
        self.heads = heads_with(data.heads, self.background_label)
        if multi_label:
            self._nothing = data.background
            self.heads = {head: tuple(label for label in labels if label != data.background)
                          for head, labels in self.heads.items()}
        self.decode_rate = frame_rate * (DECODED_PER_FRAME if self.untrimmed else DECODED_PER_TRIMMED_FRAME)
        self._mirrored, self._reversed, self._read_frames = data.mirrored, data.reversed, read_frames
        self._truths: dict[_Key, int] = {}
        self.label_sets: list[_Key] = []
        """Indices of all labels of each head, by truth."""
        self._medians: dict[str, NDArray[np.uint8]] = {}
        nothing = {head: label for head, labels in self.heads.items() for label in labels
                   if label == self.background_label}
        self.background = self.truth(nothing)
        self.actions: dict[int, list[Segment]] = {}
        without = list(self._gaps(nothing)) if self.untrimmed else []
        for one in segments:
            truth = self.truth(one.labels)
            (without if truth == self.background else self.actions.setdefault(truth, [])).append(one)
            self._turn([one])  # all truths are known from the start
        for ones in self.recordings.values() if multi_label else ():
            for together in _overlaps(ones):
                self._turn(together)
        videos = [one for one in without if one.kind == IDLE]
        own = [one for one in without if one.kind != IDLE]
        self.idle = videos * max(1, len(own) // max(1, len(videos))) + own  # both about as often
        head = max(self.heads, key=lambda head: len(set(self.heads[head]) & set(LABELS)))  # of most that can be drawn
        self.drawable = {label: self.truth({head: label}) for label in self.heads[head]
                         if rendered and label in LABELS and label != self.background_label}
        self.renders_idle = rendered and (multi_label or self.background_label is not None)
        self.renders = bool(self.drawable) or self.renders_idle
        places = [one for one in segments if one.kind != IDLE][::max(1, -(-len(segments) // MOST_PLACES))]
        self.places = [*places, *videos * STILLS, *[None] * ROOMS] if rendered else []
        if not recorded:
            self.actions, self.idle = {}, []
        if not self.actions and not self.drawable:
            raise DatasetError(f"{data.name}, of whose actions none is recorded and rendered hands can draw none",
                               "segments labelled with an action", "check the dataset's annotations")

    @property
    def truths(self) -> list[tuple[int, ...]]:
        """The first label of each head, by truth."""
        return [tuple(labels[0] if labels else UNKNOWN for labels in key) for key in self.label_sets]

    def summary(self) -> str:
        """What there is, in a line."""
        drawn = f"rendered hands draw {', '.join(self.drawable)}" if self.drawable else \
            "rendered hands do nothing labelled" if self.renders_idle else "nothing is rendered"
        return f"{self.name}: {sum(map(len, self.actions.values()))} recorded actions, {len(self.idle)} stretches " \
            f"without; {drawn}"

    def truth(self, labels: Labels) -> int:
        """Index of the truth of some labels. Raises DatasetError for a label that is none of its head's."""
        for head, label in labels.items():
            known = self.heads.get(head, ())
            if label not in known and not (self.multi_label and label == self._nothing):
                raise DatasetError(f"label {label!r} of head {head!r}", f"one of {len(known)} labels",
                                   "check the dataset's list of labels")
        key = tuple((names.index(labels[head]),) if labels.get(head) in names else () for head, names in
                    self.heads.items())
        return self._number(key)

    def together(self, truths: Sequence[int]) -> int:
        """The truth of what is true at a time: the first one's labels, or all, of multi-label sources."""
        if len(truths) == 1 or not self.multi_label:
            return truths[0]
        keys = [self.label_sets[truth] for truth in truths]
        key = tuple(tuple(sorted({label for labels in of_head for label in labels}))
                    for of_head in zip(*keys, strict=True))
        return self._number(key)

    def _number(self, key: _Key) -> int:
        if key not in self._truths:
            self._truths[key] = len(self.label_sets)
            self.label_sets.append(key)
        return self._truths[key]

    def _turn(self, segments: Sequence[Segment]) -> None:
        """Adds the truths of segments together, and what they are in a mirror and backwards."""
        labels: list[Labels | None] = [one.labels for one in segments]
        backwards = [self.reverse(one) for one in labels if one is not None]
        for turned in (labels, backwards):
            for seen in (turned, [None if one is None else self.mirror(one) for one in turned]):
                truths = [self.truth(one) for one in seen if one is not None]
                if truths:
                    self.together(truths)

    def mirror(self, labels: Labels) -> Labels | None:
        """The labels in a mirror; None for what must not be mirrored."""
        return self._known({head: self._mirrored.get(head, {}).get(label, label) for head, label in labels.items()})

    def reverse(self, labels: Labels) -> Labels | None:
        """The labels of an action that runs backwards; None for what means nothing then."""
        return self._known({head: self._reversed.get(head, {}).get(label, "") for head, label in labels.items()})

    def _known(self, labels: Labels) -> Labels | None:
        return labels if all(label in self.heads.get(head, ()) for head, label in labels.items()) else None

    def read(self, segment: Segment, size_hw: tuple[int, int], start_s: float, stop_s: float | None) -> Frames:
        """Frames of a segment's recording from `start_s` to `stop_s`, MARGIN times as large as the input `size_hw`.
        Raises DatasetError."""
        large_hw = round(size_hw[0] * MARGIN), round(size_hw[1] * MARGIN)
        return self._read_frames(replace(segment, start_s=start_s, stop_s=stop_s), self.decode_rate, large_hw)

    def place(self, segment: Segment, size_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Where a trimmed clip was recorded; of a longer recording, whose camera moves, a frame."""
        if segment.id in self._medians:
            return self._medians[segment.id]
        images, _ = self.read(segment, size_hw, segment.start_s, segment.stop_s)
        if self.untrimmed or segment.kind == IDLE:
            return np.asarray(images[int(rng.integers(len(images)))])
        return self.median(segment, images)

    def median(self, segment: Segment, images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What stays of a clip when the hand moves, [H, W, 3]. Computed once."""
        if segment.id not in self._medians:
            few = images_NHWC[:: max(1, len(images_NHWC) // 24)]
            self._medians[segment.id] = np.asarray(np.median(few, axis=0)).astype(np.uint8)
        return self._medians[segment.id]

    def _gaps(self, nothing: Labels) -> Iterator[Segment]:
        """Stretches before and between the segments of a recording."""
        for ones in self.recordings.values():
            end_s = 0.0
            for one in sorted(ones, key=lambda one: one.start_s):
                if one.start_s - end_s >= LEAST_GAP_S:
                    yield Segment(f"before {one.id}", one.media, end_s, one.start_s, nothing, one.group)
                end_s = max(end_s, math.inf if one.stop_s is None else one.stop_s)


def _overlaps(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The segments of a recording that are shown at a time, wherever these change and are several."""
    stop_of = {one.id: math.inf if one.stop_s is None else one.stop_s for one in segments}
    shown: list[Segment] = []
    waiting = sorted(segments, key=lambda one: -one.start_s)
    for at in sorted({one.start_s for one in segments} | set(stop_of.values())):
        while waiting and waiting[-1].start_s <= at:
            shown.append(waiting.pop())
        shown = [one for one in shown if stop_of[one.id] > at]
        if len(shown) > 1:
            yield shown
