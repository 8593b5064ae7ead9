"""Sections of a training stream: cut from recordings, or of a rendered hand that performs.

Recorded ones show an action in its surroundings, and time in which nothing is done; a rendered hand performs over a
rendered room, or a place of a recording."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Segment
from engines.datasets.decode import MAX_UNREADABLE, frames_at
from engines.errors import DatasetError
from engines.synthetic import IDLE, LABELS, Pose, Scene, Script, distinct_stray, stroke
from engines.training.sources import MARGIN, Labels, TrainingSources
from engines.training.stream_augment import Augmentation, Image

log = logging.getLogger("gatestream.training")
T = TypeVar("T")

GRACE_FRAMES = 2  # frames after an action's end in which either answer is right
LONGEST_S = 30.0  # more of a recorded segment than this is not shown at a time
NEVER_S = (60.0, 90.0)  # until the first gesture of an idle performance: longer than any is shown
BUSY = {"leave": 0.15, "rest": 0.1, "roam": 0.2, "stray": 0.45, "hover": 0.1}  # hands of these, see `Script`
JOINED_WITHIN_S = 10.0  # of the beginning of an idle performance, for a moment of it


class LabelledFrame(NamedTuple):
    """One frame and its truth."""

    image_bgr: Image
    label: int  # index of a truth, see `TrainingSources`
    progress: float = 0.0  # share of the action already seen, 0..1
    weight: float = 1.0  # how much this frame's answer counts
    gesture: int = -1  # number of the action in its stream (in its section, until a stream counts it), -1 outside
    tip_xy: tuple[float, float] | None = None  # fingertip as a fraction of the frame, None where unknown or out of view
    source: str = ""  # the recording it is of


class Sections:
    """Makes sections of one stream: frames of `size_hw` at `rate` a second, decided by `rng`.
    strength: of the augmentation; 0 shows recordings as they are, but for mirrors."""

    def __init__(self, sources: TrainingSources, size_hw: tuple[int, int], rate: float, rng: np.random.Generator,
                 strength: float = 1.0, strict: bool = False) -> None:
        self._sources, self._size_hw, self._rate, self._rng, self._strength = sources, size_hw, rate, rng, strength
        self._unread, self._give_up = 0, 1 if strict else MAX_UNREADABLE
        self._labels, self._trimmed = list(sources.actions), not sources.untrimmed

    def _frame_count(self, seconds: float) -> int:
        return max(1, round(seconds * self._rate))

    def _speed(self, slowest: float, fastest: float) -> float:
        return float(np.exp(self._rng.uniform(np.log(slowest), np.log(fastest))))

    def _augmentation(self, mirror: bool = False) -> Augmentation:
        """One camera, light and lens; another place may shine through."""
        place = self._other_place()
        mix = None if place is None else np.ascontiguousarray(place[:self._size_hw[0], :self._size_hw[1]])
        return Augmentation(self._rng, self._size_hw, self._strength, mirror, mix)

    def _other_place(self) -> Image | None:
        """A place of another recording or a rendered one, larger than the input; None without any."""
        if not (self._sources.places and self._strength):
            return None
        segment = choose(self._sources.places, self._rng)
        if segment is not None:
            with suppress(DatasetError):  # it is named where it is to be shown itself
                return self._sources.place(segment, self._size_hw, self._rng)
        height, width = self._size_hw
        return Scene(self._rng, (round(height * MARGIN), round(width * MARGIN))).draw(Pose(None), 0.0)


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
    is empty then; segment after segment raises the last one's DatasetError."""

    def action(self, alone: bool = False) -> Iterator[LabelledFrame]:
        """An action at a random speed, with the time before and after it. alone: without that of a longer recording.
        Of a trimmed clip the hand waits then, or is away, or something else happens."""
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
        spans = [_Span(*time_s, sources.truth(own), one.id) for time_s, own, one in
                 zip(times, mirrored if mirror else labels, shown, strict=True)]
        change: Callable[[Image], Image] = self._augmentation(mirror)
        empty = None
        if self._trimmed and spans[0].truth != sources.background:
            empty = sources.median(segment, images)
            other = self._other_place() if rng.random() < 0.3 else None
            if other is not None:
                change = partial(_transplant, empty=empty, other=other, threshold=rng.uniform(14, 24), change=change)
        return _Excerpt(images, times_s, end_s - begin_s, spans, change, empty)

    def _show(self, excerpt: _Excerpt, when_s: NDArray[np.float64]) -> Iterator[LabelledFrame]:
        """What is seen at these moments, with what covers their time, else background."""
        background, since = self._sources.background, GRACE_FRAMES
        for n, pick in enumerate(frames_at(excerpt.times_s, when_s)):
            time_s, image = float(excerpt.times_s[pick]), excerpt.change(excerpt.images[pick])
            here = [k for k, span in enumerate(excerpt.spans)
                    if span.start_s <= time_s < span.stop_s and span.truth != background]
            if here:
                spans, since = [excerpt.spans[k] for k in (here if self._sources.multi_label else here[:1])], 0
                progress = (n + 1) / len(when_s) if self._trimmed else \
                    min((time_s - span.start_s) / (span.stop_s - span.start_s) for span in spans)
                yield LabelledFrame(image, self._sources.together([span.truth for span in spans]), progress,
                                    gesture=here[0], source=spans[0].source)
            else:
                yield LabelledFrame(image, background, weight=float(since >= GRACE_FRAMES),
                                    source=excerpt.spans[0].source)
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


