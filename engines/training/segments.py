"""Endless, labelled training streams cut from the segments of any dataset.

    pool = Pool(dataset, "train")
    frames = SegmentStream(pool, size_hw, rate, rng).frames()

A section of a stream is a segment, drawn so that every label comes as often, with the time around it where recordings
are longer than their segments. That time is background: the dataset's own, or one that is added to its heads.
A frame's truth is the segment drawn, else another one that covers it, else background.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Dataset, Segment
from engines.datasets.footage import frames_at
from engines.datasets.frames import GIVE_UP
from engines.errors import DatasetError, UsageError
from engines.training.loss import UNKNOWN
from engines.training.stream_augment import Augmentation
from engines.training.streams import GRACE_FRAMES, Labelled, one_of

log = logging.getLogger("gatestream.training")

BACKGROUND = "background"
LONGEST_S = 30.0  # more of a segment than this is not shown at a time
MARGIN = 4 / 3  # footage is decoded larger than the input, to leave room for augmentation
FINER = 2  # times the frame rate, at which segments are decoded: room for other speeds
LEAST_GAP_S = 1.0  # a shorter stretch without a label is a pause, and belongs to what is before or after it
# segment, frames a second, size_hw -> images uint8 [n, H, W, 3], times in the recording [n] in seconds
FramesOf = Callable[[Segment, float, tuple[int, int]], tuple[NDArray[np.uint8], NDArray[np.float64]]]


class Pool:
    """The labelled segments of one split, ready to draw from. heads: labels by head, with background where recordings
    are longer than their segments; truths: the distinct label indices of frames, one for each head, UNKNOWN where a
    head has none; `background`: the index of background's truth, None where there is none.

    Raises DatasetError for a split without labelled segments.
    """

    def __init__(self, data: Dataset, split: str) -> None:
        everything = data.splits.get(split, ())
        segments = [one for one in everything if one.labels]
        if not segments:
            raise DatasetError(f"{data.name}: {len(everything)} segments to train on, none of them labelled",
                               f"labelled segments in the split {split!r}", "check the dataset's annotations")
        self.recordings: dict[Path, list[Segment]] = {}
        for one in segments:
            self.recordings.setdefault(one.media.path, []).append(one)
        self.untrimmed = any(len(ones) > 1 or ones[0].start_s > 0 for ones in self.recordings.values())
        self.background_label = data.background or (BACKGROUND if self.untrimmed else None)
        self.heads = heads_with(data.heads, self.background_label)
        self._truths: dict[tuple[int, ...], int] = {}
        self._mirrored = data.mirrored
        self.background = None
        if self.background_label is not None:
            self.background = self.truth({head: self.background_label for head, labels in self.heads.items()
                                          if self.background_label in labels})
        self.by_label: dict[int, list[Segment]] = {}
        for one in segments:
            self.by_label.setdefault(self.truth(one.labels), []).append(one)
            turned = self.mirror(one.labels)
            if turned is not None:
                self.truth(turned)

    def truth(self, labels: Mapping[str, str]) -> int:
        """Index of some labels' truth. Raises DatasetError for a label that is none of its head's."""
        for head, label in labels.items():
            names = self.heads.get(head, ())
            if label not in names:
                raise DatasetError(f"label {label!r} of head {head!r}", f"one of {len(names)} labels",
                                   "check the dataset's list of labels")
        indices = tuple(names.index(labels[head]) if head in labels else UNKNOWN
                        for head, names in self.heads.items())
        return self._truths.setdefault(indices, len(self._truths))

    @property
    def truths(self) -> list[tuple[int, ...]]:
        return list(self._truths)

    @cached_property
    def gaps(self) -> list[Segment]:
        """Stretches that show nothing: before and between the segments of a recording, or labelled as background."""
        if self.background_label is None or self.background is None:
            return []
        nothing = {head: self.background_label for head, labels in self.heads.items()
                   if self.background_label in labels}
        found = list(self.by_label.get(self.background, ()))
        for ones in self.recordings.values():
            end_s = 0.0
            for one in sorted(ones, key=lambda one: one.start_s):
                if one.start_s - end_s >= LEAST_GAP_S:
                    found.append(Segment(f"before {one.id}", one.media, end_s, one.start_s, nothing, one.group))
                end_s = max(end_s, math.inf if one.stop_s is None else one.stop_s)
        return found

    def mirror(self, labels: Mapping[str, str]) -> dict[str, str] | None:
        """The labels in a mirror; None for what must not be mirrored."""
        turned = {head: self._mirrored.get(head, {}).get(label, label) for head, label in labels.items()}
        return turned if all(turned.values()) else None


def without_group(data: Dataset, group: int) -> Dataset:
    """A dataset whose group of this name, if it is not 0, is there to validate instead of to train. Raises UsageError
    for a group that is not there."""
    everything = data.splits.get("train", ())
    left_out = [segment for segment in everything if segment.group == str(group)]
    if not group:
        return data
    if not left_out:
        raise UsageError(f"fold {group} of {data.name}, which has no such group", "the number of one of its groups",
                         "leave no fold out, or another one")
    kept = [segment for segment in everything if segment.group != str(group)]
    return replace(data, splits={**data.splits, "train": kept,
                                 "validation": [*data.splits.get("validation", ()), *left_out]})


def heads_with(heads: Mapping[str, tuple[str, ...]], background: str | None) -> dict[str, tuple[str, ...]]:
    """The heads, each with a label for background if none has it yet."""
    if background is None or any(background in labels for labels in heads.values()):
        return {head: tuple(labels) for head, labels in heads.items()}
    return {head: (*labels, background) for head, labels in heads.items()}


class SegmentStream:
    """An endless stream for one row of a training batch; frames have the index of a pool's truth as their label.
    strict: the first segment that cannot be read ends it."""

    def __init__(self, pool: Pool, size_hw: tuple[int, int], rate: float, rng: np.random.Generator,
                 frames_of: FramesOf, strength: float = 1.0, strict: bool = False) -> None:
        self._pool, self._size_hw, self._rate, self._rng = pool, size_hw, rate, rng
        self._frames_of, self._strength, self._give_up = frames_of, strength, 1 if strict else GIVE_UP
        self._labels = list(pool.by_label)
        self._gesture = self._unread = 0

    def frames(self) -> Iterator[Labelled]:
        """Frames of one section after another, for ever. Raises DatasetError when segment after segment is unreadable;
            single ones are named in the log and skipped."""
        while True:
            segment = one_of(self._pool.by_label[one_of(self._labels, self._rng)], self._rng)
            yield from self._section(segment, *self._around(segment))

    def sparse(self, idle_s: tuple[float, float] = (4.0, 8.0)) -> Iterator[Labelled]:
        """Frames of single segments, each after a long time without any, for ever. Raises DatasetError as `frames`
        does, and for a pool without such time."""
        pool, rng = self._pool, self._rng
        actions = [label for label in self._labels if label != pool.background]
        if not pool.gaps or not actions:
            raise DatasetError("recordings without actions, or without time in which nothing is done",
                               "both, or a background label",
                               "use recordings that are longer than their segments")
        while True:
            left = round(rng.uniform(*idle_s) * self._rate)
            while left > 0:
                gap = one_of(pool.gaps, rng)
                stop_s = gap.start_s + left / self._rate if gap.stop_s is None else gap.stop_s
                start_s = max(gap.start_s, rng.uniform(gap.start_s, stop_s) - left / self._rate)
                for frame in islice(self._section(gap, start_s, min(stop_s, start_s + left / self._rate)), left):
                    left -= 1
                    yield frame
            segment = one_of(pool.by_label[one_of(actions, rng)], rng)
            yield from self._section(segment, segment.start_s, segment.stop_s)

    def _around(self, segment: Segment) -> tuple[float, float | None]:
        """From when to when a section shows a segment: with the time around it where recordings are longer, and not
        all of a very long one."""
        rng, start_s, stop_s = self._rng, segment.start_s, segment.stop_s
        if self._pool.untrimmed:
            start_s = max(0.0, start_s - rng.uniform(0.3, 3.0))
            stop_s = None if stop_s is None else stop_s + rng.uniform(0.3, 2.5)
        if stop_s is not None and stop_s - start_s > LONGEST_S:
            start_s = rng.uniform(start_s, stop_s - LONGEST_S)
            stop_s = start_s + LONGEST_S
        return start_s, stop_s

    def _section(self, segment: Segment, start_s: float, stop_s: float | None) -> Iterator[Labelled]:
        """A part of a segment's recording at a random speed; nothing where it is unreadable."""
        rng = self._rng
        margin_hw = (round(self._size_hw[0] * MARGIN), round(self._size_hw[1] * MARGIN))
        try:
            images, times_s = self._frames_of(replace(segment, start_s=start_s, stop_s=stop_s), FINER * self._rate,
                                              margin_hw)
        except DatasetError as error:
            self._unread += 1
            if self._unread == self._give_up:
                raise
            log.warning("skipped: %s", error)
            return iter(())
        self._unread = 0
        speed = float(np.exp(rng.uniform(np.log(0.75), np.log(1.5))))
        grid_s = np.arange(times_s[0] + rng.uniform(0, 0.5) / self._rate, times_s[-1] + 0.5 / self._rate,
                           speed / self._rate)
        picks = frames_at(times_s, grid_s)
        end_s = times_s[-1] + 0.5 / self._rate
        around = [one for one in self._pool.recordings[segment.media.path] if one is not segment
                  and one.start_s < end_s and (one.stop_s or end_s) > times_s[0]]
        shown = [segment, *around]
        turned = [self._pool.mirror(one.labels) for one in shown]
        mirror = rng.random() < 0.5 and None not in turned
        truths = [self._pool.truth((mirrored or {}) if mirror else one.labels)
                  for one, mirrored in zip(shown, turned, strict=True)]
        change = Augmentation(rng, self._size_hw, self._strength, mirror)
        return self._told(images[picks], times_s[picks], list(zip(shown, truths, strict=True)), end_s, change)

    def _told(self, images: NDArray[np.uint8], times_s: NDArray[np.float64], shown: list[tuple[Segment, int]],
              end_s: float, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Iterator[Labelled]:
        first, self._gesture = self._gesture, self._gesture + len(shown)
        since = GRACE_FRAMES
        for image, time_s in zip(images, times_s, strict=True):
            here = [(k, one, truth) for k, (one, truth) in enumerate(shown)
                    if one.start_s <= time_s < (end_s if one.stop_s is None else one.stop_s)]
            picture = change(image)
            if here and here[0][2] != self._pool.background:
                k, one, truth = here[0]
                stop_s = end_s if one.stop_s is None else one.stop_s
                since = 0
                yield Labelled(picture, truth, float((time_s - one.start_s) / max(stop_s - one.start_s, 1e-6)),
                               gesture=first + k, source=one.id)
            elif self._pool.background is not None:
                yield Labelled(picture, self._pool.background, weight=float(since >= GRACE_FRAMES),
                               source=shown[0][0].id)
                since += 1
