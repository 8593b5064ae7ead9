"""The queue between a reader thread and its consumer. Bounded, and every drop is counted."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from stream.frame import Frame, Gap
from stream.sources.base import SLICE_S

QueuedFrame = tuple[Frame, tuple[Gap, ...]]  # with the gaps before it


class Mailbox:
    """Holds up to `room` frames. When full: with `newest`, the latest replaces the one before it and takes over its
    count of lost frames and its gaps; otherwise `put` waits."""

    def __init__(self, room: int, newest: bool) -> None:
        self._room, self._newest = room, newest
        self._queue: deque[QueuedFrame] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None

    def put(self, frame: Frame, gaps: tuple[Gap, ...] = ()) -> None:
        """Adds a frame and the gaps before it; after `close` it is dropped."""
        with self._changed:
            while not self._newest and len(self._queue) >= self._room and not self._closed:
                self._changed.wait(SLICE_S)
            if len(self._queue) >= self._room:
                older, gaps_before = self._queue.pop()
                frame, gaps = replace(frame, lost=frame.lost + older.lost + 1), gaps_before + gaps
            self._queue.append((frame, gaps))
            self._changed.notify_all()

    def take(self, timeout_s: float, steady: Callable[[], float]) -> QueuedFrame | None:
        """The oldest frame; None once the mailbox is closed.
        Raises the reader's failure after the frames before it; TimeoutError after `timeout_s` without one."""
        until_s = steady() + timeout_s
        with self._changed:
            while not self._closed or self._failure is not None:
                if self._queue:
                    self._changed.notify_all()
                    return self._queue.popleft()
                if self._failure is not None:
                    raise self._failure
                if steady() >= until_s:
                    raise TimeoutError
                self._changed.wait(SLICE_S)
            return None

    def close(self, failure: BaseException | None = None) -> None:
        """Ends every wait soon. `failure`: what the next `take` on an empty mailbox raises."""
        self._failure = self._failure or failure
        self._closed = True
