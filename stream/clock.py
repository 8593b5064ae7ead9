"""Capture times -> the model's frame rate: plain bookkeeping without images. And live frames' capture times.

A model is trained at a fixed frame rate, so frames are picked by when they were taken, not by count. The clock
lays a grid of cells, each 1 / frame_rate seconds long, from the first frame of the stream on:

    too fast       the first frame of a cell is used at once, later ones of that cell are passed over
    too slow       cells that went by without a frame are `held`: filled with the previous image
    long hole      more than `max_gap_s` between two frames: "reset", and the grid starts anew
    time runs back by more than one cell: "new stream", and the grid starts anew; by less: passed over
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Literal, NamedTuple, SupportsFloat

import numpy as np

from engines.errors import FrameError, UsageError

log = logging.getLogger("gatestream.recognizer")

# A frame this part of a cell too early still opens its cell, so that rounded or jittering times do not miss one.
# 0.15 keeps the common camera rates away from the edge: at 30 frames/s on a 7.5 grid frames lie at 0, 0.25, 0.5
# and 0.75 of a cell, and with 0.25 every cell would be opened by either its own frame or the one before.
EARLY_CELLS = 0.15
CLOCK_LIMIT_S = 60.0  # that a capture time which its sender states may differ from the frame's arrival
STANDS_STILL_S = 2.0  # a stated time that stays the same for longer is none
CLOCK_JUMPS = 5  # of a sender's clock, after which it is not believed any more
RIGHT_FOR_S = 5.0  # after so long without a fault it is believed again
TIME_NOISE_S = 1e-6  # Unix times as float64 are good to about this
ODD_IN_A_ROW = 10  # times that look like no seconds before that is noted


def as_seconds(captured_at: SupportsFloat | datetime) -> float:
    """A capture time as a float; of a datetime its Unix time. Raises UsageError for what is no time."""
    if isinstance(captured_at, datetime):
        return captured_at.timestamp()
    try:
        if isinstance(captured_at, str | bytes | bool):
            raise TypeError
        return float(captured_at)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"a frame captured at {captured_at!r:.60} ({type(captured_at).__name__})",
                         "a time in seconds, or a datetime", "pass the capture time of the frame, e.g. time.time()"
                         ) from None


class Tick(NamedTuple):
    """What to do with one frame."""

    use: bool  # step the model with it
    held: int = 0  # step the previous image this many times first
    gap_s: float | None = None  # with an action: seconds without a frame, or how far time ran back
    action: Literal["reset", "new stream"] | None = None  # before this frame

    def after(self, missed: "Tick | None") -> "Tick":
        """This tick and one before it whose frame could not be used, in one."""
        if missed is None or self.action is not None:
            return self
        return Tick(self.use, missed.held + self.held, missed.gap_s, missed.action)


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

    @property
    def next_at(self) -> float | None:
        """From when on it uses the next frame, in capture time; None where it uses any."""
        if self._origin_s is None:
            return None
        return self._origin_s + (self._cell + 1 - EARLY_CELLS) / self.frame_rate

    def wants(self, captured_at: float) -> bool:
        """Whether `tick` would use this frame. Changes nothing; raises as `tick` does."""
        before = self._origin_s, self._latest_s, self._cell
        try:
            return self.tick(captured_at).use
        finally:
            self._origin_s, self._latest_s, self._cell = before

    def _start(self, captured_at: float, tick: Tick) -> Tick:
        self._origin_s = self._latest_s = captured_at
        self._cell = 0
        return tick


class TimeMonitor:
    """Watches the capture times of one camera for what no camera's seconds are like, and logs it once.
    frame_rate, max_gap_s: of the camera's `Clock`."""

    def __init__(self, camera: str, frame_rate: float, max_gap_s: float) -> None:
        self._camera, self._period_s, self._max_gap_s = camera, 1 / frame_rate, max_gap_s
        self._before_s, self._noted = math.nan, False
        self._still = self._far = self._coarse = 0  # times in a row

    def add(self, captured_at: float) -> None:
        """Takes the next time."""
        step_s, self._before_s = captured_at - self._before_s, captured_at
        if self._noted or not math.isfinite(step_s):
            return
        single = np.float32(captured_at)
        coarse = float(single) == captured_at and float(np.spacing(single)) > self._period_s / 2
        self._coarse = self._coarse + 1 if coarse else 0
        self._still = self._still + 1 if step_s == 0 else 0
        self._far = self._far + 1 if step_s > self._max_gap_s else 0
        line = ""
        if self._far >= ODD_IN_A_ROW:
            line = f"each frame is a gap, {step_s:.6g} s after the last: if capture times are in " \
                   f"{self._unit(step_s)}, pass seconds"
        elif self._coarse >= ODD_IN_A_ROW:
            line = f"capture times are good to {float(np.spacing(single)):g} s only, as of float32: pass float64"
        elif self._still >= ODD_IN_A_ROW:
            line = f"capture times stand still at {captured_at:.15g}: pass the time at which each frame was taken"
        if line:
            self._noted = True
            log.warning("%s: %s", self._camera, line)

    def _unit(self, step: float) -> str:
        units = ("milliseconds", "microseconds", "nanoseconds")
        return units[min(max(int(math.log10(step / self._max_gap_s) / 3), 0), 2)]


