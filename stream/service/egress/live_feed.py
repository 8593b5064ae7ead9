"""What someone who looks at a service's camera is shown: its newest picture, and its records as they come."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence

import cv2

from engines.errors import FrameError
from stream.service.egress.outbox import ResultSink, Said
from stream.service.frames import RecentFrames
from stream.wire import Limits, decode

ROUND_S = 1.0  # from one word to the next, at most
WAITING = 100  # batches of records that wait for a slow reader; further ones are lost to it
QUALITY = 80


class LiveFeed(ResultSink):
    """See the file's top. Methods may be called from any thread."""

    def __init__(self, recent: Callable[[], RecentFrames], limits: Limits) -> None:
        self._recent, self._limits = recent, limits
        self._queues: dict[queue.Queue[list[Said] | None], str] = {}

    def picture(self, camera: str) -> bytes | None:
        """A JPEG; None where there is no picture that can be shown."""
        frame = self._recent().newest.get(camera)
        if frame is None:
            return None
        if frame.message.encoding == "jpeg":
            return frame.message.payload
        try:
            image = decode(frame.message, self._limits)
        except FrameError:
            return None
        return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])

    def follow(self, camera: str) -> Iterator[list[Said]]:
        """Records of a camera from now on, in order; none of them every ROUND_S in which none come. Ends with the
        service."""
        waiting: queue.Queue[list[Said] | None] = queue.Queue(WAITING)
        self._queues[waiting] = camera
        try:
            while True:
                try:
                    said = waiting.get(timeout=ROUND_S)
                except queue.Empty:
                    said = []
                if said is None:
                    return
                yield said
        finally:
            del self._queues[waiting]

    def write(self, said: Sequence[Said]) -> None:
        for waiting, camera in tuple(self._queues.items()):
            if (own := [one for one in said if one["camera"] == camera]) and not waiting.full():
                waiting.put_nowait(own)

    def close(self, within_s: float = 0.0) -> None:
        for waiting in tuple(self._queues):
            if not waiting.full():
                waiting.put_nowait(None)
