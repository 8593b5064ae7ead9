"""The last seconds of what cameras sent, as it came: to warm up an engine, and to show what came before an event."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stream.wire import Message

MOST_BYTES = 256 * 1024 * 1024  # of all cameras; the oldest go first


@dataclass(frozen=True, slots=True)
class PendingFrame:
    """A message that waits. index: its number among its camera's; lost: those before it that nobody took since the
    last one that was taken; captured_at, arrived_at: seconds, Unix time and steady; passed_at: when the last one was
    captured that was passed over since the last one that was taken."""

    camera: str
    message: Message
    index: int
    lost: int
    captured_at: float
    arrived_at: float
    passed_at: float | None = None


class RecentFrames:
    """Keeps messages for some seconds after they came. Plain bookkeeping with times given by the caller."""

    def __init__(self, seconds: float, most_bytes: int = MOST_BYTES) -> None:
        self.seconds, self._most_bytes = seconds, most_bytes
        self._all: deque[PendingFrame] = deque()
        self._bytes = 0
        self.newest: dict[str, PendingFrame] = {}
        """Of each camera, until its stream is over."""

    def add(self, frame: PendingFrame) -> None:
        """Takes the newest message of a camera; those that came too long before it go."""
        self._all.append(frame)
        self.newest[frame.camera] = frame
        self._bytes += len(frame.message.payload)
        while self._all and (self._bytes > self._most_bytes
                             or frame.arrived_at - self._all[0].arrived_at > self.seconds):
            self._bytes -= len(self._all.popleft().message.payload)

    def of(self, camera: str) -> Sequence[PendingFrame]:
        """A camera's messages, oldest first."""
        return [frame for frame in self._all if frame.camera == camera]

    def forget(self, camera: str) -> None:
        """Drops what a camera sent: its stream is over."""
        self.newest.pop(camera, None)
        self._all = deque(frame for frame in self._all if frame.camera != camera)
        self._bytes = sum(len(frame.message.payload) for frame in self._all)