class EvenTime:
    """Unix time without the steps of the machine's clock: a steady clock set by it once, that then follows it by
    FOLLOWS seconds a second; over more than FAR_S it steps too. May be called from any thread."""

    FOLLOWS, FAR_S = 0.001, 60.0

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady, self._lock = wall, steady, threading.Lock()
        self._latest_s = steady()
        self._offset_s = wall() - self._latest_s

    def __call__(self) -> float:
        with self._lock:
            now = self._steady()
            off, most = self._wall() - now - self._offset_s, self.FOLLOWS * (now - self._latest_s)
            self._offset_s += off if abs(off) > self.FAR_S else min(most, max(-most, off))
            self._latest_s = now
            return now + self._offset_s


unix_time = EvenTime()
"""For the times of live frames, so that a step of the machine's clock resets no stream."""


class CaptureTimes:
    """Says when each frame of one stream was taken: as its sender states, as long as that can be.

        times = CaptureTimes()
        at = times.of_frame(message.captured_at, unix_time(), time.monotonic())

    The times of a clock that is more than CLOCK_LIMIT_S off are all shifted by the same offset, as if its first frame
    was taken on arrival; in place of those of a clock that jumps again and again, or stands still, are the arrivals.
    All that is forgotten of one that has been right for RIGHT_FOR_S."""

    def __init__(self) -> None:
        self.skew_s = 0.0  # what was stated against arrival, at the latest frame
        self.jumps = 0
        self.notice = ""  # what is wrong with the clock, if anything
        self._offset_s = 0.0
        self._stated_at = self._captured_at = math.nan
        self._changed_at = self._arrived_at = 0.0
        self._wrong_at = -math.inf

    def of_frame(self, stated_at: float | None, arrived_at: float, now: float) -> float:
        """Capture time of the next frame (Unix time, never more than CLOCK_LIMIT_S from its arrival).
        stated_at: by its sender, if so; arrived_at: Unix time; now: steady seconds."""
        at = arrived_at
        if stated_at is not None:
            self.skew_s = stated_at - arrived_at
            if stated_at != self._stated_at:
                self._stated_at, self._changed_at = stated_at, now
            if now - self._changed_at > STANDS_STILL_S:
                self.jumps, self._wrong_at = CLOCK_JUMPS + 1, now
            elif abs(self.skew_s) > CLOCK_LIMIT_S:
                self._wrong_at = now
            elif self.notice and now - self._wrong_at > RIGHT_FOR_S:
                if self.jumps > CLOCK_JUMPS:
                    self._offset_s = self._captured_at + now - self._arrived_at - stated_at
                self.jumps, self.notice = 0, ""
            if self.jumps <= CLOCK_JUMPS:
                at = stated_at + self._offset_s
            if abs(at - arrived_at) > CLOCK_LIMIT_S:
                self.jumps += 1
                at = self._captured_at + now - self._arrived_at  # the stream goes on
                if not abs(at - arrived_at) <= CLOCK_LIMIT_S:  # or begins
                    at = arrived_at
                self._offset_s = at - stated_at
                self.notice = self.notice or f"its clock is {self.skew_s:+.0f} s off: its times are shifted by as much"
        if self.jumps > CLOCK_JUMPS:
            self.notice = "its clock jumps or stands still: frames count as taken when they arrive"
        self._captured_at, self._arrived_at = at, now
        return at
