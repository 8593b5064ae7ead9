"""How good a model is, measured through the very path that live use takes: sources, clock, recogniser, events.

    clips    each trimmed clip from a fresh stream; right when the last `window` score names its label
    stream   clips joined by stretches of idle footage; events are matched with the truth
    idle     footage without any gesture; every event is a false one
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from engines.errors import DatasetError
from engines.training import egogestar
from stream.events import UNKNOWN
from stream.frame import Event, Frame, Image, Prediction
from stream.recognizer import Recognizer
from stream.sources import open_source

Played = Generator[tuple[Image, float], None, float]  # frames; returns the time after the last one
CAMERA = "evaluation"
IOU = 0.3


@dataclass(frozen=True, slots=True)
class Truth:
    """A labelled recording, or a labelled stretch of a stream in seconds."""

    label: str
    started_at: float
    ended_at: float


@dataclass(frozen=True)
class Recording:
    """A video file and what it shows. kind: a group to report apart."""

    path: Path
    label: str
    kind: str = ""


@dataclass
class ClipReport:
    """Outcome of trimmed clips: (kind, true label, answer, probability of the true label) of each."""

    outcomes: list[tuple[str, str, str, float]] = field(default_factory=list)

    def accuracy(self, kind: str | None = None) -> float:
        """Share of clips (of one kind) whose last window score names the label."""
        chosen = [truth == answer for which, truth, answer, _ in self.outcomes if kind in (None, which)]
        return mean(chosen) if chosen else float("nan")

    def as_json(self) -> dict[str, Any]:
        kinds = sorted({kind for kind, *_ in self.outcomes if kind})
        wrong = [f"{truth} as {answer}" for _, truth, answer, _ in self.outcomes if truth != answer]
        return {"clips": len(self.outcomes), "accuracy": self.accuracy(),
                "by_kind": {kind: self.accuracy(kind) for kind in kinds}, "wrong": wrong}


@dataclass
class StreamReport:
    """Outcome of a continuous stream. delays_s: from each true end to the closing of the event that matches it;
    taken_back: events announced that closed as unknown; they are none of `events`."""

    truths: list[Truth]
    events: list[Event]
    matched: list[tuple[Truth, Event]]
    delays_s: list[float]
    seconds: float
    taken_back: int = 0

    @property
    def f1(self) -> float:
        """Event F1 at temporal IoU 0.3, label right."""
        total = len(self.truths) + len(self.events)
        return 2 * len(self.matched) / total if total else float("nan")

    @property
    def delay_s(self) -> float:
        """Median delay."""
        return median(self.delays_s) if self.delays_s else float("nan")

    @property
    def events_per_minute(self) -> float:
        return 60 * len(self.events) / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "gestures": len(self.truths), "events": len(self.events),
                "taken_back": self.taken_back, "matched": len(self.matched), "f1": self.f1, "delay_s": self.delay_s,
                "events_per_minute": self.events_per_minute}


@dataclass(frozen=True)
class Report:
    """The three reports of `evaluate`; stream and idle are None without idle footage."""

    clips: ClipReport
    stream: StreamReport | None
    idle: StreamReport | None

    def as_json(self) -> dict[str, Any]:
        return {name: part.as_json() for name, part in vars(self).items() if part is not None}


def evaluate(model: str, dataset: Path, *, fold: int = 0, idle: Sequence[Path] = (), engine: str = "auto",
             seed: int = 0) -> Report:
    """Evaluates a model on an EgoGestAR folder: all clips, or those of one fold, and a stream joined from them.

    Clips without a gesture are left out; idle: videos without gestures. Raises DatasetError when nothing is left.
    """
    recordings = [Recording(clip.path, clip.label, clip.source) for clip in egogestar.clips(dataset)
                  if clip.label != egogestar.UNCLASSIFIED and fold in (0, clip.fold)]
    if not recordings:
        raise DatasetError(f"fold {fold} of {dataset}, which has no clips", "a fold with clips", "choose another fold")
    with Recognizer.open(model, engine=engine, slots=1) as recognizer:
        clips = evaluate_clips(recognizer, recordings, next(iter(recognizer.contract.heads)))
        if not idle:
            return Report(clips, None, None)
        frames, truths = joined(recordings, idle, seed)
        return Report(clips, evaluate_stream(recognizer, frames, truths),
                      evaluate_stream(recognizer, played_on(idle), []))


def evaluate_clips(recognizer: Recognizer, recordings: Iterable[Recording], head: str) -> ClipReport:
    """Runs every recording from a fresh stream."""
    report = ClipReport()
    for recording in recordings:
        last: Prediction | None = None
        for frame in _frames(recording.path):
            items = recognizer.push(frame.image_bgr, frame.captured_at, CAMERA)
            last = next((item for item in items if isinstance(item, Prediction)), last)
        recognizer.flush(CAMERA)
        if last is None:
            raise DatasetError(f"{recording.path}, which gave no prediction", "a video of a few frames",
                               "leave it out of the dataset")
        window = last.heads[head].window
        report.outcomes.append((recording.kind, recording.label, window[0][0],
                                dict(window).get(recording.label, 0.0)))
    return report


def evaluate_stream(recognizer: Recognizer, frames: Iterable[tuple[Image, float]],
                    truths: Sequence[Truth]) -> StreamReport:
    """Runs one continuous stream of (image, seconds) and matches its events with the truth."""
    closed: list[tuple[Event, float]] = []
    first = at = 0.0
    for k, (image, at) in enumerate(frames):
        first = at if k == 0 else first
        closed += [(item, at) for item in recognizer.push(image, at, CAMERA)
                   if isinstance(item, Event) and not item.open]
    closed += [(event, at) for event in recognizer.flush(CAMERA)]
    events = [event for event, _ in closed if event.label != UNKNOWN]
    matched = match(truths, events)
    announced = {id(event): when for event, when in closed}
    delays = [announced[id(event)] - truth.ended_at for truth, event in matched]
    return StreamReport(list(truths), events, matched, delays, at - first, len(closed) - len(events))


def match(truths: Sequence[Truth], events: Sequence[Event], iou: float = IOU) -> list[tuple[Truth, Event]]:
    """Pairs of truth and event with the same label that overlap enough, best overlap first, each used once."""
    pairs = sorted(((_iou(truth, event), i, j) for i, truth in enumerate(truths) for j, event in enumerate(events)
                    if truth.label == event.label), reverse=True)
    used_truths: set[int] = set()
    used_events: set[int] = set()
    matched = []
    for overlap, i, j in pairs:
        if overlap >= iou and i not in used_truths and j not in used_events:
            used_truths.add(i)
            used_events.add(j)
            matched.append((truths[i], events[j]))
    return matched


def joined(recordings: Sequence[Recording], idle: Sequence[Path], seed: int,
           idle_s: tuple[float, float] = (2.0, 5.0)) -> tuple[Iterator[tuple[Image, float]], list[Truth]]:
    """One stream of recordings in random order with stretches of idle footage before, between and after them.

    Returns (frames, truths); `truths` fills while the frames are read.
    """
    truths: list[Truth] = []

    def play() -> Iterator[tuple[Image, float]]:
        rng = np.random.default_rng(seed)
        at = 0.0
        for i in rng.permutation(len(recordings)):
            at = yield from _idle_stretch(idle, rng, rng.uniform(*idle_s), at)
            started = at
            at = yield from _played(recordings[i].path, at)
            truths.append(Truth(recordings[i].label, started, at))
        yield from _idle_stretch(idle, rng, rng.uniform(*idle_s), at)

    return play(), truths


def played_on(paths: Sequence[Path]) -> Iterator[tuple[Image, float]]:
    """Videos one after another as one stream."""
    at = 0.0
    for path in paths:
        at = yield from _played(path, at)


def _played(path: Path, at: float, start_s: float = 0.0, seconds: float = float("inf")) -> Played:
    """A part of a video, its first frame at time `at`; returns the time after its last frame."""
    step, last = 1 / 30, at
    for frame in _frames(path):
        if frame.captured_at < start_s:
            continue
        when = at + frame.captured_at - start_s
        if when - at > seconds:
            break
        step = when - last if when > last else step
        last = when
        yield frame.image_bgr, when
    return last + step


def _idle_stretch(idle: Sequence[Path], rng: np.random.Generator, seconds: float, at: float) -> Played:
    path = idle[int(rng.integers(len(idle)))]
    return (yield from _played(path, at, float(rng.uniform(0, 4.0)), seconds))


def _frames(path: Path) -> Iterator[Frame]:
    with open_source(str(path), camera=CAMERA) as source:
        for item in source.frames():
            if isinstance(item, Frame):
                yield item


def _iou(truth: Truth, event: Event) -> float:
    overlap = min(truth.ended_at, event.ended_at) - max(truth.started_at, event.started_at)
    union = max(truth.ended_at, event.ended_at) - min(truth.started_at, event.started_at)
    return max(overlap, 0.0) / union if union > 0 else 0.0
