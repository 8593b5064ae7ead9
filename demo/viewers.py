"""Everybody who looks at the Live page, on one recogniser that one thread owns.

    a browser's camera    see(jpeg, captured_at) ──► records
    a camera of ours      watch(source) ──► told(records, picture) again and again, until another is chosen
    a service's camera    follow(service, camera) ──► the same; it is the service that recognises

Each viewer is a camera of its own: its state, its events, its threshold. What it showed last is remembered, so that it
can be kept as a recording to learn from.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np

import engines
from demo.lessons import Clip, Lessons
from demo.services import Service
from engines.errors import FrameError, GatestreamError, UsageError
from engines.model.preprocess import seen_part
from stream.frame import Frame, Image
from stream.recognizer import Recognizer
from stream.sources import Source, open_source
from stream.wire import Limits, Message, decode

if TYPE_CHECKING:
    from engines.runtime.gate_heatmap import GateHeatmap

log = logging.getLogger("gatestream.ui")

LIMITS = Limits(payload_bytes=4 * 1024 * 1024, pixels=8_000_000)  # of a picture from a browser
SHOWN_WIDTH = 640  # of pictures that go to a browser
SWAPPED_S = 1.0  # that a picture is older than the one before it, at most, if they changed places on the way
REMEMBERED_S, REMEMBERED_BYTES = 60.0, 32 * 1024 * 1024  # of what a viewer showed last
Records = list[dict[str, Any]]
Told = Callable[[Records, bytes, float], None]


class Viewers:
    """See the file's top. Owns the recogniser.

        with Viewers(recognizer) as viewers:
            viewer = viewers.join()
    """

    def __init__(self, recognizer: Recognizer, model: str = "gesture") -> None:
        """model: what the recogniser was opened with."""
        self.recognizer, self.model = recognizer, model
        self.changed: set[Callable[[], None]] = set()
        """Are called, by another thread, once there is another recogniser."""
        self._thread = ThreadPoolExecutor(1, "recogniser")
        self._numbers = itertools.count(1)
        self._above: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
        self.recognizer.close()

    def join(self) -> Viewer:
        """A new viewer."""
        return Viewer(self, f"viewer {next(self._numbers)}")

    def push(self, image_bgr: Image | Callable[[], Image], captured_at: float, camera: str, lost: int = 0) -> Records:
        """What an image causes. Waits for its turn. Raises GatestreamError."""
        items = self._thread.submit(self.recognizer.push, image_bgr, captured_at, camera, lost=lost).result()
        return [item.as_json() for item in items]

    def leave(self, camera: str) -> Records:
        """Ends a camera's stream and gives its slot back; the events that were open."""
        return [event.as_json() for event in self._thread.submit(self.recognizer.flush, camera).result()]

    def tune(self, camera: str, open_above: float | None) -> None:
        """From which score on events of a camera open; None for the model's own."""
        self._thread.submit(self._tune, camera, open_above).result()

    def use(self, recognizer: Recognizer, model: str) -> None:
        """Goes on with another recogniser; all streams begin anew. The one before is closed."""
        self._thread.submit(self._use, recognizer).result()
        self.model = model
        for changed in tuple(self.changed):
            changed()

    def _use(self, recognizer: Recognizer) -> None:
        before, self.recognizer = self.recognizer, recognizer
        before.close()
        self._set_rules()

    def _tune(self, camera: str, open_above: float | None) -> None:
        self._above.pop(camera, None)
        if open_above is not None:
            self._above[camera] = open_above
        self._set_rules()

    def _set_rules(self) -> None:
        events = self.recognizer.contract.events
        self.recognizer.set_rules({camera: events.opening_above(above) for camera, above in self._above.items()})


