"""Unix time of the frames of a live stream, from the stream's own times where it has them.

Of most streams a frame was taken when it came, less what the network delayed it: the difference between both clocks
is the smallest seen, and may grow by DRIFT, so that a camera whose clock runs slow is followed. Of a paced stream (HLS)
whole segments come at once: its frames are to be given at the pace of their own times, from the first one on.

Unix time is read once, so a computer's clock that is set does not disturb a stream."""

import math
from collections.abc import Callable

from engines.decoding.times import StreamTime

DRIFT = 1e-3  # seconds a second; clocks of cameras differ by a tenth of that
BELIEVED_S = 5.0  # a frame that seems to have been under way for longer has a wrong time
BURST_S = 60.0  # of a paced stream, how far ahead of its time a frame may come
LATE_S = 1.0  # of a paced stream, how late; then it goes on from there, as players do
APART_S = 1e-3  # between two frames, at least


class LiveClock:
    """Times of one stream's frames, always rising; owned by the thread that reads it."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._steady = steady
        self.unix_s = wall() - steady()  # added to a steady time
        self._latest_s = -math.inf
        self.restart(None)

    def restart(self, rate: float | None) -> None:
        """A connection begins, whose stream states this rate."""
        self._own = StreamTime(rate)
        self._offset_s = self._before_s = math.nan

    def place(self, stated_s: float, paced: bool = False) -> float:
        """Steady time at which a frame was taken that came now, or, paced, at which it is to be given.
        stated_s: its time in the stream; NaN where it has none: then it was taken now."""
        placed_s = now_s = self._steady()
        if not math.isnan(stated_s):
            own_s, _ = self._own.next(stated_s)
            offset_s = now_s - own_s
            if paced:
                believed = -BURST_S <= offset_s - self._offset_s <= LATE_S
            else:
                self._offset_s += DRIFT * (now_s - self._before_s)
                believed = 0 <= offset_s - self._offset_s <= BELIEVED_S
            if not believed:  # also of the first frame, where no offset is known
                self._offset_s = offset_s
            placed_s, self._before_s = own_s + self._offset_s, now_s
        self._latest_s = max(placed_s, self._latest_s + APART_S)
        return self._latest_s
