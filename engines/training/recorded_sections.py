"""Sections cut from recordings: an action in its surroundings, and time in which nothing is done."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Segment
from engines.datasets.decode import MAX_UNREADABLE, frames_at
from engines.errors import DatasetError
from engines.training.sections import GRACE_FRAMES, Image, LabelledFrame, Sections, choose
from engines.training.sources import Labels, TrainingSources

log = logging.getLogger("gatestream.training")

LONGEST_S = 30.0  # more of a segment than this is not shown at a time


class _Span(NamedTuple):
    """When a segment is shown, in seconds of the recording as it is played, and its truth then."""

    start_s: float
    stop_s: float
    truth: int
    source: str


class _Excerpt(NamedTuple):
    """A part of a recording as it will be shown."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    times_s: NDArray[np.float64]  # [N], in the recording as it is played
    duration_s: float
    spans: Sequence[_Span]  # what they show, the segment drawn first
    change: Callable[[Image], Image]  # camera, light, and perhaps another place
    empty: Image | None  # the place without the hand, of trimmed clips


class RecordedSections(Sections):
    """Recorded actions, drawn so that every label comes as often, and idle time.

    strict: stop at the first segment that cannot be read. Else single ones are named in the log and skipped: a section
    is empty then; segment after segment raises the last one's DatasetError.
    """

    def __init__(self, sources: TrainingSources, size_hw: tuple[int, int], rate: float, rng: np.random.Generator,
                 strength: float = 1.0, strict: bool = False) -> None:
        super().__init__(sources, size_hw, rate, rng, strength)
        self._labels, self._unread, self._give_up = list(sources.actions), 0, 1 if strict else MAX_UNREADABLE
        self._trimmed = not sources.untrimmed

    def action(self, alone: bool = False) -> Iterator[LabelledFrame]:
        """An action at a random speed, with the time before and after it. alone: without that of a longer recording.

        Of a trimmed clip the hand waits then, or is away, or something else happens.
        """
        rng, segment = self._rng, self._choose()
        excerpt = self._read(segment, *((segment.start_s, segment.stop_s) if self._trimmed or alone
                                     else self._around(segment)))
        if excerpt is None:
            return
        pauses = self._trimmed and self._sources.background_label is not None
        if pauses and rng.random() < 0.65:
            yield from self._pause(excerpt, excerpt.images[0])
        speed = self._speed(0.65, 1.5)
        grid_s = np.arange(rng.uniform(0, 0.5), max(excerpt.duration_s / speed * self._rate, 3)) * speed / self._rate
        yield from self._show(excerpt, excerpt.times_s[0] + grid_s)
        if pauses and rng.random() < 0.75:
            for k, frame in enumerate(self._pause(excerpt, excerpt.images[-1])):
                yield frame._replace(weight=float(k >= GRACE_FRAMES))

    def whole_action(self, when: NDArray[np.float64]) -> Iterator[LabelledFrame]:
        """An action at these shares of it, 0..1."""
        segment = self._choose()
        excerpt = self._read(segment, segment.start_s, segment.stop_s)
        if excerpt is not None:
            yield from self._show(excerpt, excerpt.times_s[(when * len(excerpt.times_s)).astype(int)])

    def idle(self, seconds: float, when: NDArray[np.float64] | None = None) -> Iterator[LabelledFrame]:
        """Time without actions: so many seconds, or less where a stretch is shorter. when: at these shares of the
        seconds, 0..1, not at the model's rate."""
        speed = self._speed(0.67, 1.49) if when is None else 1.0
        shown_s = seconds * speed
        segment = choose(self._sources.idle, self._rng)
        start_s, stop_s = segment.start_s, segment.stop_s
        if stop_s is not None:
            start_s = self._rng.uniform(start_s, max(start_s, stop_s - shown_s))
            stop_s = min(stop_s, start_s + shown_s)
        excerpt = self._read(segment, start_s, stop_s)
        if excerpt is None:
            return
        first_s = self._rng.uniform(0, max(0.0, excerpt.duration_s - shown_s))
        grid_s = first_s + (np.arange(self._frame_count(seconds)) * speed / self._rate if when is None
                            else shown_s * when)
        if when is None:
            grid_s = grid_s[grid_s < excerpt.duration_s]
        yield from self._show(excerpt, excerpt.times_s[0] + grid_s)

    def _choose(self) -> Segment:
        return choose(self._sources.actions[choose(self._labels, self._rng)], self._rng)

    def _around(self, segment: Segment) -> tuple[float, float | None]:
        """From when to when a longer recording is shown around a segment; not all of a very long one."""
        start_s = max(0.0, segment.start_s - self._rng.uniform(0.3, 3.0))
        stop_s = None if segment.stop_s is None else segment.stop_s + self._rng.uniform(0.3, 2.5)
        if stop_s is not None and stop_s - start_s > LONGEST_S:
            start_s = self._rng.uniform(start_s, stop_s - LONGEST_S)
            stop_s = start_s + LONGEST_S
        return start_s, stop_s

    def _read(self, segment: Segment, start_s: float, stop_s: float | None) -> _Excerpt | None:
        """Reads a part of a segment's recording, and draws how it will be shown; None where it is unreadable."""
        sources, rng = self._sources, self._rng
        try:
            images, times_s = sources.read(segment, self._size_hw, start_s, stop_s)
        except DatasetError as error:
            self._unread += 1
            if self._unread == self._give_up:
                raise
            log.warning("skipped: %s", error)
            return None
        self._unread = 0
        step_s = (times_s[-1] - times_s[0]) / max(1, len(times_s) - 1)
        begin_s, end_s = float(times_s[0]), float(times_s[-1] + step_s)
        shown = [segment, *(one for one in sources.recordings[segment.media.path] if one is not segment
                            and one.start_s < end_s and (one.stop_s or end_s) > begin_s)]
        labels = [one.labels for one in shown]
        times = [(one.start_s, end_s if one.stop_s is None else one.stop_s) for one in shown]
        backwards: list[Labels] = [turned for one in labels if (turned := sources.reverse(one)) is not None]
        if len(backwards) == len(shown) and rng.random() < 0.25:
            images, times_s, labels = images[::-1], begin_s + times_s[-1] - times_s[::-1], backwards
            times = [(begin_s + end_s - stop_s, begin_s + end_s - start_s) for start_s, stop_s in times]
        mirrored = [turned for one in labels if (turned := sources.mirror(one)) is not None]
        mirror = len(mirrored) == len(shown) and bool(rng.random() < 0.5)
        truths = map(sources.truth, mirrored if mirror else labels)
        spans = [_Span(*time_s, truth, one.id) for time_s, truth, one in zip(times, truths, shown, strict=True)]
        change: Callable[[Image], Image] = self._augmentation(mirror)
        empty = None
        if self._trimmed and spans[0].truth != sources.background:
            empty = sources.median(segment, images)
            other = self._other_place() if rng.random() < 0.3 else None
            if other is not None:
                change = _transplant(empty, other, rng.uniform(14, 24), change)
        return _Excerpt(images, times_s, end_s - begin_s, spans, change, empty)

    def _show(self, excerpt: _Excerpt, when_s: NDArray[np.float64]) -> Iterator[LabelledFrame]:
        """What is seen at these moments, with what covers their time, else background."""
        background, since = self._sources.background, GRACE_FRAMES
        for n, pick in enumerate(frames_at(excerpt.times_s, when_s)):
            time_s, image = float(excerpt.times_s[pick]), excerpt.change(excerpt.images[pick])
            here = [(k, span) for k, span in enumerate(excerpt.spans)
                    if span.start_s <= time_s < span.stop_s and span.truth != background]
            if here:
                k, span = here[0]
                since = 0
                progress = (n + 1) / len(when_s) if self._trimmed else \
                    (time_s - span.start_s) / (span.stop_s - span.start_s)
                yield LabelledFrame(image, span.truth, progress, gesture=k, source=span.source)
            else:
                counts = float(since >= GRACE_FRAMES)
                yield LabelledFrame(image, background, weight=counts, source=excerpt.spans[0].source)
                since += 1

    def _pause(self, excerpt: _Excerpt, still: Image) -> Iterator[LabelledFrame]:
        """Idle time beside a trimmed clip: the hand waits, or is away, or something else happens."""
        kind = self._rng.choice(["wait", "empty", "elsewhere"], p=[0.35, 0.35, 0.3])
        if kind == "elsewhere" and self._sources.idle:
            yield from self.idle(self._rng.uniform(0.6, 3.0))
            return
        image, longest_s = (excerpt.empty, 2.5) if kind != "wait" and excerpt.empty is not None else (still, 1.2)
        for _ in range(self._frame_count(self._rng.uniform(0.25, longest_s))):
            yield LabelledFrame(excerpt.change(image), self._sources.background, source=excerpt.spans[0].source)


def _transplant(empty: Image, other: Image, threshold: float, change: Callable[[Image], Image]
                ) -> Callable[[Image], Image]:
    """Puts what differs from an empty place (the hand) before another one, with a soft edge, before it is changed."""
    def transplant(image: Image) -> Image:
        difference = cv2.absdiff(image, empty).max(axis=-1).astype(np.float32)
        share = np.clip((difference - threshold) / 22.0, 0, 1)[..., None]
        return change((image * share + other * (1 - share)).astype(np.uint8))
    return transplant
