"""Capture times -> the model's frame rate. Plain bookkeeping: no images, no time of day.

A model is trained at a fixed frame rate, so frames are picked by when they were taken, not by count. The clock
lays a grid of cells, each 1 / frame_rate seconds long, from the first frame of the stream on:

    too fast       the first frame of a cell is used at once, later ones of that cell are passed over
    too slow       cells that went by without a frame are `held`: filled with the previous image
    long hole      more than `max_gap_s` between two frames: "reset", and the grid starts anew
    time runs back by more than one cell: "new stream", and the grid starts anew; by less: passed over
"""

import math
from typing import Literal, NamedTuple

from engines.errors import FrameError, UsageError

# A frame this part of a cell too early still opens its cell, so that rounded or jittering times do not miss one.
# 0.15 keeps the common camera rates away from the edge: at 30 frames/s on a 7.5 grid frames lie at 0, 0.25, 0.5
# and 0.75 of a cell, and with 0.25 every cell would be opened by either its own frame or the one before.
EARLY_CELLS = 0.15
TIME_NOISE_S = 1e-6  # Unix times as float64 are good to about this


class Tick(NamedTuple):
    """What to do with one frame."""

    use: bool  # step the model with it
    held: int = 0  # step the previous image this many times first
    gap_s: float | None = None  # with an action: seconds without a frame, or how far time ran back
    action: Literal["reset", "new stream"] | None = None  # before this frame


class Clock:
    """Picks the frames of one camera for a model of `frame_rate` frames per second.
    max_gap_s: the longest hole that is held; a longer one resets. Raises UsageError unless both are above zero."""

    def __init__(self, frame_rate: float, max_gap_s: float) -> None:
        for name, value in (("frame_rate", frame_rate), ("max_gap_s", max_gap_s)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} {value}", "a number above zero", "use the values of the model's contract")
        self.frame_rate, self.max_gap_s = frame_rate, max_gap_s
        self.reset()

    def reset(self) -> None:
        """Starts over: the next frame is the first of a stream."""
        self._origin_s: float | None = None
        self._latest_s = 0.0
        self._cell = 0

    def tick(self, captured_at: float) -> Tick:
        """What to do with the next frame. captured_at: seconds. Raises FrameError when that is not a number."""
        if not math.isfinite(captured_at):
            raise FrameError(f"a frame captured at {captured_at}", "a time in seconds",
                             "pass the capture time of the frame, e.g. time.time()")
        if self._origin_s is None:
            return self._start(captured_at, Tick(use=True))
        step_s = captured_at - self._latest_s
        if step_s > self.max_gap_s + TIME_NOISE_S:
            return self._start(captured_at, Tick(use=True, gap_s=step_s, action="reset"))
        if step_s < -(1 / self.frame_rate + TIME_NOISE_S):
            return self._start(captured_at, Tick(use=True, gap_s=-step_s, action="new stream"))
        if step_s <= 0:
            return Tick(use=False)
        self._latest_s = captured_at
        cell = math.floor((captured_at - self._origin_s) * self.frame_rate + EARLY_CELLS)
        held = cell - self._cell - 1
        if held < 0:
            return Tick(use=False)
        self._cell = cell
        return Tick(use=True, held=held)

    def wants(self, captured_at: float, passed_at: float | None = None) -> bool:
        """Whether `tick` would use this frame after `pass_over(passed_at)`. Changes nothing; raises as `tick` does."""
        before = self._origin_s, self._latest_s, self._cell
        try:
            if passed_at is not None:
                self.pass_over(passed_at)
            return self.tick(captured_at).use
        finally:
            self._origin_s, self._latest_s, self._cell = before

    def pass_over(self, captured_at: float) -> None:
        """Notes a frame that a clock like this one passed over; ignores one that this clock would use."""
        if not self.wants(captured_at):
            self.tick(captured_at)

    def _start(self, captured_at: float, tick: Tick) -> Tick:
        self._origin_s = self._latest_s = captured_at
        self._cell = 0
        return tick
