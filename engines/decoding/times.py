"""Times as files state them -> times that always rise.

A time is used when it lies 1/480 s to ten minutes after the frame before. When it does not (missing, stuck, running
back, absurd), the frame follows the one before by the nominal step: 1 / the stated rate, or 1/30 s when that is zero
or absurd too. Two bad times that agree with each other are a timeline that began anew; it is followed from there on."""

import math
from collections import deque

FALLBACK_RATE = 30.0  # frames per second
RATE_RANGE = (0.1, 240.0)  # a stated rate outside is a broken header, not a camera
SHORTEST_STEP_S = 1 / 480
LONGEST_STEP_S = 600.0
EVEN_STEPS = 30  # how far back "evenly" looks
EVEN_SHARE = 0.9
FEWEST_STEPS = 3


class StreamTime:
    """The time of each frame in seconds, and the frames missing before it.
    When the frames so far came evenly, a hole in their times shows how many are missing; in files of variable rate a
    hole is no loss. jump_s: the longest step so far that was too long to be believed."""

    def __init__(self, rate: float | None) -> None:
        self.nominal_step_s = 1 / (rate or FALLBACK_RATE)
        self.jump_s = 0.0
        self._origin_s = math.nan
        self._raw_s = math.nan
        self._time_s: float | None = None
        self._steps_s: deque[float] = deque(maxlen=EVEN_STEPS)

    def next(self, raw_s: float, first_s: float = 0.0) -> tuple[float, int]:
        """Time of the next frame, and how many frames are missing before it. first_s: the time of the first one."""
        if self._time_s is None:
            self._time_s, self._origin_s, self._raw_s = first_s, raw_s - first_s, raw_s
            return first_s, 0
        stamp_s, raw_step_s = raw_s - self._origin_s, raw_s - self._raw_s
        missing = 0
        if SHORTEST_STEP_S <= stamp_s - self._time_s <= LONGEST_STEP_S:
            step_s = stamp_s - self._time_s
            missing = self._missing(step_s)
        elif SHORTEST_STEP_S <= raw_step_s <= LONGEST_STEP_S:
            step_s = raw_step_s
            self._origin_s = raw_s - (self._time_s + step_s)
        else:
            step_s = self.nominal_step_s
            if abs(raw_step_s) > LONGEST_STEP_S:
                self.jump_s = max(self.jump_s, abs(raw_step_s))
            if not math.isfinite(self._origin_s):
                self._origin_s = raw_s - (self._time_s + step_s)
        self._raw_s = raw_s
        self._time_s += step_s
        self._steps_s.append(step_s / (missing + 1))
        return self._time_s, missing

    def _missing(self, step_s: float) -> int:
        if len(self._steps_s) < FEWEST_STEPS or step_s < 1.5 * min(self._steps_s):
            return 0
        usual_s = sorted(self._steps_s)[len(self._steps_s) // 2]
        even = sum(abs(past_s - usual_s) <= 0.25 * usual_s for past_s in self._steps_s)
        return max(round(step_s / usual_s) - 1, 0) if even >= EVEN_SHARE * len(self._steps_s) else 0
