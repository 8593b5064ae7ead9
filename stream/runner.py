"""One source through one recogniser into the sinks, or into a recording, until it ends or is stopped.

    source.frames() ──Frame──► recognizer.push ──records──► every sink
                    ──Gap─────────────────────────────────► every sink

However it ends, open events are closed and a summary is written before the first error is raised."""

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from engines.decoding.sanity import PictureMonitor
from engines.errors import FrameError, SinkError
from stream.clock import unix_time
from stream.frame import Event, Frame, Gap, Prediction, Record, Summary
from stream.recognizer import Recognizer
from stream.sinks.base import Sink, output_path, sink_errors
from stream.sources import open_path
from stream.sources.base import Source
from stream.sources.replay import SCHEMA
from stream.stage import Stage

log = logging.getLogger("gatestream.run")


class Percentiles:
    """Percentiles of any number of values in constant memory: a histogram whose bins are 2 % wide.
    Values from 0.001 to a million keep that precision; others count as the nearest of these."""

    WIDTH, LOWEST, HIGHEST = 1.02, 1e-3, 1e6

    def __init__(self) -> None:
        self._counts = np.zeros(self._bin(self.HIGHEST) + 1, np.int64)

    def add(self, value: float) -> None:
        self._counts[self._bin(value)] += 1

    def summary(self, percents: Sequence[int] = (50, 95, 99)) -> dict[str, float]:
        """{"p50": value, ...}; empty when nothing was added."""
        cumulative = self._counts.cumsum()
        if not cumulative[-1]:
            return {}
        bins = np.searchsorted(cumulative, np.ceil(cumulative[-1] * np.array(percents) / 100))
        return {f"p{percent}": self.LOWEST * self.WIDTH ** float(index + 0.5)
                for percent, index in zip(percents, bins, strict=True)}

    def _bin(self, value: float) -> int:
        return int(math.log(min(max(value, self.LOWEST), self.HIGHEST) / self.LOWEST) / math.log(self.WIDTH))


def recognize_file(recognizer: Recognizer, recording: Path, camera: str,
                   on_frame: Callable[[Frame], object] = lambda _: None) -> list[Event]:
    """The closed events of a recording, pushed as the camera of this name; images that cannot be used are left out.
    on_frame: gets every frame.
    Raises UsageError or SourceError where the recording cannot be read; then `reset` the camera."""
    closed: list[Event] = []
    with open_path(recording, camera=camera, policy="every") as source:
        for frame in source.frames():
            if not isinstance(frame, Frame):
                continue
            on_frame(frame)
            try:
                items = recognizer.push(frame.picture, frame.captured_at, camera, frame.index, frame.lost)
            except FrameError:
                continue
            closed += [item for item in items if isinstance(item, Event) and not item.open]
    return closed + recognizer.flush(camera)