def _transplant(image: Image, empty: Image, other: Image, threshold: float, change: Callable[[Image], Image]) -> Image:
    """Puts what differs from an empty place (the hand) before another one, with a soft edge, before it is changed."""
    difference = cv2.absdiff(image, empty).max(axis=-1).astype(np.float32)
    share = np.clip((difference - threshold) / 22.0, 0, 1)[..., None]
    return change((image * share + other * (1 - share)).astype(np.uint8))


class RenderedSections(Sections):
    """Rendered hands that draw the labels of the sources that can be drawn, and hands that draw none."""

    def performance(self, seconds: float, idle_s: tuple[float, float] = (0.6, 3.0),
                    idle: Mapping[str, float] = IDLE) -> Iterator[LabelledFrame]:
        """Gestures and time between them, joined at a random moment. idle_s, idle: see `Script`."""
        scene_and_script, step_s = self._set_scene(idle_s, idle), self._speed(0.75, 1.5) / self._rate
        times_s = self._rng.uniform(0, 3.0) + np.arange(self._frame_count(seconds)) * step_s
        return self._show(*scene_and_script, times_s, GRACE_FRAMES * step_s)

    def idle(self, seconds: float, when: NDArray[np.float64] | None = None) -> Iterator[LabelledFrame]:
        """Busy hands that draw no gesture. when: at these shares of the seconds, 0..1, not at the model's rate."""
        if when is None:
            return self.performance(seconds, NEVER_S, BUSY)
        return self._show(*self._set_scene(NEVER_S, BUSY), self._rng.uniform(0, JOINED_WITHIN_S) + seconds * when)

    def whole_action(self, when: NDArray[np.float64]) -> Iterator[LabelledFrame]:
        """A gesture at these shares of it, 0..1."""
        scene, script = self._set_scene((0.6, 1.5), IDLE)
        span = script.spans(3.0)[0]
        return self._show(scene, script, span.started_at + when * (span.ended_at - span.started_at))

    def _set_scene(self, idle_s: tuple[float, float], idle: Mapping[str, float]) -> tuple[Scene, Script]:
        """A place, and what a hand does there."""
        rng, size_hw = self._rng, self._size_hw
        backdrop = self._other_place() if rng.random() < 0.6 else None
        if backdrop is not None and rng.random() < 0.5:
            backdrop = np.ascontiguousarray(backdrop[:, ::-1])
        return Scene(rng, size_hw, backdrop), Script(
            rng, strokes=self._stroke, labels=tuple(self._sources.drawable) or LABELS, idle_s=idle_s, idle=idle,
            strays=distinct_stray, aspect=size_hw[1] / size_hw[0])

    def _show(self, scene: Scene, script: Script, times_s: NDArray[np.floating],
              grace_s: float = 0.0) -> Iterator[LabelledFrame]:
        """What a performance looks like at these moments."""
        light = self._augmentation()
        for t_s in times_s.tolist():
            pose = script.pose(t_s)
            tip = pose.tip_xy if pose.tip_xy is not None and all(0 <= v <= 1 for v in pose.tip_xy) else None
            image = light.change_light(scene.draw(pose, t_s))
            spans = script.spans(t_s + 1e-6)
            span = spans[-1] if spans else None
            if span is not None and span.ended_at >= t_s:
                progress = (t_s - span.started_at) / (span.ended_at - span.started_at)
                yield LabelledFrame(image, self._sources.drawable[span.label], progress, gesture=len(spans) - 1,
                                    tip_xy=tip)
            else:
                grace = span is not None and t_s - span.ended_at < grace_s
                yield LabelledFrame(image, self._sources.background, weight=float(not grace), tip_xy=tip)

    def _stroke(self, label: str, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
        """A recorded human stroke where there is one, a made one otherwise and sometimes."""
        made, duration_s = stroke(label, rng)
        recorded = self._sources.strokes.get(label, ())
        if not len(recorded) or rng.random() < 0.3:
            return made, duration_s
        points = choose(recorded, rng).astype(np.float64)
        return points / max(float(np.ptp(points, axis=0).max()), 1.0), duration_s


def choose(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of them, each as likely."""
    return options[int(rng.integers(len(options)))]
