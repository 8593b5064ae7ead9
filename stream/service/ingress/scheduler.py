"""Frames that wait for the engine: the newest of each camera, and which cameras are next."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from engines.errors import UsageError
from stream.clock import Clock
from stream.wire.frames import PendingFrame
from stream.wire.messages import Message

OVERTAKEN, STALE, LEFT, MEMORY = "overtaken", "stale", "left", "memory"


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

    A frame between two ticks of its camera's clock (see `set_clock`) does not wait. Every frame that
    is not taken is counted by its cause. Owned by the receiver thread. Fair: start-time fair queueing (Goyal, Vin,
    Cheng, SIGCOMM 1996) with equal weights; of cameras with equal start tags the one with the newest frame is first,
    because older ones are about to be overtaken."""

    def __init__(self, most_bytes: int = 256 * 1024 * 1024) -> None:
        """most_bytes: of all pending frames; above that the oldest go."""
        self._most_bytes, self._bytes = most_bytes, 0
        self.counters: dict[str, CameraCounters] = {}
        self._pending: dict[str, PendingFrame] = {}
        self._lost: Counter[str] = Counter()
        self._start_tags: dict[str, int] = {}  # of each camera's next frame
        self._virtual_time = 0  # start tag of the frame that was taken last
        self._rate: Sequence[float] | None = None  # of clocks: frame rate and longest gap
        self._rates: Mapping[str, Sequence[float]] = {}  # the same of cameras that have another model
        self._clocks: dict[str, Clock] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def open(self, camera: str) -> None:
        """Adds a camera; nothing changes for one that is there."""
        self._start_tags.setdefault(camera, 0)
        self.counters.setdefault(camera, CameraCounters())

    def close(self, camera: str) -> None:
        """Removes a camera, its pending frame and its counters."""
        self._reset_clock(camera)
        self._remove_pending(camera)
        for table in (self._lost, self._start_tags, self.counters):
            table.pop(camera, None)

    def set_clock(self, frame_rate: float, max_gap_s: float, own: Mapping[str, Sequence[float]] | None = None) -> None:
        """Gives every camera a fresh clock for a model. own: frame rate and longest gap of cameras that have another
        model."""
        self._rate, self._rates = (frame_rate, max_gap_s), own or {}
        for camera in self.counters:
            self._reset_clock(camera)

    def tick(self, frames: Sequence[PendingFrame]) -> list[PendingFrame]:
        """Advances the cameras' clocks by frames, which are returned with their ticks, but for those between two."""
        ticked = []
        for frame in frames:
            clock = self._clock(frame.camera)
            tick = None if clock is None else clock.tick(frame.captured_at)
            if tick is None or tick.use:
                ticked.append(replace(frame, tick=tick))
        return ticked

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
        if self._remove_pending(camera) is not None:
            self._drop(camera, OVERTAKEN)
        elif clock is not None and not clock.wants(captured_at):
            clock.tick(captured_at)
            counters.passed += 1
            return frame
        else:
            self._start_tags[camera] = max(self._start_tags[camera], self._virtual_time)
        self._pending[camera] = frame
        self._bytes += len(message.payload)
        while self._bytes > self._most_bytes and len(self._pending) > 1:
            oldest = min(self._pending.values(), key=lambda one: one.arrived_at).camera
            self._remove_pending(oldest)
            self._drop(oldest, MEMORY)
        return frame

    def next_at(self, frame: PendingFrame) -> float | None:
        """From when on its camera's clock wants another frame, if it gets this one, by the camera's own times; None
        where it wants all."""
        clock, stated = copy(self._clock(frame.camera)), frame.message.captured_at
        if clock is None or stated is None:
            return None
        clock.tick(frame.captured_at)
        return None if clock.next_at is None else clock.next_at + stated - frame.captured_at

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
        if self._remove_pending(camera) is not None:
            self._drop(camera, LEFT)

    def take(self, most: int, now: float, budget_s: Callable[[str], float]) -> Sequence[PendingFrame]:
        """Removes up to `most` frames, smallest start tag first; those older than their camera's budget are dropped."""
        for camera, frame in list(self._pending.items()):
            if now - frame.arrived_at > budget_s(camera):
                self._remove_pending(camera)
                self._drop(camera, STALE)
        order = sorted(self._pending, key=lambda name: (self._start_tags[name], -self._pending[name].arrived_at))
        taken = []
        for camera in order[:most]:
            self._virtual_time = self._start_tags[camera]
            self._start_tags[camera] += 1
            frames = self.tick([replace(self._pending[camera], lost=self._lost[camera])])
            self._remove_pending(camera)
            if frames:
                self._lost.pop(camera, None)
            self.counters[camera].taken += len(frames)
            self.counters[camera].passed += 1 - len(frames)
            taken += frames
        return taken

    def _remove_pending(self, camera: str) -> PendingFrame | None:
        frame = self._pending.pop(camera, None)
        self._bytes -= len(frame.message.payload) if frame is not None else 0
        return frame

    def _clock(self, camera: str) -> Clock | None:
        if camera not in self._clocks and self._rate is not None:
            self._clocks[camera] = Clock(*self._rates.get(camera, self._rate))
        return self._clocks.get(camera)

    def _reset_clock(self, camera: str) -> None:
        self._clocks.pop(camera, None)

    def _drop(self, camera: str, cause: str) -> None:
        self.counters[camera].dropped[cause] += 1
        self._lost[camera] += 1