def run(source: Source, recognizer: Recognizer, sinks: Sequence[Sink] = (), *, stages: Sequence[Stage] = (),
        max_seconds: float | None = None, max_frames: int | None = None, stop: threading.Event | None = None,
        timer: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = unix_time) -> Summary:
    """Recognises `source` to its end and returns the totals, which the sinks get as well.
    stages: through which all records go before the sinks; max_seconds: of the stream's own time, and for live sources
    of real time too; max_frames: camera frames; stop: when set, the run ends after the current frame (close the source
    to end a wait for the next one). An image that cannot be used is counted as dropped. Closes the source, not the
    sinks. A sink that fails ends the run. Raises SourceError, EngineError or SinkError after all else is written."""
    working, failures, latencies = list(sinks), list[SinkError](), Percentiles()

    def write(frame: Frame | None, records: Sequence[Record]) -> None:
        for stage in stages:
            records = stage.process(frame, records)
        for sink in list(working):
            try:
                sink.write(frame, records)
            except SinkError as error:  # it gets no more records; its error is for the end
                working.remove(sink)
                failures.append(error)

    camera, live = source.info.camera, source.info.live
    stated_s = (source.info.frames or 0) / (source.info.fps or math.inf)
    monitor, noted = PictureMonitor(camera, source.info.fps, stated_s), 0
    began, frames, lost, looks_in_vain = timer(), 0, 0, recognizer.contract.looks_for_hands
    try:
        with ExitStack() as stack:
            if max_seconds is not None and live:  # ends the wait for a frame, too
                ending = threading.Timer(max_seconds, source.close)
                ending.daemon = True
                ending.start()
                stack.callback(ending.cancel)
            for item in _take(source, max_seconds, max_frames, stop):
                if failures:
                    break
                if isinstance(item, Gap):
                    write(None, [item])
                    continue
                lost += item.lost
                frames += 1
                waited_s = max(wall() - item.captured_at, 0.0) if live else 0.0
                try:
                    records = recognizer.push(item.picture, item.captured_at, camera, item.index, item.lost, waited_s)
                    write(item, records)
                    image = item.image_bgr if records else None  # at a tick of the model's clock: it is made by now
                    odd = [*source.notes[noted:], *monitor.add(item.captured_at, image, item.lost)]
                except FrameError:
                    records, odd = [], []  # counted by the recogniser
                for line in odd:
                    log.warning("%s", line)
                noted = len(source.notes)
                for one in records:
                    if isinstance(one, Prediction):
                        latencies.add(one.latency_ms["total"])
                        looks_in_vain = looks_in_vain and not one.hands
        for line in (*source.notes[noted:], *(() if live else monitor.finish())):
            log.warning("%s", line)
        if looks_in_vain and recognizer.counts(camera).predictions:
            log.warning("%s: no hand was ever in view, though %s looks for hands", camera, recognizer.contract.name)
    finally:
        source.close()
        counts = recognizer.counts(camera)
        closed = recognizer.flush(camera)
        elapsed_s = timer() - began
        summary = Summary(camera, frames, counts.predictions, counts.events + len(closed),
                          counts.dropped + max(source.lost - lost, 0), frames / elapsed_s if elapsed_s > 0 else 0.0,
                          latencies.summary())
        write(None, [*closed, summary])
    if failures:
        raise failures[0]
    return summary


class RecordingCounts(NamedTuple):
    """Frames in a recording, and those of its source that are not: lost before it, or unreadable."""

    frames: int
    lost: int


def record(source: Source, path: str | Path, *, max_seconds: float | None = None, max_frames: int | None = None,
           stop: threading.Event | None = None) -> RecordingCounts:
    """Records a source so that it replays exactly, within limits as `run` has them. A live source gives all of its
    frames only when it was opened with the policy "every". Raises SinkError for a file that is there already or cannot
    be written, SourceError; what was recorded stays."""
    target = output_path(path)
    if target.exists():
        raise SinkError(f"{target}, which is there already", "a new file", "delete it, or choose another one")
    with sink_errors("opening", target):
        db = sqlite3.connect(target, isolation_level=None)
    recorded = unread = lost = unreadable = 0
    with closing(db), sink_errors("writing", target):
        db.executescript(SCHEMA)
        db.execute("INSERT INTO about VALUES (?, ?)", (source.info.camera, source.info.fps))
        for item in _take(source, max_seconds, max_frames, stop):
            if isinstance(item, Gap):
                db.execute("INSERT INTO gaps VALUES (?, ?, ?, ?)", (recorded + 1, item.at, item.seconds, item.action))
                continue
            lost += item.lost
            try:
                _, png = cv2.imencode(".png", item.image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            except FrameError:
                unread, unreadable = unread + item.lost + 1, unreadable + 1
                continue
            db.execute("INSERT INTO frames (at, number, lost, image) VALUES (?, ?, ?, ?)",
                       (item.captured_at, item.index, item.lost + unread, png.tobytes()))
            recorded, unread = recorded + 1, 0
    return RecordingCounts(recorded, max(lost, source.lost) + unreadable)


def _take(source: Source, max_seconds: float | None, max_frames: int | None,
          stop: threading.Event | None) -> Iterator[Frame | Gap]:
    """The items of a source up to its end or a limit."""
    frames, first_at = 0, None
    for item in source.frames():
        if stop is not None and stop.is_set():
            return
        if isinstance(item, Frame):
            first_at = item.captured_at if first_at is None else first_at
            if max_seconds is not None and item.captured_at - first_at >= max_seconds:
                return
            frames += 1
        yield item
        if frames == max_frames:
            return
