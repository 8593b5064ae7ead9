"""A video of every event, with what came before and after it, made from the messages as cameras sent them.

    event opens ──► its frames are kept, those of the last seconds too ──► event closes, `after_s` later ──► H.264"""

import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from engines.errors import SinkError
from stream.clock import unix_time
from stream.frame import ENGINE_RESTARTED, Event, Frame, Gap, Record
from stream.sinks.base import Sink, sink_errors
from stream.sinks.log import clip_name
from stream.sinks.segments import CLIP_NAME, VideoSettings, delete_oldest
from stream.sinks.video import write_video
from stream.wire.frames import PendingFrame, RecentFrames
from stream.wire.messages import Limits

log = logging.getLogger("gatestream.service")

LATE_S = 3.0  # a video waits so much longer than `after_s` for frames that do not come
WAITING = 64  # videos that may wait to be written
STOPS_WITHIN_S = 0.5


@dataclass
class _Clip:
    """The frames of an event. Once it is closed: its name, and when it is complete."""

    camera: str
    started_at: float
    frames: list[PendingFrame] = field(default_factory=list)
    bytes: int = 0  # of the frames
    name: str = ""
    ends_at: float = math.inf  # capture time of its last frame
    due: float = math.inf  # steady seconds until which that is waited for


class ClipRecorder(Sink):
    """Collects the frames of events undecoded, and decodes and writes them in a thread of its own.
    call_soon: has the receiver's thread call a function; recent: what that thread keeps of all cameras. `on_frame` and
    `flush` are the receiver's thread's, `write` and `close` those of the results' thread. A video that is being written
    is called NAME.part; what cannot be written is counted in `counts`, and costs that video. most_bytes: of the frames
    of all videos; above that the largest one loses every second frame, again and again, and that is counted."""

    def __init__(self, settings: VideoSettings, call_soon: Callable[[Callable[[], None]], None], recent: RecentFrames,
                 limits: Limits, most_bytes: int, steady: Callable[[], float] = time.monotonic,
                 wall: Callable[[], float] = unix_time) -> None:
        self._settings, self._call_soon, self._recent, self._limits = settings, call_soon, recent, limits
        self._most_bytes, self._steady, self._wall = most_bytes, steady, wall
        self._written_bytes: queue.SimpleQueue[int] = queue.SimpleQueue()  # of clips that are done with
        self._bytes = 0  # of all frames that are kept here
        self._open: dict[tuple[str, str, int | None], _Clip] = {}  # by camera, head, number
        self._closed: list[_Clip] = []
        self._queue: queue.Queue[_Clip | None] = queue.Queue(WAITING)
        self.counts: Counter[str] = Counter()
        with sink_errors("making", settings.folder):
            settings.folder.mkdir(parents=True, exist_ok=True)
            for path in settings.folder.glob("*.mp4.part"):  # of a process that was killed
                if CLIP_NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._write_all, name="clips", daemon=True)
        self._thread.start()

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, Event):
                self._call_soon(partial(self._on_event, record))
            elif isinstance(record, Gap) and record.action == ENGINE_RESTARTED:
                self._call_soon(partial(self._discard, record.camera))

    def close(self) -> None:
        waiting = self._queue.qsize()
        with suppress(queue.Full):  # so many are not written in time anyway
            self._queue.put_nowait(None)
        self._thread.join(STOPS_WITHIN_S)
        if self._thread.is_alive():
            log.warning("up to %d videos of events were not finished", waiting + 1)

    # ---- on the receiver's thread ----

    def _on_event(self, event: Event) -> None:
        key = (event.camera, event.head, event.number)
        clip = self._open.pop(key, None)
        if clip is None:
            first_at = event.started_at - self._settings.before_s
            clip = _Clip(event.camera, event.started_at)
            for frame in self._recent.of(event.camera):
                if frame.captured_at >= first_at:
                    self._keep(clip, frame)
        if event.open:
            self._open[key] = clip
            return
        clip.name = event.clip or clip_name(event.id or "", event.camera, event.label)
        clip.ends_at = event.ended_at + self._settings.after_s
        clip.due = self._steady() + self._settings.after_s + LATE_S
        self._closed.append(clip)

    def _discard(self, camera: str) -> None:
        """Drops the clips of a camera's open events, which are never closed."""
        for key in [key for key, clip in self._open.items() if clip.camera == camera]:
            self._bytes -= self._open.pop(key).bytes

    def on_frame(self, frame: PendingFrame) -> None:
        """Keeps a frame of a camera with an event under way."""
        for clip in (*self._open.values(), *self._closed):
            if clip.camera == frame.camera and frame.captured_at - clip.started_at < self._settings.most_s:
                self._keep(clip, frame)

    def _keep(self, clip: _Clip, frame: PendingFrame) -> None:
        clip.frames.append(frame)
        clip.bytes += len(frame.message.payload)
        self._bytes += len(frame.message.payload)
        while not self._written_bytes.empty():
            self._bytes -= self._written_bytes.get()
        while self._bytes > self._most_bytes:
            largest = max((clip, *self._open.values(), *self._closed), key=lambda each: each.bytes)
            if not (removed := largest.frames[1::2]):
                break
            if not self.counts["frames left out"]:
                log.warning("pictures of events take over %.0f MB: videos get fewer of them", self._most_bytes / 1e6)
            del largest.frames[1::2]
            bytes = sum(len(each.message.payload) for each in removed)
            largest.bytes, self._bytes = largest.bytes - bytes, self._bytes - bytes
            self.counts["frames left out"] += len(removed)

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
                self._bytes -= clip.bytes

    # ---- on the writer's thread ----

    def _write_all(self) -> None:
        while (clip := self._queue.get()) is not None:
            try:
                self.counts["written"] += self._write_clip(clip)
                delete_oldest(self._settings.folder, self._settings.keep_days, self._settings.keep_mb, self._wall())
            except (SinkError, ValueError) as error:
                self.counts["failed"] += 1
                self.fault = f"the video {clip.name} cannot be written: {error}"
                log.error("%s", self.fault)
            else:
                self.fault = None
            self._written_bytes.put(clip.bytes)

    def _write_clip(self, clip: _Clip) -> bool:
        """Whether there was any picture for the video."""
        frames = sorted((frame for frame in clip.frames if frame.captured_at <= clip.ends_at),
                        key=lambda frame: frame.captured_at)
        images = ((frame.captured_at, image) for frame in frames if (image := frame.image(self._limits)) is not None)
        return write_video(self._settings.folder / clip.name, images)
