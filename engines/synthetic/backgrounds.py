"""Rendered rooms and views to stand behind the hand: curtains, landscapes, desks, shelves, carpets, walls."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Canvas = NDArray[np.float32]  # BGR 0..255, [H, W, 3]
Colour = NDArray[np.float64]  # BGR 0..255, [3]


def random_background(rng: np.random.Generator, size_hw: tuple[int, int], place: str | None = None) -> Canvas:
    """One of many kinds, or of the kind `place` of PLACES, float32 BGR [H, W, 3] in 0..255."""
    canvas = (PLACES[place] if place else _KINDS[int(rng.integers(len(_KINDS)))])(rng, size_hw)
    canvas = canvas * (1 + 0.25 * _noise(rng, size_hw, 2)[..., None] * rng.random())
    return np.clip(canvas * (1 + 0.02 * _noise(rng, size_hw, 40)[..., None]), 0, 255).astype(np.float32)


def _curtain(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    height, width = size_hw
    x = np.linspace(0, 1, width)
    depth = np.linspace(0, 1, height)[:, None]
    folds = np.zeros((height, width))
    for _ in range(int(rng.integers(3, 7))):
        waves, lean, bend = rng.uniform(4, 40), rng.uniform(-0.06, 0.06), rng.uniform(0, 0.02)
        folds += rng.uniform(0.2, 1) * np.sin(2 * np.pi * waves * (x + lean * depth + bend * np.sin(5 * depth))
                                              + rng.uniform(0, 6.28))
    folds /= max(float(np.abs(folds).max()), 1e-6)
    canvas = _fill(_colour(rng), size_hw) * (1 + rng.uniform(0.15, 0.6) * folds[..., None].astype(np.float32))
    if rng.random() < 0.4:  # a print of leaves, dots or rings
        colour, size = _colour(rng), rng.uniform(0.008, 0.04)
        for x, y in rng.random((int(rng.integers(20, 160)), 2)):
            _ellipse(canvas, (x, y), (size * rng.uniform(0.3, 1), size * rng.uniform(0.5, 2)), colour)
    if rng.random() < 0.5:  # light through the cloth
        band = np.exp(-((depth - rng.uniform(0.1, 0.9)) / rng.uniform(0.1, 0.5)) ** 2)
        canvas *= (1 + rng.uniform(-0.5, 0.9) * band[..., None]).astype(np.float32)
    if rng.random() < 0.4:
        _rectangle(canvas, (rng.uniform(0, 0.9), 0, rng.uniform(0.05, 0.5), 1), _colour(rng))
    return canvas


def _landscape(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    height, width = size_hw
    horizon = rng.uniform(0.2, 0.55)
    sky, land = rng.uniform((170, 150, 110), (255, 245, 235)), rng.uniform((20, 60, 40), (110, 170, 150))
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    canvas = (sky * (0.75 + 0.35 * down / horizon)).astype(np.float32) + np.zeros((height, width, 3), np.float32)
    line = horizon + 0.03 * smooth_noise(rng, (1, 12), (1, width)) + 0.012 * smooth_noise(rng, (1, 60), (1, width))
    below = (down[..., 0] > line)[..., None]
    fields = _noise(rng, size_hw, 10)[..., None] * rng.uniform(5, 25, 3)
    fields += _noise(rng, size_hw, 45)[..., None] * rng.uniform(4, 18)
    canvas = np.where(below, land * (0.8 + 0.5 * down) + fields, canvas).astype(np.float32)
    for _ in range(int(rng.integers(0, 14))):
        box = rng.random(), rng.uniform(horizon, 1), rng.uniform(0.01, 0.1), rng.uniform(0.01, 0.06)
        _rectangle(canvas, box, rng.uniform(60, 230, 3))
    if rng.random() < 0.6:  # a window frame
        bar = np.full(3, rng.uniform(10, 240))
        _rectangle(canvas, (0, rng.uniform(0.6, 0.95), 1, rng.uniform(0.02, 0.07)), bar)
        if rng.random() < 0.5:
            _rectangle(canvas, (rng.uniform(0.05, 0.95), 0, rng.uniform(0.015, 0.05), 1), bar)
    return canvas


def _room(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    """Wall, floor or desk, and things on them."""
    canvas = _fill(_colour(rng, grey=0.7), size_hw)
    edge, slope = rng.uniform(0.45, 0.9), rng.uniform(-0.3, 0.3)
    _polygon(canvas, [(0, edge), (1, edge + slope * 0.5), (1, 1.2), (0, 1.2)], _colour(rng))
    for _ in range(int(rng.integers(2, 16))):
        wide, tall = rng.uniform(0.03, 0.45), rng.uniform(0.03, 0.45)
        at = (rng.uniform(-0.1, 1), rng.uniform(-0.1, 1))
        colour, kind = _colour(rng, grey=0.5), rng.random()
        if kind < 0.55:
            _rectangle(canvas, (*at, wide, tall), colour, rng.uniform(-0.1, 0.1))
            if rng.random() < 0.4:  # panels, drawers, a screen
                rows = int(rng.integers(1, 4))
                for row in range(rows):
                    panel = (at[0] + 0.1 * wide, at[1] + tall * (row + 0.12) / rows, 0.8 * wide, 0.76 * tall / rows)
                    _rectangle(canvas, panel, colour * rng.uniform(0.6, 1.3))
        elif kind < 0.8:
            _ellipse(canvas, at, (wide / 2, tall / 2), colour)
        else:
            corners = np.array(at) + (wide, tall) * rng.standard_normal((4, 2))
            _polygon(canvas, corners[np.argsort(np.arctan2(*(corners - corners.mean(axis=0)).T))], colour)
    return canvas


def _shelves(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    canvas = _fill(_colour(rng, grey=0.4) * 0.6, size_hw)
    rows = int(rng.integers(2, 5))
    for row in range(rows):
        x = rng.uniform(-0.05, 0.1)
        while x < 1:
            wide, tall = rng.uniform(0.015, 0.09), rng.uniform(0.4, 0.85) / rows
            book = x, (row + 0.93) / rows - tall, wide, tall
            _rectangle(canvas, book, _colour(rng, grey=0.3), rng.uniform(-0.03, 0.03))
            x += wide + rng.choice([0.003, rng.uniform(0, 0.15)], p=[0.8, 0.2])
        _rectangle(canvas, (0, (row + 0.93) / rows, 1, 0.03), _colour(rng, grey=0.5))
    return canvas


def _carpet(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    height, width = size_hw
    quarter = (height + 1) // 2, (width + 1) // 2
    pattern = sum(_noise(rng, quarter, detail) for detail in (4, 10, 24))
    levels = np.digitize(pattern, np.sort(rng.uniform(-1.5, 1.5, 4)))
    colours = np.stack([_colour(rng) for _ in range(5)]).astype(np.float32)
    half = np.concatenate([colours[levels], colours[levels][:, ::-1]], axis=1)
    return np.concatenate([half, half[::-1]], axis=0)[:height, :width]


def _wall(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    """Nearly nothing: a plain wall, lit from one side; perhaps a frame or a clock."""
    angle, (y, x) = rng.uniform(0, 2 * np.pi), (np.linspace(-1, 1, side) for side in size_hw)
    slope = np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None]
    shade = (1 + rng.uniform(0, 0.5) * slope[..., None]).astype(np.float32)
    canvas: Canvas = np.asarray(_fill(_colour(rng, grey=0.7), size_hw) * shade, np.float32)
    for _ in range(int(rng.integers(0, 3))):
        at, wide = (rng.uniform(0.1, 0.8), rng.uniform(0.05, 0.6)), rng.uniform(0.08, 0.3)
        if rng.random() < 0.5:
            _rectangle(canvas, (*at, wide, wide), _colour(rng))
            _rectangle(canvas, (at[0] + 0.1 * wide, at[1] + 0.1 * wide, 0.8 * wide, 0.8 * wide), _colour(rng))
        else:
            _ellipse(canvas, at, (wide / 2, wide * 0.66), _colour(rng))
            _ellipse(canvas, at, (wide / 2.4, wide * 0.55), _colour(rng, grey=0.9))
    return canvas


def _tiles(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    y, x = np.indices(size_hw) / size_hw[0]
    angle = rng.uniform(-0.4, 0.4)
    across, along = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    size_x, size_y, gap = rng.uniform(0.06, 0.35), rng.uniform(0.06, 0.35), rng.uniform(0.02, 0.08)
    cell_x, cell_y = np.floor(across / size_x).astype(int), np.floor(along / size_y).astype(int)
    joint = (across / size_x - cell_x < gap) | (along / size_y - cell_y < gap)
    first, second = _colour(rng, grey=0.6), _colour(rng, grey=0.6)
    mix = ((cell_x + cell_y) % 2 if rng.random() < 0.4 else np.sin(cell_x * 12.9 + cell_y * 78.2) * 0.15)[..., None]
    canvas = first + mix * (second - first)
    return np.asarray(np.where(joint[..., None], canvas * rng.uniform(0.4, 1.4), canvas), np.float32)


def _blotches(rng: np.random.Generator, size_hw: tuple[int, int]) -> Canvas:
    """No place at all: blotches of every size, as a blurred crowd, foliage or a mess looks."""
    canvas = _fill(_colour(rng), size_hw)
    for detail in (3, 8, 20, 50):
        strength = (rng.uniform(5, 40) * rng.uniform(0.3, 1, 3)).astype(np.float32)
        canvas += _noise(rng, size_hw, detail)[..., None] * strength
    return canvas


_KINDS: tuple[Callable[[np.random.Generator, tuple[int, int]], Canvas], ...] = (
    _curtain, _curtain, _landscape, _room, _room, _shelves, _carpet, _wall, _tiles, _blotches)
PLACES = {"curtain": _curtain, "landscape": _landscape, "room": _room, "shelf": _shelves, "carpet": _carpet,
          "wall": _wall, "tile": _tiles, "cloud": _blotches}


def _colour(rng: np.random.Generator, grey: float = 0.0) -> Colour:
    """A colour as rooms have them: mostly pale or dull, warm more often than not; `grey` dulls it further."""
    hue = rng.uniform(5, 30) if rng.random() < 0.6 else rng.uniform(0, 180)
    saturation = 255 * rng.beta(1.1, 2.4) * (1 - grey)
    pixel = np.array([[[hue, saturation, rng.uniform(20, 245)]]], np.uint8)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0], np.float64)


def _fill(colour: Colour, size_hw: tuple[int, int]) -> Canvas:
    return np.full((*size_hw, 3), colour, np.float32)


def _noise(rng: np.random.Generator, size_hw: tuple[int, int], detail: int) -> Canvas:
    """Smooth noise, about standard normal, with `detail` blobs along the frame's height."""
    height, width = size_hw
    rows = max(min(detail, height), 2)
    return smooth_noise(rng, (rows, max(rows * width // height, 2)), size_hw)


def smooth_noise(rng: np.random.Generator, grid: tuple[int, int], size_hw: tuple[int, ...]) -> Canvas:
    """A grid of standard normal numbers, scaled up to [H, W]."""
    values = rng.standard_normal(grid).astype(np.float32)
    return np.asarray(cv2.resize(values, size_hw[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _polygon(canvas: Canvas, corners: list[tuple[float, float]] | NDArray[np.float64], colour: Colour) -> None:
    """A filled polygon; corners are fractions of the canvas."""
    pixels = np.rint(np.array(corners) * (canvas.shape[1] * 16, canvas.shape[0] * 16)).astype(np.int32)
    cv2.fillPoly(canvas, [pixels], tuple(map(float, colour)), cv2.LINE_8, 4)


def _rectangle(canvas: Canvas, box: tuple[float, float, float, float], colour: Colour, turn: float = 0.0) -> None:
    x, y, wide, tall = box
    lean, rise = turn * tall, turn * wide
    _polygon(canvas, [(x, y), (x + wide, y + rise), (x + wide + lean, y + tall + rise), (x + lean, y + tall)], colour)


def _ellipse(canvas: Canvas, at: tuple[float, float], radii: tuple[float, float], colour: Colour) -> None:
    angles = np.linspace(0, 2 * np.pi, 40)
    _polygon(canvas, [(at[0] + radii[0] * np.cos(a), at[1] + radii[1] * np.sin(a)) for a in angles], colour)
