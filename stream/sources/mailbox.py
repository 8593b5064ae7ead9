"""Where a reader thread leaves frames for the one who wants them. Bounded, and every drop is counted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from stream.frame import Frame, Gap

SLICE_S = 0.1  # waits look up this often, so that `close` need take no lock and may come from a signal handler


@dataclass(frozen=True, slots=True)
class Post:
    """A frame, and the gaps to be told before it."""

    frame: Frame
    gaps: tuple[Gap, ...] = ()


class Mailbox:
    """Holds up to `room` frames. When full: with `newest`, the latest replaces the one before it and takes over its
    count of lost frames and its gaps; otherwise `put` waits.
    """

    def __init__(self, room: int, newest: bool) -> None:
        self._room, self._newest = room, newest
        self._posts: deque[Post] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None

    def put(self, frame: Frame, gaps: tuple[Gap, ...] = ()) -> None:
        """Leaves a frame; after `close` it is thrown away."""
        post = Post(frame, gaps)
        with self._changed:
            while not self._newest and len(self._posts) >= self._room and not self._closed:
                self._changed.wait(SLICE_S)
            if len(self._posts) >= self._room:
                older = self._posts.pop()
                post = Post(replace(frame, lost=frame.lost + older.frame.lost + 1), older.gaps + gaps)
            self._posts.append(post)
            self._changed.notify_all()

    def take(self, patience_s: float, steady: Callable[[], float]) -> Post | None:
        """The oldest frame; None once the mailbox is closed.

        Raises what the reader died of, after the frames it had left; TimeoutError after `patience_s` without one.
        """
        until_s = steady() + patience_s
        with self._changed:
            while not self._posts:
                if self._failure is not None:
                    raise self._failure
                if self._closed:
                    return None
                if steady() >= until_s:
                    raise TimeoutError
                self._changed.wait(SLICE_S)
            if self._closed and self._failure is None:
                return None
            post = self._posts.popleft()
            self._changed.notify_all()
            return post

    def close(self, failure: BaseException | None = None) -> None:
        """Ends every wait soon. `failure`: what the next `take` on an empty mailbox raises."""
        self._failure = self._failure or failure
        self._closed = True
