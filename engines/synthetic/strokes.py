"""What the fingertip draws: ten gestures as people draw them, and motion that is none of them.
Points are [N, 2] (x right, y down), evenly spaced in time, inside a unit box whose longer side is 1."""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
StrokeSource = Callable[[str, np.random.Generator], tuple[Points, float]]
StraySource = Callable[[np.random.Generator], tuple[Points, float]]

LABELS: tuple[str, ...] = ("left", "right", "up", "down", "circlecc", "square", "star", "del", "carret", "tick")
BACKGROUND = "background"
SAMPLES = 120

# Seconds a person takes: the shortest, the median, the longest seen.
DURATIONS_S: dict[str, tuple[float, float, float]] = {
    **dict.fromkeys(("left", "right", "up", "down"), (0.5, 1.8, 4.2)), "circlecc": (1.6, 3.4, 6.6),
    "square": (2.2, 4.8, 7.0), "star": (2.8, 5.6, 9.4), "del": (2.0, 3.8, 5.5), "carret": (1.2, 2.5, 4.7),
    "tick": (1.2, 2.4, 4.7)}
_SPREAD = 0.38  # of the logarithm of a duration
# Width and height times this: real carets are 1.4 times as wide as high, eight of ten swipes lean at most 5 degrees.
CLEAR_STRETCH = {"carret": (1.5, 1.0), "left": (1.0, 0.5), "right": (1.0, 0.5), "up": (0.5, 1.0), "down": (0.5, 1.0)}

STRAYS = {"wander": 0.3, "zigzag": 0.15, "early": 0.2, "backwards": 0.15, "scribble": 0.1, "diagonal": 0.1}
# Not those that begin as a gesture, nor those that run the other way round: some people draw gestures so.
DISTINCT_STRAYS = {"wander": 0.5, "zigzag": 0.2, "scribble": 0.15, "diagonal": 0.15}
# Mean distance of two paths, the longer side being 1: nine of ten recorded strokes are closer to one of their own kind.
MAX_SHAPE_DISTANCE = 0.12
SECTIONS = ((0.0, 1.0), (0.0, 0.5), (0.0, 0.75), (0.25, 0.75), (0.25, 1.0), (0.5, 1.0))  # that must be no gesture


def stroke(label: str, rng: np.random.Generator) -> tuple[Points, float]:
    """One drawing of a gesture: (points_xy [N, 2] in a unit box, duration_s). Raises KeyError for an unknown label."""
    least, median, most = DURATIONS_S[label]
    duration_s = float(np.clip(median * np.exp(_SPREAD * rng.standard_normal()), least, most))
    return _humanise(_template(label, rng), rng, closed=label == "circlecc"), duration_s


def clear_stroke(label: str, rng: np.random.Generator) -> tuple[Points, float]:
    """A gesture as it is shown to a camera: recorded proportions, nearly the median pace. See `stroke`."""
    points, duration_s = stroke(label, rng)
    _, median, _ = DURATIONS_S[label]
    return _normalise(points * CLEAR_STRETCH.get(label, (1.0, 1.0))), median * (duration_s / median) ** 0.4