class Viewer:
    """One who looks. Its methods are called from one thread at a time; `leave` ends everything."""

    def __init__(self, viewers: Viewers, camera: str) -> None:
        self._viewers, self.camera = viewers, camera
        self._source: Source | None = None
        self._watching: threading.Thread | None = None
        self._following = threading.Event()
        self._looked_at = threading.Event()
        self._looked_at.set()
        self._gates: GateHeatmap | None = None
        self._shown: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def see(self, jpeg: bytes, captured_at: float) -> Records:
        """What a browser's picture causes; it is decoded only if the model's clock wants it. Raises GatestreamError."""
        self._remember(jpeg, captured_at)
        image_bgr = cache(partial(decode, Message("gatestream", self.camera, jpeg), LIMITS))
        records = self._viewers.push(image_bgr, captured_at, self.camera)
        return records + self._seen_gates(records, image_bgr)

    def watch(self, spec: str, told: Told, failed: Callable[[str], None]) -> None:
        """Shows a camera of this machine or network from now on, after `stop`. told, failed: are called from another
        thread. Raises UsageError, SourceError when it does not open."""
        source = self._source = open_source(spec, camera=self.camera, policy="newest")
        self._watching = threading.Thread(target=self._watch, args=(source, told, failed), daemon=True)
        self._watching.start()

    def follow(self, service: Service, camera: str, told: Told, failed: Callable[[str], None]) -> None:
        """Shows a service's camera from now on, after `stop`. told, failed: are called from another thread."""
        self._following.set()
        self._watching = threading.Thread(target=self._follow, args=(service, camera, told, failed), daemon=True)
        self._watching.start()

    def stop(self) -> Records:
        """Ends what is watched, and the stream so far; the events that were open."""
        self._following.clear()
        if self._source is not None:
            self._source.close()
        if self._watching is not None:
            self._watching.join()
        self._source = self._watching = None
        return self._viewers.leave(self.camera)

    def look(self, looked_at: bool) -> None:
        """Whether anybody sees what is shown. While nobody does, cameras are recognised all the same, but `told` gets
        no pictures, and a camera of ours that can wait gives no more of them than the model needs."""
        if looked_at:
            self._looked_at.set()
        else:
            self._looked_at.clear()

    def keep(self, lessons: Lessons, label: str, from_at: float, to_at: float) -> Clip:
        """Keeps what was shown between two capture times as a recording. Raises UsageError, SinkError."""
        shown = [(at, jpeg) for at, jpeg in tuple(self._shown) if from_at <= at <= to_at]
        if not shown:
            raise UsageError("a moment that is no longer remembered", f"one of the last {REMEMBERED_S:.0f} s",
                             "record it again")
        return lessons.add(label, self._images(shown))

    def _images(self, shown: list[tuple[float, bytes]]) -> Iterator[tuple[float, Image]]:
        for at, jpeg in shown:
            with suppress(FrameError):
                yield at, decode(Message("gatestream", self.camera, jpeg), LIMITS)

    def show_gates(self, shown: bool) -> None:
        """Has records of gates come with predictions from now on, or no more. Raises UsageError, EngineError for a
        model whose gates cannot be looked at."""
        if shown:
            from engines.runtime.gate_heatmap import GateHeatmap  # the first use of torch

            self._gates = GateHeatmap(engines.load(self._viewers.model))
        else:
            self._gates = None

    def _seen_gates(self, records: Records, image_bgr: Callable[[], Image]) -> Records:
        gates = self._gates
        made = any(record["type"] == "prediction" for record in records)
        if gates is None or not made or not self._looked_at.is_set():
            return []
        image = image_bgr()
        open_HW = gates.update(image)
        part_h, part_w = seen_part(image.shape[:2], self._viewers.recognizer.contract)
        return [{"type": "gates", "size_hw": list(open_HW.shape), "part_hw": [part_h, part_w],
                 "open": base64.b64encode((255 * open_HW).astype(np.uint8).tobytes()).decode()}]

    def _remember(self, jpeg: bytes, at: float) -> None:
        since = at - self._shown[-1][0] if self._shown else 0.0
        if -SWAPPED_S < since < 0:  # two pictures changed places
            return
        if not 0 <= since < REMEMBERED_S:  # the clock jumped
            self._shown.clear()
            self._bytes = 0
        self._shown.append((at, jpeg))
        self._bytes += len(jpeg)
        while at - self._shown[0][0] > REMEMBERED_S or self._bytes > REMEMBERED_BYTES:
            self._bytes -= len(self._shown.popleft()[1])

    def tune(self, open_above: float | None) -> None:
        """See `Viewers.tune`."""
        self._viewers.tune(self.camera, open_above)

    def leave(self) -> None:
        """The viewer is gone."""
        self.stop()
        self.tune(None)

    def _watch(self, source: Source, told: Told, failed: Callable[[str], None]) -> None:
        try:
            for item in source.frames():
                if isinstance(item, Frame):
                    records = self._viewers.push(item.image_bgr, item.captured_at, self.camera, item.lost)
                    records += self._seen_gates(records, lambda image=item.image_bgr: image)
                    picture = _picture(item.image_bgr)
                    self._remember(picture, item.captured_at)
                    looked_at = self._looked_at.is_set()
                    told(records, picture if looked_at else b"", item.captured_at)
                    if not looked_at:
                        self._looked_at.wait(0.5 / self._viewers.recognizer.contract.frame_rate)
                else:
                    told([item.as_json()], b"", item.at)
            failed("This camera has ended.")
        except GatestreamError as error:
            failed(str(error))
        except RuntimeError:  # the page's server has ended
            log.debug("%s is no more", self.camera)

    def _follow(self, service: Service, camera: str, told: Told, failed: Callable[[str], None]) -> None:
        try:
            for records in service.follow(camera):
                if not self._following.is_set():
                    return
                made = [record for record in records if record["type"] == "prediction"]
                picture = service.picture(camera) if made else None
                if picture is not None:
                    self._remember(picture, made[-1]["captured_at"])
                shown = picture if picture is not None and self._looked_at.is_set() else b""
                told(records, shown, made[-1]["captured_at"] if made else 0.0)
            failed("The service has ended. Press Start once it runs again.")
        except GatestreamError as error:
            if self._following.is_set():
                failed(str(error))


def _picture(image_bgr: Image) -> bytes:
    """As a JPEG for a browser."""
    height, width = image_bgr.shape[:2]
    if width > SHOWN_WIDTH:
        size = SHOWN_WIDTH, max(1, round(height * SHOWN_WIDTH / width))
        image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


class Outbox:
    """What waits to be sent to one page: all records, and the newest picture. `put` may come from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._said: list[dict[str, Any]] = []
        self._picture: tuple[bytes, float] | None = None

    def put(self, said: dict[str, Any], picture: bytes = b"", captured_at: float = 0.0) -> None:
        """Leaves a message, and a picture if there is one."""
        with self._lock:
            self._said.append(said)
            if picture:
                self._picture = picture, captured_at
        self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self) -> tuple[list[dict[str, Any]], tuple[bytes, float] | None]:
        """All that waits; waits for something."""
        await self._ready.wait()
        with self._lock:
            self._ready.clear()
            said, self._said = self._said, []
            picture, self._picture = self._picture, None
        return said, picture
