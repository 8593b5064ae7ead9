"""The performance: where the fingertip is at any time, and what it is truly drawing.

    idle ─► approach ─► hover ─► stroke ─► hover ─► idle ─► ...

Only `stroke` is the gesture; everything else is background."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.synthetic.hand import POSTURES, Posture
from engines.synthetic.strokes import LABELS, Points, StraySource, StrokeSource, resembles_gesture, stray, stroke

Range = tuple[float, float]

# What a hand does between gestures: shares of goings away, rests, ways to somewhere, motion like a gesture, and waits.
IDLE: dict[str, float] = {"leave": 0.3, "rest": 0.15, "roam": 0.25, "stray": 0.2, "hover": 0.1}
CALM_IDLE: dict[str, float] = {"leave": 0.5, "rest": 0.2, "roam": 0.2, "hover": 0.1}
APPROACH_S: Range = (0.2, 0.8)  # to reach the start of a stroke
HOVER_S: Range = (0.0, 0.6)  # of waiting, before every other stroke and after every other
BOX: Range = (0.25, 0.7)  # longer side of a stroke as a fraction of the frame
BOTTOM = 0.84  # its lowest point, as a fraction of the frame
ANYWHERE = (0.12, 0.1), (0.9, 0.95)  # where an idle hand goes
AWAY_SHARE = 0.5  # how often a hand that is away stays away for a while
# The same where gestures are shown deliberately: the hand waits before each stroke, and leaves right after it.
SHOWN_FIRST_S: Range = (1.6, 2.4)  # from the beginning to the first stroke
SHOWN_HOVER_S: Range = (0.2, 0.4)
SHOWN_LEAVE_S: Range = (0.25, 0.4)
SHOWN_BOX: Range = (0.45, 0.65)
SHOWN_BOTTOM = 0.77
SHOWN_AWAY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Span:
    """A gesture and its true times in seconds: first to last motion of the stroke."""

    label: str
    started_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Pose:
    """The hand at one moment."""

    tip_xy: tuple[float, float] | None  # fingertip, fractions of the frame; may lie outside 0..1; None: no hand is near
    posture: Posture = "pointing"
    angle: float = 0.0  # extra tilt of the hand, radians, clockwise
    velocity_xy: tuple[float, float] = (0.0, 0.0)  # of the fingertip, fractions of the frame per second


@dataclass(frozen=True, slots=True)
class _Part:
    """One stretch of the performance; `path` is evenly spaced in time, None when the hand is away."""

    start: float
    end: float
    path: Points | None
    posture: Posture
    angle_from: float
    angle_to: float

    def tip(self, t_s: float) -> Points:
        assert self.path is not None
        u = min(max((t_s - self.start) / max(self.end - self.start, 1e-9), 0.0), 1.0) * (len(self.path) - 1)
        i = min(int(u), len(self.path) - 2)
        return np.asarray(self.path[i] + (u - i) * (self.path[i + 1] - self.path[i]))


class Script:
    """An endless performance, decided by `rng` alone: asking in other steps changes nothing.
    strokes: (label, rng) -> (points_xy [N, 2] in any unit, evenly spaced in time, duration_s);
    labels: the gestures to draw, all equally often; idle_s: time between two strokes (at least the approach);
    strays: as strokes, without the label: motion that is no gesture; idle: shares of what a hand does between gestures;
    deliberate: the gestures are shown to the camera rather than made in passing; aspect: frame width / height."""

    def __init__(self, rng: np.random.Generator, strokes: StrokeSource = stroke, labels: Sequence[str] = LABELS,
                 idle_s: Range = (1.5, 5.0), strays: StraySource = stray, idle: Mapping[str, float] = IDLE,
                 deliberate: bool = False, aspect: float = 4 / 3) -> None:
        self._rng, self._strokes, self._strays, self._labels = rng, strokes, strays, tuple(labels)
        self._idle_s, self._deliberate, self._aspect = idle_s, deliberate, aspect
        self._actions, self._shares = list(idle), np.array(list(idle.values())) / sum(idle.values())
        self._parts: deque[_Part] = deque()
        self._spans: list[Span] = []
        self._labels_left: list[str] = []
        self._now = self._angle = 0.0
        self._tip: Points | None = None  # None: the hand is away
        self._posture: Posture = "pointing"
        self._tremor = rng.uniform(0.0, 0.0025)
        self._tremor_hz, self._tremor_phase = rng.uniform(2.0, 7.0, 2), rng.uniform(0, 2 * np.pi, 2)

    def pose(self, t_s: float) -> Pose:
        """The hand at `t_s` seconds. Times must not go back."""
        while self._now <= t_s:
            self._plan_gesture()
        while self._parts[0].end <= t_s:
            self._parts.popleft()
        part = self._parts[0]
        assert t_s >= part.start, "times must not go back"
        if part.path is None:
            return Pose(None)
        before, after = max(t_s - 0.01, part.start), min(t_s + 0.01, part.end)
        velocity = (part.tip(after) - part.tip(before)) / max(after - before, 1e-9)
        tip = part.tip(t_s) + self._tremor * np.sin(2 * np.pi * self._tremor_hz * t_s + self._tremor_phase)
        u = (t_s - part.start) / max(part.end - part.start, 1e-9)
        angle = part.angle_from + (3 * u * u - 2 * u ** 3) * (part.angle_to - part.angle_from)
        return Pose((float(tip[0]), float(tip[1])), part.posture, float(angle),
                    (float(velocity[0]), float(velocity[1])))

    def spans(self, until_s: float) -> list[Span]:
        """The gestures that start before `until_s`, in order; the last may end after it."""
        while self._now <= until_s:
            self._plan_gesture()
        return [span for span in self._spans if span.started_at < until_s]

    def _plan_gesture(self) -> None:
        """Adds one idle stretch and one gesture."""
        rng = self._rng
        approach_s = rng.uniform(*APPROACH_S)
        hover_s = rng.uniform(*SHOWN_HOVER_S) if self._deliberate else rng.uniform(*HOVER_S) * rng.integers(2)
        idle_s = self._idle_s if self._spans or not self._deliberate else SHOWN_FIRST_S
        deadline = self._now + rng.uniform(*idle_s) - approach_s - hover_s
        pause_s = rng.uniform(*SHOWN_LEAVE_S) if self._deliberate else rng.uniform(*HOVER_S) * rng.integers(2)
        if self._tip is not None and self._deliberate:
            self._move(self._outside_point(), pause_s)
            self._tip = None
        elif self._tip is not None:
            self._stay(min(pause_s, deadline - self._now))
        while deadline - self._now > 0.5:
            self._plan_idle(deadline - self._now)
        self._stay(deadline - self._now)
        if not self._labels_left:
            self._labels_left = [str(label) for label in rng.permutation(self._labels)]
        label = self._labels_left.pop()
        points, duration_s = self._strokes(label, rng)
        path = self._place(points)
        self._posture = "pointing"
        self._move(path[0], approach_s, angle=0.12 * rng.standard_normal())
        self._stay(hover_s)
        self._spans.append(Span(label, self._now, self._now + float(duration_s)))
        self._add(duration_s, path)

    def _plan_idle(self, left_s: float) -> None:
        """One thing a hand does between gestures, for at most `left_s` seconds."""
        rng = self._rng
        if self._tip is None:
            if rng.random() < (SHOWN_AWAY_SHARE if self._deliberate else AWAY_SHARE):
                self._add(min(rng.uniform(0.3, 2.5), left_s), None)
            else:
                self._posture = POSTURES[rng.choice(3, p=[0.5, 0.3, 0.2])]
                self._move(rng.uniform(*ANYWHERE), min(rng.uniform(0.3, 1.0), left_s))
            return
        action = rng.choice(self._actions, p=self._shares)
        if action == "leave":
            self._move(self._outside_point(), min(rng.uniform(0.25, 0.9), left_s / 2))
            self._add(min(rng.uniform(0.1, 2.0), left_s / 2), None)
        elif action == "rest":
            self._move(rng.uniform((0.3, 0.75), (0.95, 1.02)), min(rng.uniform(0.3, 0.9), left_s / 2))
            self._stay(min(rng.uniform(0.3, 2.0), left_s / 2))
        elif action == "roam":
            path = self._reach(rng.uniform(*ANYWHERE))
            self._posture = POSTURES[rng.choice(3, p=[0.0, 0.6, 0.4] if self._swipes(path) else [0.4, 0.35, 0.25])]
            self._add(min(rng.uniform(0.3, 1.4), left_s), path, 0.3 * rng.standard_normal())
        elif action == "stray":
            points, duration_s = self._strays(rng)
            path = self._place(points)
            reach_s = rng.uniform(0.2, 0.6)
            if reach_s + duration_s < left_s:
                posture, way = POSTURES[rng.choice(3, p=[0.8, 0.1, 0.1])], self._reach(path[0])
                self._posture = "open" if self._tip is not None and self._swipes(way) else posture
                self._add(reach_s, way)
                self._posture = posture
                self._add(duration_s, path)
        else:
            self._stay(min(rng.uniform(0.1, 1.2), left_s))

    def _swipes(self, path: Points) -> bool:
        """Whether a pointing finger that goes this way makes a gesture: hands between gestures do not."""
        return resembles_gesture(path * (self._aspect, 1.0))

    def _place(self, points: Points) -> Points:
        """Scales a stroke to the frame and puts it where the whole of it is in view."""
        rng = self._rng
        low = points.min(axis=0)
        extent = (points.max(axis=0) - low) / (self._aspect, 1.0)
        size = rng.uniform(*(SHOWN_BOX if self._deliberate else BOX)) / max(float(extent.max()), 1e-9)
        extent = extent * size
        free_low, free_high = np.array([0.08, 0.07]), np.array([0.92, SHOWN_BOTTOM if self._deliberate else BOTTOM])
        corner = free_low + np.maximum(free_high - free_low - extent, 0.0) * rng.beta(1.6, 1.6, 2)
        return np.asarray(corner + (points - low) / (self._aspect, 1.0) * size)

    def _move(self, to: Points, seconds: float, angle: float | None = None) -> None:
        self._add(seconds, self._reach(to), angle)

    def _reach(self, to: Points) -> Points:
        """The path to `to` as hands take it: slow, fast, slow, along a slight arc."""
        rng = self._rng
        start = self._outside_point() if self._tip is None else self._tip
        u = np.linspace(0, 1, 24)[:, None]
        eased = u ** 3 * (10 - 15 * u + 6 * u * u)
        way = to - start
        arc = 0.12 * rng.standard_normal() * np.array([-way[1], way[0]]) * 4 * eased * (1 - eased)
        return np.asarray(start + way * eased + arc)

    def _stay(self, seconds: float) -> None:
        """Stays about where it is, or away."""
        if seconds > 0:
            drift = np.sin(np.linspace(0, np.pi, 16))[:, None]
            self._add(seconds, None if self._tip is None else
                      self._tip + 0.008 * self._rng.standard_normal((1, 2)) * drift)

    def _add(self, seconds: float, path: Points | None, angle: float | None = None) -> None:
        angle = self._angle if angle is None else angle
        self._parts.append(_Part(self._now, self._now + seconds, path, self._posture, self._angle, angle))
        self._now, self._angle = float(self._now + seconds), angle
        self._tip = None if path is None else path[-1]

    def _outside_point(self) -> Points:
        """A point from which the whole hand is out of view: below the frame, or to its right."""
        below = self._rng.random() < 0.7
        return self._rng.uniform(*(((0.3, 1.08), (1.2, 1.3)) if below else ((1.15, 0.5), (1.4, 1.1))))