def stray(rng: np.random.Generator, shares: Mapping[str, float] = STRAYS) -> tuple[Points, float]:
    """Motion that is no gesture, of a kind drawn by its share: wandering, zig-zags, gestures that stop early or run
    the wrong way round, scribbles, diagonals."""
    kind = rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values()))
    if kind == "wander":
        path = np.cumsum(rng.standard_normal((int(rng.integers(3, 8)), 2)), axis=0)
        points = _smooth(_trace(path, rng, 0.3), 9.0)
    elif kind == "zigzag":
        count = int(rng.integers(4, 8))
        path = np.column_stack([np.linspace(0, rng.uniform(0.4, 1.5), count), (np.arange(count) % 2) * 1.0])
        points = _humanise(path @ _rotation(rng.uniform(-np.pi, np.pi)), rng)
    elif kind == "early":
        whole, _ = stroke(str(rng.choice(["square", "star", "del", "circlecc"])), rng)
        points = whole[:int(SAMPLES * rng.uniform(0.35, 0.6))]
    elif kind == "backwards":
        label = "circlecc" if rng.random() < 0.5 else "square"
        points = _humanise(_template(label, rng)[::-1], rng, closed=label == "circlecc")
    elif kind == "scribble":
        turns = rng.uniform(1.7, 3.0) * 2 * np.pi * rng.choice([-1, 1])
        angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, turns, SAMPLES)
        drift = np.linspace(0, rng.uniform(0, 1.5), SAMPLES)[:, None] * _rotation(rng.uniform(0, 2 * np.pi))[0]
        points = np.column_stack([np.cos(angles), np.sin(angles)]) + drift
    else:
        angle = np.deg2rad(rng.uniform(30, 60)) + rng.integers(4) * np.pi / 2
        points = _humanise(np.array([[0, 0], [np.cos(angle), np.sin(angle)]]), rng)
    return _normalise(points), float(rng.uniform(0.6, 4.0))


def distinct_stray(rng: np.random.Generator) -> tuple[Points, float]:
    """Motion that nobody would take for a gesture, nor any long part of it: half a random walk is a swipe or a tick."""
    while True:
        points, duration_s = stray(rng, DISTINCT_STRAYS)
        parts = [points[round(a * len(points)):round(b * len(points))] for a, b in SECTIONS]
        if not any(resembles_gesture(part) for part in parts if np.ptp(part, axis=0).max() >= 0.5):
            return points, duration_s


def resembles_gesture(points: Points) -> bool:
    """Whether a path [N, 2] has the shape of one of ours, wherever and however large and fast it is drawn."""
    x, y = np.moveaxis(_gesture_shapes() - _resample(points), -1, 0)
    return bool(np.sqrt(x ** 2 + y ** 2).mean(axis=1).min() < MAX_SHAPE_DISTANCE)  # np.linalg.norm is slower


@cache
def _gesture_shapes() -> Points:
    """Shapes of drawings of every gesture, [N, 16, 2]."""
    rng = np.random.default_rng(0)
    return np.array([_resample(stroke(label, rng)[0]) for label in LABELS for _ in range(60)])


def _resample(points: Points) -> Points:
    """16 points evenly along a path, about their mean, its longer side 1."""
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    even = np.linspace(0, way[-1], 16)
    along = np.column_stack([np.interp(even, way, each) for each in points.T])
    return np.asarray((along - along.mean(axis=0)) / max(float(np.ptp(points, axis=0).max()), 1e-9))


def _template(label: str, rng: np.random.Generator) -> Points:
    """Corner points (or a dense curve) of a gesture, before human variation."""
    def near(x: float, y: float, spread: float = 0.05) -> tuple[float, float]:
        return x + spread * rng.standard_normal(), y + spread * rng.standard_normal()

    if label in ("left", "right", "up", "down"):
        along = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}[label]
        return np.array([[0.0, 0.0], along]) @ _rotation(np.deg2rad(np.clip(4 * rng.standard_normal(), -9, 9)))
    if label == "circlecc":
        start = np.deg2rad(rng.uniform(35, 110))  # from the top right to just past the top
        angles = start + np.deg2rad(rng.uniform(325, 390)) * np.linspace(0, 1, SAMPLES)
        stretch = rng.uniform(0.65, 1.25)
        return np.column_stack([stretch * np.cos(angles), -np.sin(angles)]) @ _rotation(0.25 * rng.standard_normal())
    if label == "square":
        wide = rng.uniform(0.75, 1.6)
        back = near(0.0, rng.uniform(-0.06, 0.12), 0.03)
        corners = [near(0, 0), near(wide, 0), near(wide, 1), near(0, 1), back]
    elif label == "star":
        angles = np.deg2rad(234 - 144 * np.arange(6))  # bottom left, apex, bottom right, left, right, bottom left
        corners = [near(float(np.cos(a)), float(-np.sin(a)), 0.07) for a in angles]
    elif label == "del":
        wide = rng.uniform(0.55, 1.1)
        corners = [near(0, 0), near(wide, 1), near(rng.uniform(-0.15, 0.15), 1),
                   near(wide * rng.uniform(0.95, 1.3), rng.uniform(-0.1, 0.1))]
    elif label == "carret":
        wide = rng.uniform(0.6, 1.2)
        corners = [near(0, 1), near(wide * rng.uniform(0.35, 0.6), 0), near(wide, rng.uniform(0.85, 1.1))]
    else:  # a tick
        short = rng.uniform(0.22, 0.5)
        corners = [near(0, 1 - short, 0.03), near(short * rng.uniform(0.4, 0.9), 1, 0.03),
                   near(rng.uniform(0.8, 1.8), rng.uniform(-0.1, 0.35))]
    return np.array(corners)


