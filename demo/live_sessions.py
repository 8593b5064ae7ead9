"""The sessions of the Live page, on one recogniser that one thread owns.

    a browser's camera    recognize(jpeg, captured_at) ──► records
    a camera of ours      start_camera(source) ──► send({"at": ..., "records": [...]}, picture, at) until `stop`
    a service's camera    start_service_camera(service, camera) ──► the same; it is the service that recognises

Each session is a camera of its own: its state, its events, its threshold. Its latest pictures are kept for a minute, so
that they can be stored as a recording to learn from.
"""

from __future__ import annotations

import base64
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np

import engines
from demo.allowed_sources import AllowedSources
from demo.clip_store import ClipStore, StoredClip
from demo.service_api import ServiceClient
from engines.errors import FrameError, GatestreamError, UsageError
from engines.model.preprocess import visible_part
from stream.frame import Frame, Image, Item
from stream.recognizer import Recognizer
from stream.sources import Source, open_source
from stream.wire.messages import Limits, Message, decode

if TYPE_CHECKING:
    from engines.runtime.gate_heatmap import GateHeatmap

log = logging.getLogger("gatestream.ui")

LIMITS = Limits(payload_bytes=4 * 1024 * 1024, pixels=8_000_000)  # of a picture from a browser
SHOWN_WIDTH = 640  # of pictures that go to a browser
REORDERED_S = 1.0  # a picture at most this much older than the one before it was overtaken on the way
RECENT_S, RECENT_BYTES = 60.0, 32 * 1024 * 1024  # of pictures kept
Records = list[dict[str, Any]]
Send = Callable[[dict[str, Any], bytes, float], None]  # message, JPEG or b"", its capture time; from any thread


class LiveSessions:
    """Owns the recogniser; its methods may be called from any thread, and wait for each other.

        with LiveSessions(Recognizer.open("gesture"), "gesture") as sessions:
            session = sessions.join()
    """

    def __init__(self, recognizer: Recognizer, model: str = "gesture", sources: AllowedSources | None = None) -> None:
        """model: what the recogniser was opened with; sources: what pages may open, by default webcams and sim://."""
        self.recognizer, self.model, self.sources = recognizer, model, sources or AllowedSources()
        self.on_change: set[Callable[[], None]] = set()
        """Called, by another thread, when there is another recogniser."""
        self._thread = ThreadPoolExecutor(1, "recogniser")
        self._numbers = itertools.count(1)
        self._open_above: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self.recognizer.close()

    def join(self, send: Send = lambda *_: None) -> LiveSession:
        """A new session; `send` takes what its cameras cause."""
        return LiveSession(self, f"viewer {next(self._numbers)}", send)

    def push(self, image_bgr: Image | Callable[[], Image], captured_at: float, camera: str, lost: int = 0) -> Records:
        """What an image causes. Raises GatestreamError."""
        def work() -> list[Item]:  # by the recogniser that there is when it is its turn
            return self.recognizer.push(image_bgr, captured_at, camera, lost=lost)

        return [item.as_json() for item in self._thread.submit(work).result()]

    def flush(self, camera: str) -> Records:
        """Ends a camera's stream and frees its slot; returns the events that were open."""
        return [event.as_json() for event in self._thread.submit(lambda: self.recognizer.flush(camera)).result()]

    def set_threshold(self, camera: str, open_above: float | None) -> None:
        """The score above which events of a camera open; None for the model's own."""
        def work() -> None:
            self._open_above.pop(camera, None)
            if open_above is not None:
                self._open_above[camera] = open_above
            self._set_rules()

        self._thread.submit(work).result()

    def replace_recognizer(self, recognizer: Recognizer, model: str) -> None:
        """Goes on with another recogniser; all streams begin anew. The one before is closed."""
        def work() -> None:
            before, self.recognizer = self.recognizer, recognizer
            before.close()
            self._set_rules()

        self._thread.submit(work).result()
        self.model = model
        for notify in tuple(self.on_change):
            notify()

    def _set_rules(self) -> None:
        events = self.recognizer.contract.events
        self.recognizer.set_rules({camera: events.opening_above(above) for camera, above in self._open_above.items()})


