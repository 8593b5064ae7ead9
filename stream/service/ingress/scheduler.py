"""Frames that wait for the engine: the newest of each camera, and which cameras are next."""

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
    """What became of one camera's messages."""

    received: int = 0
    taken: int = 0  # by the engine
    passed: int = 0  # between two ticks of the model's clock
    bytes: int = 0  # of payload
    dropped: Counter[str] = field(default_factory=Counter)  # by cause


class FrameScheduler:
    """Holds the newest pending frame of each camera and picks which to process next.

        scheduler.open("cell-3")
        scheduler.put("cell-3", message, captured_at, arrived_at=now)
        frames = scheduler.take(8, now, budget_s=lambda camera: 0.2)

    A frame between two ticks of its camera's clock (the recogniser's, see `set_clock`) does not wait. Every frame that
    is not taken is counted by its cause. Owned by the receiver thread. Fair: start-time fair queueing (Goyal, Vin,
    Cheng, SIGCOMM 1996) with equal weights; of cameras with equal start tags the one with the newest frame is first,
    because older ones are about to be overtaken."""

    def __init__(self) -> None:
        self.counters: dict[str, CameraCounters] = {}
        self._pending: dict[str, PendingFrame] = {}
        self._lost: Counter[str] = Counter()
        self._start_tags: dict[str, int] = {}  # of each camera's next frame
        self._virtual_time = 0  # start tag of the frame that was taken last
        self._new_clock: Callable[[], Clock] | None = None
        self._clocks: dict[str, Clock] = {}
        self._last_taken: dict[str, tuple[int, Clock]] = {}  # index of the last frame taken, and the clock before it
        self._passed: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def open(self, camera: str) -> None:
        """Adds a camera; nothing changes for one that is there."""
        self._start_tags.setdefault(camera, 0)
        self.counters.setdefault(camera, CameraCounters())

    def close(self, camera: str) -> None:
        """Removes a camera, its pending frame and its counters."""
        self._reset_clock(camera)
        for table in (self._pending, self._lost, self._start_tags, self.counters):
            table.pop(camera, None)

    def set_clock(self, frame_rate: float, max_gap_s: float) -> None:
        """Gives every camera a fresh clock for a model."""
        self._new_clock = partial(Clock, frame_rate, max_gap_s)
        for camera in self.counters:
            self._reset_clock(camera)

    def advance(self, frames: Sequence[PendingFrame]) -> None:
        """Moves the cameras' clocks past frames that the recogniser gets without `take`."""
        for frame in frames:
            if (clock := self._clock(frame.camera)) is not None:
                clock.tick(frame.captured_at)

    def undo_tick(self, camera: str, index: int) -> None:
        """Frame `index`, which was taken, could not be decoded: the next one may have its tick."""
        taken, clock = self._last_taken.get(camera, (None, None))
        if taken == index and clock is not None:
            self._clocks[camera] = clock

    def put(self, camera: str, message: Message, captured_at: float, arrived_at: float) -> PendingFrame:
        """Adds a frame in place of the camera's pending one, and returns it with its number. It does not wait if the
        camera's clock would pass it over. Raises UsageError for a camera that is not open."""
        if camera not in self._start_tags:
            raise UsageError(f"a frame of {camera!r}, which is not open", "a camera that was opened", "open it")
        counters = self.counters[camera]
        frame = PendingFrame(camera, message, counters.received, 0, captured_at, arrived_at)
        counters.received += 1
        counters.bytes += len(message.payload)
        clock = self._clock(camera)
        if camera in self._pending:
            self._drop(camera, OVERTAKEN)
        elif clock is not None and not clock.wants(captured_at):
            clock.tick(captured_at)
            self._passed[camera] = max(captured_at, self._passed.get(camera, captured_at))
            counters.passed += 1
            return frame
        else:
            self._start_tags[camera] = max(self._start_tags[camera], self._virtual_time)
        self._pending[camera] = frame
        return frame

    def pending(self, camera: str) -> PendingFrame | None:
        """The camera's frame that waits."""
        return self._pending.get(camera)

    def count_refused(self, camera: str, cause: str) -> None:
        """Counts a frame that was not admitted."""
        self.counters[camera].received += 1
        self._drop(camera, cause)

    def discard(self, camera: str) -> None:
        """Drops the pending frame of a camera that leaves."""
        self._reset_clock(camera)
        if self._pending.pop(camera, None) is not None:
            self._drop(camera, LEFT)

    def take(self, most: int, now: float, budget_s: Callable[[str], float]) -> Sequence[PendingFrame]:
        """Removes up to `most` frames, smallest start tag first; those older than their camera's budget are dropped."""
        for camera, frame in list(self._pending.items()):
            if now - frame.arrived_at > budget_s(camera):
                del self._pending[camera]
                self._drop(camera, STALE)
        order = sorted(self._pending, key=lambda name: (self._start_tags[name], -self._pending[name].arrived_at))
        taken = []
        for camera in order[:most]:
            self._virtual_time = self._start_tags[camera]
            self._start_tags[camera] += 1
            self.counters[camera].taken += 1
            frame = replace(self._pending.pop(camera), lost=self._lost.pop(camera, 0),
                            passed_at=self._passed.pop(camera, None))
            if (clock := self._clock(camera)) is not None:
                self._last_taken[camera] = frame.index, copy(clock)
                clock.tick(frame.captured_at)
            taken.append(frame)
        return taken

    def _clock(self, camera: str) -> Clock | None:
        if camera not in self._clocks and self._new_clock is not None:
            self._clocks[camera] = self._new_clock()
        return self._clocks.get(camera)

    def _reset_clock(self, camera: str) -> None:
        for table in (self._clocks, self._last_taken, self._passed):
            table.pop(camera, None)

    def _drop(self, camera: str, cause: str) -> None:
        self.counters[camera].dropped[cause] += 1
        self._lost[camera] += 1
