"""Frames as cameras sent them, not yet decoded: one, and those of the last seconds."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.errors import FrameError
from stream.clock import Tick
from stream.frame import Image
from stream.wire.messages import Limits, Message, decode

MOST_BYTES = 256 * 1024 * 1024  # of all cameras


@dataclass(frozen=True, slots=True)
class PendingFrame:
    """A camera's message on its way to the engine. Times in seconds."""

    camera: str
    message: Message
    index: int  # its number among its camera's messages
    lost: int  # frames before it, since the last one that the engine took, that were dropped
    captured_at: float  # Unix time
    arrived_at: float  # steady clock
    tick: Tick | None = None  # of its camera's clock, once it is taken

    def image(self, limits: Limits) -> Image | None:
        """The picture, BGR uint8 [H, W, 3]; None if it cannot be decoded."""
        try:
            return decode(self.message, limits)
        except FrameError:
            return None


class RecentFrames:
    """The last seconds of all cameras, to warm up an engine and to show what came before an event. Owned by the
    receiver thread; other threads may read `newest`. Beyond `most_bytes` the oldest frames go."""

    def __init__(self, seconds: float, most_bytes: int = MOST_BYTES) -> None:
        self.seconds, self._most_bytes = seconds, most_bytes
        self._all: deque[PendingFrame] = deque()
        self._bytes = 0
        self.newest: dict[str, PendingFrame] = {}  # of each camera whose stream has not ended

    def add(self, frame: PendingFrame) -> None:
        """Adds a camera's newest frame, and removes those that arrived more than `seconds` before it."""
        self._all.append(frame)
        self.newest[frame.camera] = frame
        self._bytes += len(frame.message.payload)
        while self._all and (self._bytes > self._most_bytes
                             or frame.arrived_at - self._all[0].arrived_at > self.seconds):
            self._bytes -= len(self._all.popleft().message.payload)

    def of(self, camera: str) -> Sequence[PendingFrame]:
        """A camera's frames, oldest first."""
        return [frame for frame in self._all if frame.camera == camera]

    def forget(self, camera: str) -> None:
        """Removes the frames of a camera whose stream has ended."""
        self.newest.pop(camera, None)
        self._keep(lambda frame: frame.camera != camera)

    def remove(self, frames: Sequence[PendingFrame]) -> None:
        """Removes these frames."""
        removed = {(frame.camera, frame.index) for frame in frames}
        self._keep(lambda frame: (frame.camera, frame.index) not in removed)

    def _keep(self, which: Callable[[PendingFrame], bool]) -> None:
        self._all = deque(filter(which, self._all))
        self._bytes = sum(len(frame.message.payload) for frame in self._all)