def _humanise(path: Points, rng: np.random.Generator, closed: bool = False) -> Points:
    """Uneven speed, bowed sides, rounded corners, slant, wobble."""
    if closed:
        pace = 0.12 * rng.standard_normal() * np.sin(2 * np.pi * np.linspace(0, 1, SAMPLES)) / np.pi
        u = _ease(np.linspace(0, 1, SAMPLES), rng.uniform(0.2, 0.8)) + pace
        at = np.clip(u, 0, 1) * (len(path) - 1)
        points = np.column_stack([np.interp(at, np.arange(len(path)), along) for along in path.T])
    else:
        points = _trace(path, rng, rng.uniform(0.03, 0.12))
    points = _smooth(points, rng.uniform(0.8, 3.5))
    shear = np.array([[1.0, 0.06 * rng.standard_normal()], [0.06 * rng.standard_normal(), 1.0]])
    points = points @ shear @ _rotation(np.deg2rad(3.0) * rng.standard_normal())
    t = np.linspace(0, 1, SAMPLES)[:, None]
    for _ in range(3):
        waves, phase = rng.uniform(0.7, 5.0, 2), rng.uniform(0, 2 * np.pi, 2)
        points = points + rng.uniform(0, 0.01) * np.sin(2 * np.pi * waves * t + phase)
    return _normalise(points)


def _trace(corners: Points, rng: np.random.Generator, bow: float) -> Points:
    """Goes from corner to corner, slowing down at each; a longer side takes longer, but not in proportion."""
    sides = np.diff(corners, axis=0)
    lengths = np.linalg.norm(sides, axis=1) + 1e-9
    shares = lengths ** rng.uniform(0.5, 0.9) * np.exp(0.2 * rng.standard_normal(len(sides)))
    ends = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
    side = np.clip(np.searchsorted(ends, np.linspace(0, 1, SAMPLES), side="right") - 1, 0, len(sides) - 1)
    u = (np.linspace(0, 1, SAMPLES) - ends[side]) / (ends[side + 1] - ends[side])
    u = _ease(np.clip(u, 0, 1), rng.uniform(0.3, 1.0))
    bows = bow * rng.standard_normal(len(sides))
    across = np.column_stack([-sides[:, 1], sides[:, 0]])
    bend = (bows[side] * 4 * u * (1 - u))[:, None] * across[side] * 0.5
    return np.asarray(corners[side] + u[:, None] * sides[side] + bend)


def _ease(u: Points, amount: float) -> Points:
    """Between even speed (amount 0) and the minimum-jerk profile of a reaching hand (amount 1)."""
    return (1 - amount) * u + amount * u ** 3 * (10 - 15 * u + 6 * u * u)


def _smooth(points: Points, sigma: float) -> Points:
    """Rounds corners; ends stay where they are."""
    reach = int(3 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(points, ((reach, reach), (0, 0)), mode="edge")
    return np.column_stack([np.convolve(padded[:, axis], kernel, mode="valid") for axis in (0, 1)])


def _normalise(points: Points) -> Points:
    return np.asarray((points - points.min(axis=0)) / max(float(np.ptp(points, axis=0).max()), 1e-9))


def _rotation(angle: float) -> Points:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
