"""Endless, labelled training streams: what a head camera sees over hours, at the model's frame rate.

A stream is a chain of sections, drawn at random:

    real      a recorded gesture, with idle time before and after it, at a random speed
    rendered  a simulated performance over a rendered room, a photograph or a frame of footage
    idle      footage of daily work, other hand motion; rendered hands that draw, and draw no gesture

Every frame carries its truth. Nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.datasets.egogestar import MIRRORED, UNCLASSIFIED
from engines.datasets.footage import Footage, frames_at
from engines.synthetic import BACKGROUND, IDLE, Scene, Script, stroke, distinct_stray
from engines.training.stream_augment import Augmentation

Image = NDArray[np.uint8]
T = TypeVar("T")
REVERSED = {"left": "right", "right": "left", "up": "down", "down": "up"}
IDLE_SHARE, BUSY_SHARE = 0.13, 0.22  # of sections: footage without gestures, rendered hands without them
NEVER_S = (60.0, 90.0)  # until the first gesture of a rendered idle section: longer than any
BUSY = {"leave": 0.15, "rest": 0.1, "roam": 0.2, "stray": 0.45, "hover": 0.1}  # hands of these sections, see `Script`
MOMENT_S = (0.6, 3.0)  # what gestures last
JOINED_WITHIN_S = 10.0  # of the beginning of a rendered idle section
GRACE_FRAMES = 2  # frames after a gesture's end in which either answer is right


@dataclass(frozen=True, slots=True)
class Labelled:
    """One frame and its truth.

    label: index into the labels, background included; progress: share of the gesture already seen (0..1);
    weight: how much this frame's answer counts; gesture: number of the gesture in its stream, -1 outside;
    tip_xy: fingertip as a fraction of the frame, or None where unknown or out of view; source: the recording it is
    of, where recordings have names.
    """

    image_bgr: Image
    label: int
    progress: float = 0.0
    weight: float = 1.0
    gesture: int = -1
    tip_xy: tuple[float, float] | None = None
    source: str = ""


@dataclass(frozen=True)
class Material:
    """What streams are made from. Footage is decoded larger than the input, to leave room for augmentation.

    strokes: label -> recorded finger strokes; idle: footage without gestures.
    """

    gestures: Sequence[Footage]
    idle: Sequence[Footage]
    strokes: dict[str, list[NDArray[np.float32]]]
    backgrounds: Sequence[Image] = field(default_factory=list)


class _Performance(NamedTuple):
    """A recorded gesture: its images [N, H, W, 3] in the order in which they are shown, its label then, and how each
    is changed."""

    footage: Footage
    images: Image
    label: str
    seen: Callable[[Image], Image]


class Stream:
    """An endless stream for one row of a training batch. `rendered_share`: rendered among gesture sections."""

    def __init__(self, material: Material, labels: Sequence[str], size_hw: tuple[int, int], rate: float,
                 rng: np.random.Generator, rendered_share: float, strength: float = 1.0) -> None:
        self._material, self._labels, self._size_hw, self._rate = material, tuple(labels), size_hw, rate
        self._rng, self._rendered_share, self._strength = rng, rendered_share, strength
        self._index = {label: i for i, label in enumerate(labels)}
        self._background = self._index[BACKGROUND]
        self._drawn = tuple(label for label in labels if label != BACKGROUND)
        self._gesture = 0
        self._by_label: dict[str, list[Footage]] = {}
        for footage in material.gestures:
            self._by_label.setdefault(footage.label, []).append(footage)

    def frames(self) -> Iterator[Labelled]:
        """Frames of one section after another, for ever."""
        while True:
            kind = self._rng.random()
            if kind < IDLE_SHARE and self._material.idle:
                yield from self._idle(self._rng.uniform(1.5, 6.0))
            elif IDLE_SHARE <= kind < IDLE_SHARE + BUSY_SHARE:
                yield from self._rendered(self._rng.uniform(4.0, 12.0), NEVER_S, BUSY)
            elif self._rng.random() < self._rendered_share or not self._by_label:
                yield from self._rendered(self._rng.uniform(4.0, 16.0))
            else:
                yield from self._real()

    def sparse(self, idle_s: tuple[float, float] = (4.0, 8.0)) -> Iterator[Labelled]:
        """Frames of single gestures in long idle time, for ever."""
        while True:
            if self._material.idle:
                yield from self._idle(self._rng.uniform(*idle_s))
            if self._rng.random() < self._rendered_share or not self._by_label:
                yield from self._rendered(idle_s[1] + 4.0, idle_s)
            else:
                yield from self._real()

    def trimmed(self, count: int, idle_share: float = 0.0) -> Iterator[Labelled]:
        """Frames of single gestures, for ever: of each gesture `count`, one from each of as many equal parts of it. In
        place of an `idle_share` of them, as many frames of idle time."""
        while True:
            when = (np.arange(count) + self._rng.uniform(0, 1, count)) / count
            if idle_share and self._rng.random() < idle_share:
                yield from self._moment(self._rng.uniform(*MOMENT_S), when)
            elif self._rng.random() < self._rendered_share or not self._by_label:
                yield from self._rendered_gesture(when)
            else:
                performance = self._performance()
                for k, frame in enumerate((when * len(performance.images)).astype(int)):
                    yield Labelled(performance.seen(performance.images[frame]), self._index[performance.label],
                                   (k + 1) / count, gesture=self._gesture)
            self._gesture += 1

    def _performance(self) -> _Performance:
        """A recorded gesture as it will be seen: perhaps mirrored, run backwards, in another place or light."""
        rng = self._rng
        label = str(rng.choice(list(self._by_label)))
        footage = one_of(self._by_label[label], rng)
        images, truth, mirror = footage.images, label, False
        if REVERSED.get(truth) in self._index and rng.random() < 0.25:
            images, truth = images[::-1], REVERSED[truth]
        if MIRRORED.get(truth) in self._index and rng.random() < 0.5:
            mirror, truth = True, MIRRORED[truth]
        backdrop = footage.median
        change = self._change(mirror)
        threshold = rng.uniform(14, 24)
        other = None
        if self._material.backgrounds and rng.random() < 0.3:
            other = one_of(self._material.backgrounds, rng)

        def seen(image: Image) -> Image:
            return change(image if other is None else transplant(image, backdrop, other, threshold))

        return _Performance(footage, images, truth, seen)

    def _real(self) -> Iterator[Labelled]:
        """A recorded gesture in its surroundings."""
        rng = self._rng
        footage, images, truth, seen = self._performance()
        if rng.random() < 0.65:
            yield from self._before_or_after(images[0], footage.median, seen)
        speed = float(np.exp(rng.uniform(np.log(0.65), np.log(1.5))))
        picks = self._picks(footage, speed)
        for k, frame in enumerate(picks):
            yield Labelled(seen(images[frame]), self._index[truth], (k + 1) / len(picks),
                           gesture=self._gesture)
        self._gesture += 1
        if rng.random() < 0.75:
            yield from self._grace(self._before_or_after(images[-1], footage.median, seen))

    def _picks(self, footage: Footage, speed: float) -> list[int]:
        """Which frames a camera clock at the model's rate would take from footage played at `speed`."""
        start = self._rng.uniform(0, 0.5) / self._rate
        grid_s = np.arange(start, max(footage.duration_s / speed, 3 / self._rate), 1 / self._rate) * speed
        return [int(i) for i in frames_at(footage.times_s, grid_s)]

    def _before_or_after(self, still: Image, backdrop: Image, seen: Callable[[Image], Image]) -> Iterator[Labelled]:
        """Idle time around a recorded gesture: the hand waits, or is away, or something else happens."""
        kind = self._rng.choice(["wait", "empty", "elsewhere"], p=[0.35, 0.35, 0.3])
        if kind == "elsewhere" and self._material.idle:
            yield from self._idle(self._rng.uniform(0.6, 3.0))
            return
        image, longest = (still, 1.2) if kind == "wait" else (backdrop, 2.5)
        for _ in range(self._count(self._rng.uniform(0.25, longest))):
            yield Labelled(seen(image), self._background)

    def _grace(self, frames: Iterator[Labelled]) -> Iterator[Labelled]:
        for k, frame in enumerate(frames):
            yield Labelled(frame.image_bgr, frame.label, weight=float(k >= GRACE_FRAMES))

    def _idle(self, seconds: float) -> Iterator[Labelled]:
        """Footage without gestures: daily work, other hand motion."""
        rng = self._rng
        footage = one_of(self._material.idle, rng)
        change = self._change(mirror=rng.random() < 0.5)
        picks = self._picks(footage, float(np.exp(rng.uniform(-0.4, 0.4))))
        first = int(rng.integers(max(1, len(picks) - self._count(seconds) + 1)))
        for frame in picks[first:first + self._count(seconds)]:
            yield Labelled(change(footage.images[frame]), self._background)

    def _rendered(self, seconds: float, idle_s: tuple[float, float] = (0.6, 3.0),
                  idle: Mapping[str, float] = IDLE) -> Iterator[Labelled]:
        """A simulated performance, joined at a random moment."""
        rng = self._rng
        scene, script = self._scene(idle_s, idle)
        speed = float(np.exp(rng.uniform(np.log(0.75), np.log(1.5))))
        start = rng.uniform(0, 3.0)
        light = self._change(mirror=False)
        before = self._gesture
        for k in range(self._count(seconds)):
            t_s = start + k * speed / self._rate
            image, tip = self._drawn_at(t_s, scene, script, light)
            spans = script.spans(t_s + 1e-6)
            span = spans[-1] if spans else None
            if span is not None and span.ended_at >= t_s:
                progress = (t_s - span.started_at) / (span.ended_at - span.started_at)
                self._gesture = before + len(spans)
                yield Labelled(image, self._index[span.label], progress, gesture=self._gesture, tip_xy=tip)
            else:
                grace = span is not None and (t_s - span.ended_at) * self._rate / speed < GRACE_FRAMES
                yield Labelled(image, self._background, weight=float(not grace), tip_xy=tip)
        self._gesture += 1

    def _moment(self, seconds: float, when: NDArray[np.float64]) -> Iterator[Labelled]:
        """Idle time that lasts about as long as a gesture, at these shares of it."""
        rng = self._rng
        if self._material.idle and rng.random() < 0.5:
            footage = one_of(self._material.idle, rng)
            change = self._change(mirror=rng.random() < 0.5)
            first_s = rng.uniform(0, max(0.0, footage.duration_s - seconds))
            for frame in frames_at(footage.times_s, first_s + seconds * when):
                yield Labelled(change(footage.images[frame]), self._background)
            return
        scene, script = self._scene(NEVER_S, BUSY)
        light = self._change(mirror=False)
        for t_s in rng.uniform(0, JOINED_WITHIN_S) + seconds * when:
            image, tip = self._drawn_at(float(t_s), scene, script, light)
            yield Labelled(image, self._background, tip_xy=tip)

    def _rendered_gesture(self, when: NDArray[np.float64]) -> Iterator[Labelled]:
        """A simulated gesture at these shares of it."""
        scene, script = self._scene((0.6, 1.5), IDLE)
        light = self._change(mirror=False)
        span = script.spans(3.0)[0]
        for k, t_s in enumerate(span.started_at + when * (span.ended_at - span.started_at)):
            image, tip = self._drawn_at(float(t_s), scene, script, light)
            yield Labelled(image, self._index[span.label], (k + 1) / len(when), gesture=self._gesture, tip_xy=tip)

    def _scene(self, idle_s: tuple[float, float], idle: Mapping[str, float]) -> tuple[Scene, Script]:
        """A place, and what a hand does there."""
        rng = self._rng
        backdrop = None
        if self._material.backgrounds and rng.random() < 0.6:
            backdrop = one_of(self._material.backgrounds, rng)
            backdrop = np.ascontiguousarray(backdrop[:, ::-1]) if rng.random() < 0.5 else backdrop
        return Scene(rng, self._size_hw, backdrop), Script(
            rng, strokes=self._stroke, labels=self._drawn, idle_s=idle_s, idle=idle, strays=distinct_stray,
            aspect=self._size_hw[1] / self._size_hw[0])

    def _stroke(self, label: str, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
        """A recorded human stroke where there is one, a made one otherwise and sometimes."""
        made, duration_s = stroke(label, rng)
        recorded = self._material.strokes.get(label, [])
        if not recorded or rng.random() < 0.3:
            return made, duration_s
        points = one_of(recorded, rng).astype(np.float64)
        return points / max(float(np.ptp(points, axis=0).max()), 1.0), duration_s

    def _drawn_at(self, t_s: float, scene: Scene, script: Script,
                  light: Augmentation) -> tuple[Image, tuple[float, float] | None]:
        """What a performance looks like at a moment, and where its fingertip is, None where out of view."""
        pose = script.pose(t_s)
        seen = pose.tip_xy is not None and all(0 <= v <= 1 for v in pose.tip_xy)
        return light.light(scene.draw(pose, t_s)), pose.tip_xy if seen else None

    def _change(self, mirror: bool) -> Augmentation:
        mixable = self._material.backgrounds
        mix = one_of(mixable, self._rng) if mixable else None
        if mix is not None:
            mix = mix[:: max(1, mix.shape[0] // self._size_hw[0]), :: max(1, mix.shape[1] // self._size_hw[1])]
            mix = np.ascontiguousarray(mix[:self._size_hw[0], :self._size_hw[1]])
            if mix.shape[:2] != self._size_hw:
                mix = None
        return Augmentation(self._rng, self._size_hw, self._strength, mirror, mix)

    def _count(self, seconds: float) -> int:
        return max(1, round(seconds * self._rate))


def transplant(image: Image, backdrop: Image, other: Image, threshold: float) -> Image:
    """Puts what differs from a clip's own background (the hand) before another one, with a soft edge."""
    difference = cv2.absdiff(image, backdrop).max(axis=-1).astype(np.float32)
    share = np.clip((difference - threshold) / 22.0, 0, 1)[..., None]
    mixed = image * share + other * (1 - share)
    return np.asarray(mixed).astype(np.uint8)


def one_of(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of them, each as likely."""
    return options[int(rng.integers(len(options)))]


def idle_of(footage: Sequence[Footage]) -> list[Footage]:
    """The clips of a gesture dataset that hold hand motion without a gesture."""
    return [one for one in footage if one.label == UNCLASSIFIED]

