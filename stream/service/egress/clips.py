"""A video of every event, with what came before and after it, made from the messages as cameras sent them.

    event opens ──► its pictures are kept, those of the last seconds too ──► event closes, `after_s` later ──► H.264

Pictures are kept undecoded on the receiver's thread; a thread of its own decodes and writes them. A video that is being
written is `NAME.part`; what cannot be written is counted, and costs that video.
"""

from __future__ import annotations

import logging
import math
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from engines.errors import FrameError, SinkError
from stream.frame import ENGINE_RESTARTED, Image
from stream.service.config import Clips
from stream.service.egress.outbox import ResultSink, Said
from stream.service.frames import PendingFrame, RecentFrames
from stream.sinks.base import sink_errors
from stream.sinks.log import clip_name
from stream.wire import Limits, decode

log = logging.getLogger("gatestream.service")

LATE_S = 3.0  # a video waits so much longer than `after_s` for pictures that do not come
WAITING = 64  # videos that may wait to be written
TICKS = 1000  # of a video's clock, a second
NAME = re.compile(r"[0-9a-f]+-\d+_.*\.mp4")


@dataclass
class _Take:
    """What is kept of an event. ends_at: capture time of its last picture; until: steady seconds until which that is
    waited for; both once the event is closed."""

    camera: str
    frames: list[PendingFrame]
    began_at: float
    name: str = ""
    ends_at: float = math.inf
    until: float = math.inf


class ClipRecorder(ResultSink):
    """See the file's top.

    call: has the receiver's thread do something; recent: what that thread keeps of all cameras. `see` and `watch` are
    its, too.
    """

    def __init__(self, settings: Clips, call: Callable[[Callable[[], None]], None], recent: RecentFrames,
                 limits: Limits, steady: Callable[[], float] = time.monotonic,
                 wall: Callable[[], float] = time.time) -> None:
        self._settings, self._call, self._recent, self._limits = settings, call, recent, limits
        self._steady, self._wall = steady, wall
        self._open: dict[tuple[str, str], _Take] = {}
        self._closed: list[_Take] = []
        self._queue: queue.Queue[_Take | None] = queue.Queue(WAITING)
        self.counts: Counter[str] = Counter()
        with sink_errors("making", settings.folder):
            settings.folder.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._write_all, name="clips", daemon=True)
        self._thread.start()

    def name_of(self, event: Said) -> str:
        """Where the video of an event with an id goes, in the folder."""
        return clip_name(event["id"], event["camera"], event["label"])

    # ---- from the outbox ----

    def write(self, said: Sequence[Said]) -> None:
        for one in said:
            if one["type"] == "event":
                self._call(partial(self._event, one))
            elif one["type"] == "gap":
                self._call(partial(self._gap, one))

    def close(self, within_s: float) -> None:
        """Writes what waits and may be written so soon."""
        waiting = self._queue.qsize()
        with suppress(queue.Full):  # so many are not written in time anyway
            self._queue.put_nowait(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            log.warning("up to %d videos of events were not finished", waiting + 1)

    # ---- on the receiver's thread ----

    def _event(self, said: Said) -> None:
        key = (said["camera"], said["head"])
        take = self._open.pop(key, None)
        if take is None:
            first_at = said["started_at"] - self._settings.before_s
            frames = [frame for frame in self._recent.of(said["camera"]) if frame.captured_at >= first_at]
            take = _Take(said["camera"], frames, said["started_at"])
        if said["open"]:
            self._open[key] = take
            return
        take.name, take.ends_at = self.name_of(said), said["ended_at"] + self._settings.after_s
        take.until = self._steady() + self._settings.after_s + LATE_S
        self._closed.append(take)

    def _gap(self, said: Said) -> None:
        if said["action"] == ENGINE_RESTARTED:  # its open events are never closed
            self._open = {key: take for key, take in self._open.items() if take.camera != said["camera"]}

    def see(self, frame: PendingFrame) -> None:
        """Keeps a message of a camera with an event under way."""
        for take in (*self._open.values(), *self._closed):
            if take.camera == frame.camera and frame.captured_at - take.began_at < self._settings.most_s:
                take.frames.append(frame)

    def watch(self) -> None:
        """Hands over the videos that are complete."""
        if not self._closed:
            return
        now = self._steady()
        whole = [take for take in self._closed
                 if now >= take.until or (take.frames and take.frames[-1].captured_at >= take.ends_at)]
        self._closed = [take for take in self._closed if take not in whole]
        for take in whole:
            try:
                self._queue.put_nowait(take)
            except queue.Full:
                self.counts["dropped"] += 1

    # ---- the writer's thread ----

    def _write_all(self) -> None:
        while (take := self._queue.get()) is not None:
            try:
                self.counts["written"] += self._write(take)
                self._tidy()
            except (SinkError, av.FFmpegError, ValueError) as error:
                self.counts["failed"] += 1
                log.error("the video %s cannot be written: %s", take.name, error)

    def _write(self, take: _Take) -> bool:
        """Writes a video; whether there was any picture for it."""
        frames = sorted((frame for frame in take.frames if frame.captured_at <= take.ends_at),
                        key=lambda frame: frame.captured_at)
        images = ((frame.captured_at, image) for frame in frames if (image := self._picture(frame)) is not None)
        first = next(images, None)
        if first is None:
            return False
        path = self._settings.folder / take.name
        with sink_errors("writing", path):
            write_video(path, chain([first], images), first[1].shape[:2])
        return True

    def _picture(self, frame: PendingFrame) -> Image | None:
        try:
            return decode(frame.message, self._limits)
        except FrameError:
            return None

    def _tidy(self) -> None:
        """Deletes videos of ours that are too old, then the oldest ones beyond the limit."""
        with sink_errors("tidying", self._settings.folder):
            found = [(path.stat().st_mtime, path.stat().st_size, path)
                     for path in self._settings.folder.glob("*.mp4") if NAME.fullmatch(path.name)]
            left, oldest = self._settings.keep_mb * 1e6, self._wall() - 86_400 * self._settings.keep_days
            for changed_at, size, path in sorted(found, reverse=True):
                left -= size
                if left < 0 or changed_at < oldest:
                    path.unlink(missing_ok=True)


def write_video(path: Path, images: Iterable[tuple[float, Image]], size_hw: tuple[int, int]) -> None:
    """H.264 in MP4, each picture at its own time (seconds, in order), scaled to one size. It is
    NAME.part until it is whole."""
    height, width = (side - side % 2 for side in size_hw)
    part = path.with_suffix(".part")
    with av.open(part, "w", format="mp4", options={"movflags": "faststart"}) as video:
        stream: Any = video.add_stream("libx264", rate=TICKS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = max(2, width), max(2, height), "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        last, began_at = -1, None
        for at, image in images:
            began_at = at if began_at is None else began_at
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
            last = max(last + 1, round((at - began_at) * TICKS))
            frame.pts, frame.time_base = last, Fraction(1, TICKS)
            video.mux(stream.encode(frame.reformat(stream.width, stream.height)))
        video.mux(stream.encode())
    part.replace(path)