class LiveSession:
    """One page. Its methods are called from one thread at a time; `close` ends everything."""

    def __init__(self, sessions: LiveSessions, camera: str, send: Send) -> None:
        self._sessions, self.camera, self._send = sessions, camera, send
        self._source: Source | None = None
        self._thread: threading.Thread | None = None
        self._following, self._visible = threading.Event(), threading.Event()
        self._visible.set()
        self._gates: GateHeatmap | None = None
        self._recent: deque[tuple[float, bytes]] = deque()

    def recognize(self, jpeg: bytes, captured_at: float) -> Records:
        """What a browser's picture causes; it is decoded only if the model's clock wants it. Raises GatestreamError."""
        self._remember(jpeg, captured_at)
        image_bgr = cache(partial(decode, Message("gatestream", self.camera, jpeg), LIMITS))
        records = self._sessions.push(image_bgr, captured_at, self.camera)
        return records + self._gate_records(records, image_bgr)

    def start_camera(self, spec: str) -> None:
        """Recognises a camera from now on; call `stop` before. Raises UsageError for one that the page may not
        open, SourceError when it does not open."""
        self._source = open_source(self._sessions.sources.resolve(spec), camera=self.camera, policy="newest")
        self._start(partial(self._play, self._source))

    def start_service_camera(self, service: ServiceClient, camera: str) -> None:
        """Shows a service's camera from now on. Call `stop` before."""
        self._following.set()
        self._start(partial(self._follow, service, camera))

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def stop(self) -> Records:
        """Ends what is shown, and the stream so far; returns the events that were open."""
        self._following.clear()
        source, self._source = self._source, None
        if source is not None:
            source.close()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        return self._sessions.flush(self.camera)

    def set_visible(self, visible: bool) -> None:
        """Whether anybody sees the page. While nobody does, cameras are recognised all the same, but no pictures are
        sent, and a camera of ours that can wait gives no more of them than the model needs."""
        if visible:
            self._visible.set()
        else:
            self._visible.clear()

    def save_clip(self, store: ClipStore, label: str, from_at: float, to_at: float, place: str = "") -> StoredClip:
        """Stores what was shown between two capture times as a recording, see `ClipStore.add`. Raises UsageError,
        SinkError."""
        shown = [(at, jpeg) for at, jpeg in tuple(self._recent) if from_at <= at <= to_at]
        if not shown:
            raise UsageError("a moment that is no longer remembered", f"one of the last {RECENT_S:.0f} s",
                             "record it again")
        return store.add(label, self._images(shown), place)

    def show_gates(self, shown: bool) -> None:
        """Whether records of gates come with predictions. Raises UsageError, EngineError where none can be shown."""
        self._gates = None
        if shown:
            from engines.runtime.gate_heatmap import GateHeatmap  # the first use of torch

            self._gates = GateHeatmap(engines.load(self._sessions.model))

    def set_threshold(self, open_above: float | None) -> None:
        """The score above which this page's events open; None for the model's own."""
        self._sessions.set_threshold(self.camera, open_above)

    def close(self) -> None:
        """Ends the session."""
        self.stop()
        self.set_threshold(None)

    def _images(self, shown: list[tuple[float, bytes]]) -> Iterator[tuple[float, Image]]:
        for at, jpeg in shown:
            with suppress(FrameError):
                yield at, decode(Message("gatestream", self.camera, jpeg), LIMITS)

    def _gate_records(self, records: Records, image_bgr: Callable[[], Image]) -> Records:
        gates = self._gates
        made = any(record["type"] == "prediction" for record in records)
        if gates is None or not made or not self._visible.is_set():
            return []
        image = image_bgr()
        open_HW = gates.update(image)
        part_hw = visible_part(image.shape[:2], self._sessions.recognizer.contract)
        return [{"type": "gates", "size_hw": list(open_HW.shape), "part_hw": list(part_hw),
                 "open": base64.b64encode((255 * open_HW).astype(np.uint8).tobytes()).decode()}]

    def _remember(self, jpeg: bytes, at: float) -> None:
        since = at - self._recent[-1][0] if self._recent else 0.0
        if -REORDERED_S < since < 0:
            return
        if not 0 <= since < RECENT_S:  # the clock jumped
            self._recent.clear()
        self._recent.append((at, jpeg))
        while at - self._recent[0][0] > RECENT_S or sum(len(one) for _, one in self._recent) > RECENT_BYTES:
            self._recent.popleft()

    def _play(self, source: Source) -> None:
        try:
            for item in source.frames():
                if isinstance(item, Frame):
                    try:
                        image_bgr = item.image_bgr
                    except FrameError:
                        continue
                    records = self._sessions.push(image_bgr, item.captured_at, self.camera, item.lost)
                    records += self._gate_records(records, lambda image=image_bgr: image)
                    picture = _encode_jpeg(image_bgr)
                    self._remember(picture, item.captured_at)
                    visible = self._visible.is_set()
                    self._send_records(records, picture if visible else b"", item.captured_at)
                    if not visible:
                        self._visible.wait(0.5 / self._sessions.recognizer.contract.frame_rate)
                else:
                    self._send_records([item.as_json()], b"", item.at)
            if self._source is source:
                self._send({"error": "This source has ended.", "of": "end"}, b"", 0.0)
        except GatestreamError as error:
            self._send({"error": str(error), "of": "camera"}, b"", 0.0)
        except RuntimeError:  # the page's server has ended
            log.debug("%s has ended", self.camera)

    def _follow(self, service: ServiceClient, camera: str) -> None:
        try:
            for records in service.follow(camera):
                if not self._following.is_set():
                    return
                made = [record for record in records if record["type"] == "prediction"]
                picture = service.picture(camera) if made else None
                if picture is not None:
                    self._remember(picture, made[-1]["captured_at"])
                shown = picture if picture is not None and self._visible.is_set() else b""
                self._send_records(records, shown, made[-1]["captured_at"] if made else 0.0)
            self._send({"error": "The service has ended.", "of": "end"}, b"", 0.0)
        except GatestreamError as error:
            if self._following.is_set():
                self._send({"error": str(error), "of": "camera"}, b"", 0.0)

    def _send_records(self, records: Records, picture: bytes, at: float) -> None:
        self._send({"at": at, "records": records}, picture, at)


def _encode_jpeg(image_bgr: Image) -> bytes:
    """For a browser, at most SHOWN_WIDTH wide."""
    height, width = image_bgr.shape[:2]
    if width > SHOWN_WIDTH:
        size = SHOWN_WIDTH, max(1, round(height * SHOWN_WIDTH / width))
        image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])
