"""Looking at cameras: their newest pictures, and records as they come."""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

import cv2

from stream.frame import Frame, Record, record_type
from stream.sinks.base import Sink
from stream.wire.frames import PendingFrame, RecentFrames
from stream.wire.messages import Limits

PERIOD_S = 1.0  # a reader gets records, or hears that there are none
WAITING = 1000  # records that wait for a slow reader; it loses further ones
QUALITY = 80


class LiveFeed(Sink):
    """Serves the pictures and records of the cameras in `recent`. Methods may be called from any thread.
    counts: "missed" are records that slow readers lost."""

    def __init__(self, recent: RecentFrames, limits: Limits) -> None:
        self._recent, self._limits = recent, limits
        self._readers: set[Reader] = set()
        self.ended = False
        self.counts: Counter[str] = Counter()

    def newest(self, camera: str) -> PendingFrame | None:
        """A camera's newest frame."""
        return self._recent.newest.get(camera)

    def picture(self, camera: str) -> bytes | None:
        """The newest picture as a JPEG; None where there is none that can be shown."""
        frame = self.newest(camera)
        if frame is not None and frame.message.encoding == "jpeg":
            return frame.message.payload
        image = None if frame is None else frame.image(self._limits)
        return None if image is None else bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])

    @contextmanager
    def reader(self, cameras: Collection[str] = (), types: Collection[str] = ()) -> Iterator["Reader"]:
        """For a task of an event loop: the records of these cameras and types from now on; empty: of all."""
        reader = Reader(cameras, types, self.counts)
        self._readers.add(reader)
        if self.ended:
            reader.put(None)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if readers := tuple(self._readers):
            lines = [(record.camera, record_type(record), json.dumps(record.as_json())) for record in records]
            for reader in readers:
                reader.put(lines)

    def close(self) -> None:
        self.ended = True
        for reader in tuple(self._readers):
            reader.put(None)


class Reader:
    """Records that wait for one reader. `put` may be called from any thread, `get` by the task that made it."""

    def __init__(self, cameras: Collection[str], types: Collection[str], counts: Counter[str]) -> None:
        self._cameras, self._types, self._counts = cameras, types, counts
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        self._waiting: deque[str] = deque()
        self._missed, self._ended = 0, False

    def put(self, lines: Sequence[tuple[str, str, str]] | None) -> None:
        """Adds records (camera, type, JSON); None: there will be no more."""
        own = [line for camera, kind, line in lines or () if (not self._cameras or camera in self._cameras)
               and (not self._types or kind in self._types)]
        room = max(0, WAITING - len(self._waiting))
        self._waiting.extend(own[:room])
        self._missed += len(own[room:])
        self._counts["missed"] += len(own[room:])
        self._ended |= lines is None
        if own or self._ended:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._changed.set)

    async def get(self) -> list[str] | None:
        """What has come, within PERIOD_S; records that were lost are one of type "missed". None: there is no more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PERIOD_S):
                await self._changed.wait()
        self._changed.clear()
        if self._ended:
            return None
        missed, self._missed = self._missed, 0
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        return [*lines, json.dumps({"type": "missed", "records": missed})] if missed else lines
