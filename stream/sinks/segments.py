"""Segments of a continuous recording: Matroska files, which can be played as far as they were written.

    cell-3_2026-01-31_14-02-00.250+0100.mkv     camera and start by the clock here; NAME.part while it is written

Their metadata has the camera's own name (title) and the start in UTC (creation_time); they end at start + duration."""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import av
import numpy as np

from engines.errors import SinkError
from stream.frame import Image
from stream.sinks.base import plain_name, sink_errors
from stream.sinks.times import format_time, show_clock
from stream.sinks.video import H264, TICKS, ffmpeg_errors

NAME = re.compile(r"(?P<camera>.+)_(?P<start>\d{4}(-\d\d){2}_\d\d(-\d\d){2}\.\d{3}[+-]\d{4})\.mkv(?P<part>\.part)?")
CLIP_NAME = re.compile(r"[0-9a-f]{11}(-\d+){1,2}_.*\.mp4(\.part)?")  # of an event's video, which begins with its id
START = "%Y-%m-%d_%H-%M-%S.%f%z"
NAME_CHARACTERS = 50  # of a camera's name in a file's
FREE_BYTES = 200_000_000  # of the disk, that are left to others


@dataclass(frozen=True)
class VideoSettings:
    """How videos of events and segments are made, and how long they stay: those of a service's `[clips]`."""

    folder: Path
    continuous: bool
    segment_s: float
    before_s: float
    after_s: float
    most_s: float
    keep_days: float
    keep_mb: float


@dataclass(frozen=True)
class Segment:
    """A file of a continuous recording. Times in Unix time."""

    camera: str
    started_at: float
    ended_at: float
    path: Path


class SegmentWriter:
    """Writes a camera's pictures of one size. jpeg: they are JPEGs, which are stored as they come, not decoded; else
    they are encoded (H.264). Raises SinkError when the file cannot be written, or the disk is all but full."""

    def __init__(self, folder: Path, camera: str, started_at: float, size_hw: tuple[int, int], jpeg: bool) -> None:
        self.started_at, self.size_hw, self.jpeg, self.newest_at = started_at, size_hw, jpeg, started_at
        start = show_clock(started_at, "local")
        name = f"{start:%Y-%m-%d_%H-%M-%S}.{start.microsecond // 1000:03}{start:%z}"
        self._path = folder / f"{plain_name(camera, most=NAME_CHARACTERS)}_{name}.mkv"
        self.part, self._tick = self._path.with_name(f"{self._path.name}.part"), -1
        with ffmpeg_errors("opening", self.part):
            if (free := shutil.disk_usage(folder).free) < FREE_BYTES:
                raise SinkError(f"{free / 1e6:.0f} MB free for {folder}", f"{FREE_BYTES / 1e6:.0f} MB to record",
                                "free space on the disk, or keep less")
            # So that a crash costs a second.
            options = {"cluster_time_limit": "1000", "flush_packets": "1"}
            self._video = av.open(self.part, "w", format="matroska", options=options)
            self._video.metadata.update(title=camera, creation_time=format_time(started_at, "utc", "microseconds"))
            height, width = size_hw
            if jpeg:
                self._stream: Any = self._video.add_mux_stream("mjpeg", rate=TICKS, width=width, height=height)
            else:
                codec, pixels, settings = H264
                # Without looking ahead, which would hold back dozens of pictures of each camera.
                self._stream = self._video.add_stream(codec, rate=TICKS, options={**settings, "tune": "zerolatency"})
                self._stream.width, self._stream.height = max(2, width // 2 * 2), max(2, height // 2 * 2)
                self._stream.pix_fmt, self._stream.codec_context.thread_count = pixels, 1
                self._stream.codec_context.time_base = Fraction(1, TICKS)

    def write(self, at: float, picture: bytes | Image) -> None:
        """Adds a picture, taken at that time. Raises SinkError."""
        self._tick, self.newest_at = max(self._tick + 1, round((at - self.started_at) * TICKS)), at
        with ffmpeg_errors("writing", self.part):
            if isinstance(picture, bytes):
                packet = av.Packet(picture)
                packet.stream, packet.time_base, packet.is_keyframe = self._stream, Fraction(1, TICKS), True
                packet.pts = packet.dts = self._tick
                self._video.mux(packet)
            else:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
                frame.pts, frame.time_base = self._tick, Fraction(1, TICKS)
                self._video.mux(self._stream.encode(frame.reformat(self._stream.width, self._stream.height)))

    def close(self) -> None:
        """Finishes the file; after a fault it has what could be written. Raises SinkError."""
        try:
            with ffmpeg_errors("finishing", self.part), self._video:
                if not self.jpeg:
                    self._video.mux(self._stream.encode())
        finally:
            finish(self.part)


def finish(part: Path) -> None:
    """Gives a file its final name, if there is anything in it. Raises SinkError."""
    with sink_errors("renaming", part), suppress(FileNotFoundError):
        if part.stat().st_size:
            part.replace(part.with_suffix(""))
        else:
            part.unlink()


def finish_all(folder: Path) -> None:
    """Finishes what a process that was killed has left. Raises SinkError."""
    for path in folder.glob("*.mkv.part"):
        if NAME.fullmatch(path.name):
            finish(path)


def find_segments(folder: Path, since: float, until: float, camera: str | None = None) -> list[Segment]:
    """The segments in a folder that overlap a time (Unix time), by camera and start; of all cameras, or one."""
    starts: dict[str, list[tuple[float, Path | None]]] = defaultdict(lambda: [(inf, None)])
    for path in folder.iterdir():
        if (name := NAME.fullmatch(path.name)) and not name["part"]:
            starts[name["camera"]].append((datetime.strptime(name["start"], START).timestamp(), path))
    found = [_read(path, start) for plain, own in starts.items()
             if camera is None or plain == plain_name(camera, most=NAME_CHARACTERS)
             for (start, path), (following, _) in pairwise(sorted(own, key=lambda each: each[0]))
             if path is not None and start <= until and following >= since]
    return sorted((segment for segment in found if segment is not None and segment.ended_at >= since
                   and camera in (None, segment.camera)), key=lambda segment: (segment.camera, segment.started_at))


def _read(path: Path, started_at: float) -> Segment | None:
    """None for a file in which there is nothing."""
    with suppress(OSError, av.FFmpegError), av.open(path) as video:
        ended_at = path.stat().st_mtime if video.duration is None else started_at + video.duration / av.time_base
        return Segment(video.metadata.get("title", ""), started_at, ended_at, path)
    return None


def delete_oldest(folder: Path, keep_days: float, keep_mb: float, now: float) -> None:
    """Deletes segments and videos of events that are too old, then the oldest ones beyond the limit. Raises SinkError.
    now: Unix time."""
    with sink_errors("tidying", folder):
        left = keep_mb * 1e6
        for changed_at, size, path in sorted(_ours(folder), reverse=True):
            left -= size
            if left < 0 or changed_at < now - 86_400 * keep_days:
                path.unlink(missing_ok=True)


def _ours(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each finished video of ours was written, its bytes, its path."""
    for path in folder.iterdir():
        ours = NAME.fullmatch(path.name) or CLIP_NAME.fullmatch(path.name)
        if ours and path.suffix != ".part" and path.is_file():
            with suppress(FileNotFoundError):  # deleted by another thread
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path
