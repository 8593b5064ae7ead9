"""Where cameras' messages wait for the engine: one place for each camera, the newest message wins.

    put ──► wanted? ──► [camera a: newest] [camera b: newest] ... ──take──► those whose turn it is

A camera's clock is the recogniser's: what it would pass over does not even wait. `keep_time` sets it.

Turns are start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) with equal weights: under overload every camera
that wants more than its share gets the same, and one that was silent has saved nothing up. Of those with the same turn
the newest message is first: older ones are about to be overtaken.
Plain bookkeeping with times given by the caller. Every message that is not taken is counted by its cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial

from engines.errors import UsageError
from stream.clock import Clock
from stream.service.frames import PendingFrame
from stream.wire import Message

OVERTAKEN, STALE, LEFT = "overtaken", "stale", "left"


@dataclass(slots=True)
class CameraCounters:
    """What became of one camera's messages. passed: those between two ticks of its clock; dropped: by cause."""

    received: int = 0
    taken: int = 0
    passed: int = 0
    bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class FrameScheduler:
    """See the file's top. A camera joins with `open`; messages of others are the caller's to refuse."""

    def __init__(self) -> None:
        self.counters: dict[str, CameraCounters] = {}
        self._waiting: dict[str, PendingFrame] = {}
        self._lost: Counter[str] = Counter()
        self._turns: dict[str, int] = {}  # the turn that each camera has next, or has had
        self._turn = 0  # the latest that was served
        self._new_clock: Callable[[], Clock] | None = None
        self._clocks: dict[str, Clock] = {}
        self._before: dict[str, tuple[int, Clock]] = {}  # the last message that was taken, and the clock before it
        self._passed: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, camera: str) -> CameraCounters:
        """Makes a place for a camera; its counts, the one it has if it is back."""
        self._turns.setdefault(camera, 0)
        return self.counters.setdefault(camera, CameraCounters())

    def close(self, camera: str) -> None:
        """Gives up a camera's place and what waits in it."""
        self._start_anew(camera)
        for table in (self._waiting, self._lost, self._turns, self.counters):
            table.pop(camera, None)

    def keep_time(self, frame_rate: float, max_gap_s: float) -> None:
        """Gives every camera a fresh clock of a model."""
        self._new_clock = partial(Clock, frame_rate, max_gap_s)
        for camera in self.counters:
            self._start_anew(camera)

    def show(self, frames: Sequence[PendingFrame]) -> None:
        """Lets the cameras' clocks know of messages that the recogniser is shown beside those that are taken."""
        for frame in frames:
            if (clock := self._clock(frame.camera)) is not None:
                clock.tick(frame.captured_at)

    def spoilt(self, camera: str, index: int) -> None:
        """A message that was taken could not be used: its tick is the next one's, if that was not taken yet."""
        taken, clock = self._before.get(camera, (None, None))
        if taken == index and clock is not None:
            self._clocks[camera] = clock

    def put(self, camera: str, message: Message, captured_at: float, arrived_at: float) -> PendingFrame:
        """Leaves a message; one of the same camera that still waits is overtaken. Returns it with its number.

        It does not wait if the camera's clock would pass it over."""
        if camera not in self._turns:
            raise UsageError(f"a message of {camera!r}, which has no place", "a camera that was opened", "open it")
        counts = self.counters[camera]
        frame = PendingFrame(camera, message, counts.received, 0, captured_at, arrived_at)
        counts.received += 1
        counts.bytes += len(message.payload)
        clock = self._clock(camera)
        if camera in self._waiting:
            self._drop(camera, OVERTAKEN)
        elif clock is not None and not clock.wants(captured_at):
            clock.tick(captured_at)
            self._passed[camera] = max(captured_at, self._passed.get(camera, captured_at))
            counts.passed += 1
            return frame
        else:
            self._turns[camera] = max(self._turns[camera], self._turn)
        self._waiting[camera] = frame
        return frame

    def waits(self, camera: str) -> PendingFrame | None:
        """What waits of a camera."""
        return self._waiting.get(camera)

    def refuse(self, camera: str, cause: str) -> None:
        """Counts a message that is not even let in."""
        self.counters[camera].received += 1
        self._drop(camera, cause)

    def discard(self, camera: str) -> None:
        """Drops what waits of a camera that leaves."""
        self._start_anew(camera)
        if self._waiting.pop(camera, None) is not None:
            self._drop(camera, LEFT)

    def take(self, most: int, now: float, budget_s: Callable[[str], float]) -> Sequence[PendingFrame]:
        """Up to `most` messages, of the cameras whose turn it is; those older than a camera's budget are dropped."""
        for camera, frame in list(self._waiting.items()):
            if now - frame.arrived_at > budget_s(camera):
                del self._waiting[camera]
                self._drop(camera, STALE)
        next_first = sorted(self._waiting, key=lambda camera: (self._turns[camera], -self._waiting[camera].arrived_at))
        taken = []
        for camera in next_first[:most]:
            self._turn = self._turns[camera]
            self._turns[camera] += 1
            self.counters[camera].taken += 1
            frame = replace(self._waiting.pop(camera), lost=self._lost.pop(camera, 0),
                            passed_at=self._passed.pop(camera, None))
            if (clock := self._clock(camera)) is not None:
                self._before[camera] = frame.index, copy(clock)
                clock.tick(frame.captured_at)
            taken.append(frame)
        return taken

    def _clock(self, camera: str) -> Clock | None:
        if camera not in self._clocks and self._new_clock is not None:
            self._clocks[camera] = self._new_clock()
        return self._clocks.get(camera)

    def _start_anew(self, camera: str) -> None:
        for table in (self._clocks, self._before, self._passed):
            table.pop(camera, None)

    def _drop(self, camera: str, cause: str) -> None:
        self.counters[camera].dropped[cause] += 1
        self._lost[camera] += 1
