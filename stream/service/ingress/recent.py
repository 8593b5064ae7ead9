"""The last seconds of what cameras sent, as it came: to warm up an engine, and to show what came before an event."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from stream.service.ingress.scheduler import Guest

MOST_BYTES = 256 * 1024 * 1024  # of all cameras; the oldest go first


class Recent:
    """Keeps messages for some seconds after they came. Plain bookkeeping with times given by the caller."""

    def __init__(self, seconds: float, most_bytes: int = MOST_BYTES) -> None:
        self.seconds, self._most_bytes = seconds, most_bytes
        self._all: deque[Guest] = deque()
        self._bytes = 0
        self.newest: dict[str, Guest] = {}
        """Of each camera, until its stream is over."""

    def add(self, guest: Guest) -> None:
        """Takes the newest message of a camera; those that came too long before it go."""
        self._all.append(guest)
        self.newest[guest.camera] = guest
        self._bytes += len(guest.message.payload)
        while self._all and (self._bytes > self._most_bytes
                             or guest.arrived_at - self._all[0].arrived_at > self.seconds):
            self._bytes -= len(self._all.popleft().message.payload)

    def of(self, camera: str) -> Sequence[Guest]:
        """A camera's messages, oldest first."""
        return [guest for guest in self._all if guest.camera == camera]

    def forget(self, camera: str) -> None:
        """Drops what a camera sent: its stream is over."""
        self.newest.pop(camera, None)
        self._all = deque(guest for guest in self._all if guest.camera != camera)
        self._bytes = sum(len(guest.message.payload) for guest in self._all)
