"""Rendered gestures: a simulated first-person camera with a hand that draws, and the truth about what it drew.
strokes.py: what the fingertip draws; script.py: an endless performance; hand.py, backgrounds.py, scene.py: what the
camera sees of it; `Simulation`: all of it together. The same seed gives the same frames and spans in every run."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engines.synthetic.scene import Scene
from engines.synthetic.script import CALM_IDLE, IDLE, Pose, Script, Span
from engines.synthetic.strokes import BACKGROUND, LABELS, Points, clear_stroke, distinct_stray, stray, stroke

__all__ = ["BACKGROUND", "IDLE", "LABELS", "Points", "Pose", "Scene", "Script", "Simulation", "Span", "distinct_stray",
           "stray", "stroke"]


class Simulation:
    """A simulated camera: `frame(k)` is what it sees at `k / rate` seconds.
    size_hw: image size in pixels; rate: frames per second; strays: rng -> (points_xy, duration_s), motion that is no
    gesture; background_bgr: an image to use instead of a rendered room; idle_s: shortest and longest time between
    gestures; demonstration: someone shows gestures to the camera, clearly and in good light, as a newcomer would.
    Frames must be asked for in order; skipping some is fine."""

    def __init__(self, seed: int, size_hw: tuple[int, int] = (480, 640), rate: float = 30.0,
                 strays: Callable[[np.random.Generator], tuple[Points, float]] = stray,
                 background_bgr: NDArray[np.uint8] | None = None, labels: tuple[str, ...] = LABELS,
                 idle_s: tuple[float, float] = (1.5, 5.0), demonstration: bool = False) -> None:
        performance, appearance = np.random.default_rng(seed).spawn(2)
        self.rate = rate
        self.scene = Scene(appearance, size_hw, background_bgr, clear=demonstration)
        strokes, idle = (clear_stroke, CALM_IDLE) if demonstration else (stroke, IDLE)
        self.script = Script(performance, strokes, labels, idle_s, strays, idle, demonstration, size_hw[1] / size_hw[0])

    def frame(self, k: int) -> NDArray[np.uint8]:
        """The k-th image, uint8 BGR [H, W, 3]."""
        t_s = k / self.rate
        return self.scene.draw(self.script.pose(t_s), t_s)

    def spans(self, until_s: float) -> list[Span]:
        """The gestures that start before `until_s`, in order."""
        return self.script.spans(until_s)
