"""A video of every event, with what came before and after it, made from the messages as cameras sent them.

    event opens ──► its frames are kept, those of the last seconds too ──► event closes, `after_s` later ──► H.264"""

import logging
import math
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from engines.errors import SinkError
from stream.frame import ENGINE_RESTARTED
from stream.service.config import ClipsConfig
from stream.service.egress.outbox import JsonRecord, ResultSink
from stream.service.frames import PendingFrame, RecentFrames
from stream.sinks.base import sink_errors
from stream.sinks.log import clip_name
from stream.sinks.video import write_video
from stream.wire import Limits

log = logging.getLogger("gatestream.service")

LATE_S = 3.0  # a video waits so much longer than `after_s` for frames that do not come
WAITING = 64  # videos that may wait to be written
NAME = re.compile(r"[0-9a-f]+-\d+_.*\.mp4")


@dataclass
class _Clip:
    """The frames of an event. Once it is closed: its name, and when it is complete."""

    camera: str
    frames: list[PendingFrame]
    started_at: float
    name: str = ""
    ends_at: float = math.inf  # capture time of its last frame
    due: float = math.inf  # steady seconds until which that is waited for


class ClipRecorder(ResultSink):
    """Collects the frames of events undecoded, and decodes and writes them in a thread of its own.
    call_soon: has the receiver's thread call a function; recent: what that thread keeps of all cameras. `on_frame` and
    `flush` are the receiver's thread's, `write` and `close` those of the results' thread. A video that is being written
    is called NAME.part; what cannot be written is counted in `counts`, and costs that video."""

    def __init__(self, settings: ClipsConfig, call_soon: Callable[[Callable[[], None]], None], recent: RecentFrames,
                 limits: Limits, steady: Callable[[], float] = time.monotonic,
                 wall: Callable[[], float] = time.time) -> None:
        self._settings, self._call_soon, self._recent, self._limits = settings, call_soon, recent, limits
        self._steady, self._wall = steady, wall
        self._open: dict[tuple[str, str], _Clip] = {}  # by camera and head
        self._closed: list[_Clip] = []
        self._queue: queue.Queue[_Clip | None] = queue.Queue(WAITING)
        self.counts: Counter[str] = Counter()
        with sink_errors("making", settings.folder):
            settings.folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._write_all, name="clips", daemon=True)
        self._thread.start()

    def write(self, records: Sequence[JsonRecord]) -> None:
        for record in records:
            if record["type"] == "event":
                self._call_soon(partial(self._on_event, record))
            elif record["type"] == "gap" and record["action"] == ENGINE_RESTARTED:
                self._call_soon(partial(self._discard, record["camera"]))

    def close(self, within_s: float) -> None:
        waiting = self._queue.qsize()
        with suppress(queue.Full):  # so many are not written in time anyway
            self._queue.put_nowait(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            log.warning("up to %d videos of events were not finished", waiting + 1)

    # ---- on the receiver's thread ----

    def _on_event(self, event: JsonRecord) -> None:
        key = (event["camera"], event["head"])
        clip = self._open.pop(key, None)
        if clip is None:
            first_at = event["started_at"] - self._settings.before_s
            frames = [frame for frame in self._recent.of(event["camera"]) if frame.captured_at >= first_at]
            clip = _Clip(event["camera"], frames, event["started_at"])
        if event["open"]:
            self._open[key] = clip
            return
        clip.name = clip_name(event["id"], event["camera"], event["label"])
        clip.ends_at = event["ended_at"] + self._settings.after_s
        clip.due = self._steady() + self._settings.after_s + LATE_S
        self._closed.append(clip)

    def _discard(self, camera: str) -> None:
        """Drops the clips of a camera's open events, which are never closed."""
        self._open = {key: clip for key, clip in self._open.items() if clip.camera != camera}

    def on_frame(self, frame: PendingFrame) -> None:
        """Keeps a frame of a camera with an event under way."""
        for clip in (*self._open.values(), *self._closed):
            if clip.camera == frame.camera and frame.captured_at - clip.started_at < self._settings.most_s:
                clip.frames.append(frame)

    def flush(self) -> None:
        """Hands complete videos to the thread that writes them."""
        now = self._steady()
        complete = [clip for clip in self._closed
                    if now >= clip.due or (clip.frames and clip.frames[-1].captured_at >= clip.ends_at)]
        self._closed = [clip for clip in self._closed if clip not in complete]
        for clip in complete:
            try:
                self._queue.put_nowait(clip)
            except queue.Full:
                self.counts["dropped"] += 1

    # ---- on the writer's thread ----

    def _write_all(self) -> None:
        while (clip := self._queue.get()) is not None:
            try:
                self.counts["written"] += self._write_clip(clip)
                self._delete_old()
            except (SinkError, ValueError) as error:
                self.counts["failed"] += 1
                log.error("the video %s cannot be written: %s", clip.name, error)

    def _write_clip(self, clip: _Clip) -> bool:
        """Whether there was any picture for the video."""
        frames = sorted((frame for frame in clip.frames if frame.captured_at <= clip.ends_at),
                        key=lambda frame: frame.captured_at)
        images = ((frame.captured_at, image) for frame in frames if (image := frame.image(self._limits)) is not None)
        return write_video(self._settings.folder / clip.name, images)

    def _delete_old(self) -> None:
        """Deletes videos of ours that are too old, then the oldest ones beyond the limit."""
        with sink_errors("tidying", self._settings.folder):
            found = [(path.stat().st_mtime, path.stat().st_size, path)
                     for path in self._settings.folder.glob("*.mp4") if NAME.fullmatch(path.name)]
            left, oldest = self._settings.keep_mb * 1e6, self._wall() - 86_400 * self._settings.keep_days
            for changed_at, size, path in sorted(found, reverse=True):
                left -= size
                if left < 0 or changed_at < oldest:
                    path.unlink(missing_ok=True)
