"""All that cameras send, in segments of a minute or so: `clips.continuous`.

    frames ──► queue, bounded in bytes ──► a thread ──► a file for each camera, `.part` until it is whole"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from engines.decoding.images import parse_size_hw
from engines.errors import SinkError
from stream.clock import unix_time
from stream.frame import Frame, Record
from stream.sinks.base import Sink, sink_errors
from stream.sinks.segments import SegmentWriter, VideoSettings, delete_oldest, finish_all
from stream.wire.frames import PendingFrame
from stream.wire.messages import Limits

log = logging.getLogger("gatestream.service")

CHECK_S = 1.0  # between two looks for cameras that have gone
LEAST_S = 1.0  # of a segment
LATE_S = 3.0  # a segment waits so much longer than its length for frames that do not come
BACK_S = 1.0  # a camera's time may run back by as much within a segment
RETRY_S = 5.0  # after a segment that could not be written
STOPS_WITHIN_S = 0.4
THINNING = ((0.75, 4), (0.5, 2), (0.0, 1))  # above this share of the queue's bytes every so many-th frame is taken


class ContinuousRecorder(Sink):
    """Writes the frames that `on_frame` gets, which never waits. Frames that are too many are thinned and counted.
    most_bytes: of the frames that wait; counts: where all that happens is counted."""

    def __init__(self, settings: VideoSettings, limits: Limits, most_bytes: int, counts: Counter[str],
                 steady: Callable[[], float] = time.monotonic, wall: Callable[[], float] = unix_time) -> None:
        self._settings, self._limits, self._most_bytes, self.counts = settings, limits, most_bytes, counts
        self._steady, self._wall = steady, wall
        self._queue: queue.SimpleQueue[PendingFrame | None] = queue.SimpleQueue()
        self._bytes_put = self._bytes_done = 0  # each written by one thread alone
        self._open: dict[str, tuple[SegmentWriter, float]] = {}  # with the steady second at which each is closed
        self._failed: dict[str, float] = {}  # cameras, with the steady second at which they are tried again
        self._check_at, self._tidies = 0.0, True
        with sink_errors("making", settings.folder):
            settings.folder.mkdir(parents=True, exist_ok=True)
            finish_all(settings.folder)
        self._thread = threading.Thread(target=self._run, name="continuous recording", daemon=True)
        self._thread.start()

    def on_frame(self, frame: PendingFrame) -> None:
        """Takes a frame. Belongs to the receiver's thread."""
        share = (self._bytes_put - self._bytes_done) / self._most_bytes
        if share >= 1 or frame.index % next(every for above, every in THINNING if share >= above):
            if not self.counts["segment frames left out"]:
                log.warning("the continuous recording is behind: it gets fewer pictures")
            self.counts["segment frames left out"] += 1
            return
        self._bytes_put += len(frame.message.payload)
        self._queue.put(frame)

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        """Takes frames only."""

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(STOPS_WITHIN_S)
        if self._thread.is_alive():
            log.warning("the continuous recording does not end in time: the next start finishes its segments")

    # ---- on the writer's thread ----

    def _run(self) -> None:
        while True:
            with suppress(queue.Empty):
                if (frame := self._queue.get(timeout=CHECK_S)) is None:
                    break
                try:
                    self._write(frame)
                except Exception as error:  # whatever it is costs this segment
                    self._fail(frame.camera, error)
                self._bytes_done += len(frame.message.payload)
            if (now := self._steady()) >= self._check_at:
                self._check_at = now + CHECK_S
                self._finish([camera for camera, (_, due) in self._open.items() if now >= due])
                self._tidy()
                for camera in [camera for camera, again_at in self._failed.items() if now > again_at + LATE_S]:
                    self._recover(camera)  # it has gone
        self._finish(list(self._open))

    def _write(self, frame: PendingFrame) -> None:
        message, camera, at, now = frame.message, frame.camera, frame.captured_at, self._steady()
        if now < self._failed.get(camera, 0.0):
            self.counts["segment frames left out"] += 1
            return
        segment, _ = self._open.get(camera, (None, 0.0))
        # Once one was not, all are encoded: a camera may send JPEGs of the frames between those for the engine.
        jpeg = message.encoding != "raw" and message.payload[:2] == b"\xff\xd8" and (segment is None or segment.jpeg)
        picture = message.payload if jpeg else frame.image(self._limits)
        if picture is None:
            return  # the engine's process says so
        size_hw = parse_size_hw(picture) if isinstance(picture, bytes) else picture.shape[:2]
        if size_hw is None:
            return
        if segment is not None and not ((segment.size_hw, segment.jpeg) == (size_hw, jpeg)
                                        and at > segment.newest_at - BACK_S
                                        and at - segment.started_at < self._settings.segment_s):
            if 0 <= at - segment.started_at < LEAST_S:  # else each picture of another size would be a file
                self.counts["segment frames left out"] += 1
                return
            self._finish([camera])
            segment = None
        if segment is None:
            segment = SegmentWriter(self._settings.folder, camera, at, size_hw, jpeg)
            self._open[camera] = segment, now + self._settings.segment_s + LATE_S
        segment.write(at, picture)
        self._recover(camera)

    def _finish(self, cameras: Sequence[str]) -> None:
        for camera in cameras:
            try:
                self._open.pop(camera)[0].close()
                self.counts["segments written"] += 1
                self._tidies = True
            except Exception as error:
                self._fail(camera, error)

    def _tidy(self) -> None:
        """Deletes the oldest, if anything was written since the last time."""
        if self._tidies:
            self._tidies = False
            try:
                delete_oldest(self._settings.folder, self._settings.keep_days, self._settings.keep_mb, self._wall())
            except SinkError as error:
                self._fail("", error)

    def _fail(self, camera: str, error: Exception) -> None:
        self.counts["segments failed"] += 1
        self._failed[camera] = self._steady() + RETRY_S
        if self.fault is None:
            log.error("the continuous recording fails: %s", error, exc_info=not isinstance(error, SinkError))
        self.fault = str(error)
        if camera in self._open:
            with suppress(Exception):  # it fails as before; what was written can be played
                self._open.pop(camera)[0].close()

    def _recover(self, camera: str) -> None:
        if self._failed.pop(camera, None) is not None and not self._failed:
            self.fault = None
