"""Looking at one camera: its newest picture, and its records as they come."""

import queue
from collections.abc import Iterator, Sequence
from contextlib import suppress

import cv2

from stream.service.egress.outbox import JsonRecord, ResultSink
from stream.service.frames import RecentFrames
from stream.wire import Limits

PERIOD_S = 1.0  # from one batch to the next, at most
WAITING = 100  # batches of records that wait for a slow reader; it loses further ones
QUALITY = 80


class LiveFeed(ResultSink):
    """Serves the pictures and records of the cameras in `recent`. Methods may be called from any thread."""

    def __init__(self, recent: RecentFrames, limits: Limits) -> None:
        self._recent, self._limits = recent, limits
        self._queues: dict[queue.Queue[list[JsonRecord] | None], str] = {}

    def picture(self, camera: str) -> bytes | None:
        """The newest picture as a JPEG; None where there is none that can be shown."""
        frame = self._recent.newest.get(camera)
        if frame is not None and frame.message.encoding == "jpeg":
            return frame.message.payload
        image = None if frame is None else frame.image(self._limits)
        return None if image is None else bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])

    def follow(self, camera: str) -> Iterator[list[JsonRecord]]:
        """A camera's records from now on; an empty list every PERIOD_S in which none come. Ends with the service."""
        waiting: queue.Queue[list[JsonRecord] | None] = queue.Queue(WAITING)
        self._queues[waiting] = camera
        try:
            while True:
                records: list[JsonRecord] | None = []
                with suppress(queue.Empty):
                    records = waiting.get(timeout=PERIOD_S)
                if records is None:
                    return
                yield records
        finally:
            del self._queues[waiting]

    def write(self, records: Sequence[JsonRecord]) -> None:
        for waiting, camera in tuple(self._queues.items()):
            if (own := [record for record in records if record["camera"] == camera]) and not waiting.full():
                waiting.put_nowait(own)

    def close(self, within_s: float = 0.0) -> None:
        for waiting in tuple(self._queues):
            if not waiting.full():
                waiting.put_nowait(None)
