"""Results on their way out: an event is on disk before any sink gets it, and every sink gets it at least once.

    records ──► log (closed events, gaps: committed) ──► every sink

While the log cannot be written, events and gaps wait, and cameras go on. Predictions do not wait and are not logged."""

import json
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import zmq

from engines.errors import GatestreamError, SinkError
from stream.frame import Event, Gap
from stream.sinks.base import output_path, sink_errors
from stream.sinks.log import EventLog, clip_name

log = logging.getLogger("gatestream.service")

PREDICTIONS = 20_000  # records that may wait; beyond that waiting predictions are dropped
LEAST_S = 0.1  # that each sink has to end
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # the last again and again
WEBHOOK_EVENTS = 10_000  # that may wait; beyond that the oldest are dropped
WEBHOOK_TIMEOUT_S = 5.0
JsonRecord = dict[str, Any]


class ResultSink(ABC):
    """Takes the service's results. Never raises for what a network does: it counts, and goes on. `write` comes from one
    thread at a time; `close` once, after the last `write`."""

    @abstractmethod
    def write(self, records: Sequence[JsonRecord]) -> None:
        """Passes on JSON objects as `--json` has them; closed events have an `id` if there is a log."""

    def close(self, within_s: float) -> None:  # noqa: B027 - some have nothing to end
        """Sends what can be sent in that time, and ends."""


class Publisher(ResultSink):
    """A ZeroMQ publisher of two parts, the topic `<camera>/<type>` and the JSON object: subscribe to "cell-3/" for all
    of one camera, to "cell-3/event" for its events. Raises SinkError for an address that is taken."""

    def __init__(self, socket: zmq.Socket[bytes], addresses: Sequence[str]) -> None:
        self._socket = socket
        socket.linger = 0  # before it binds, or a subscriber that leaves as we close is waited for without end
        for address in addresses:
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                raise SinkError(f"publishing at {address} ({error.strerror})", "an address that is free",
                                "stop what uses it, or choose another one") from error

    def write(self, records: Sequence[JsonRecord]) -> None:
        messages = [(f"{record['camera']}/{record['type']}".encode(), _json(record).encode()) for record in records]
        for message in messages:
            self._socket.send_multipart(message)

    def close(self, within_s: float) -> None:
        self._socket.close(linger=round(1000 * within_s))


class JsonLinesFile(ResultSink):
    """A file of JSON lines, which is appended to. Raises SinkError if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path, self._failed = output_path(path), False
        with sink_errors("opening", self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, records: Sequence[JsonRecord]) -> None:
        try:
            self._file.write("".join(f"{_json(record)}\n" for record in records))
            self._file.flush()
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("%s cannot be written (%s): results go on without it", self._path, error.strerror)
            self._failed = True

    def close(self, within_s: float) -> None:
        with suppress(OSError):
            self._file.close()


class Webhook(ResultSink):
    """An HTTP address to which every closed event is posted as JSON, repeatedly until it is accepted. It may get an
    event twice; the event's `id` tells."""

    def __init__(self, url: str) -> None:
        self._url, self._client = url, httpx.Client(timeout=WEBHOOK_TIMEOUT_S)
        self._waiting: queue.SimpleQueue[JsonRecord | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def write(self, records: Sequence[JsonRecord]) -> None:
        for event in filter(_is_closed_event, records):
            if self._waiting.qsize() >= WEBHOOK_EVENTS:
                with suppress(queue.Empty):
                    self._waiting.get_nowait()
            self._waiting.put(event)

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            for tries in count():
                try:
                    self._client.post(self._url, json=event).raise_for_status()
                    break
                except httpx.HTTPError as error:
                    if not tries:
                        log.warning("the webhook does not accept events (%s): trying again", type(error).__name__)
                    if self._closed.wait(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                        return

    def close(self, within_s: float) -> None:
        self._closed.set()
        self._waiting.put(None)
        self._thread.join(within_s)
        self._client.close()


class Outbox:
    """Logs records, and writes them to the sinks in a thread of its own. `put` may be called from any thread.

        outbox = Outbox(event_log, sinks)
        outbox.start()                  # first what an earlier run logged and perhaps did not deliver
        outbox.put(records)
        outbox.close()"""

    def __init__(self, event_log: EventLog | None, sinks: Sequence[ResultSink], names_clips: bool = False) -> None:
        """names_clips: closed events come with the file name of their video."""
        self._log, self._sinks, self._names_clips = event_log, sinks, names_clips
        self._records: deque[JsonRecord] = deque()
        self._delivered: list[int] = []  # events that the log does not know to be delivered
        self._changed, self._closed = threading.Condition(), False
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)

    def start(self) -> None:
        """Delivers events that are pending in the log, and starts the thread."""
        if self._log is not None:
            for number, event in self._log.pending():
                self._write([self._with_id(event.as_json(), number)])
                self._delivered.append(number)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether records are on their way out."""
        return self._thread.is_alive()

    def put(self, records: Sequence[JsonRecord]) -> None:
        """Adds records, as JSON objects."""
        with self._changed:
            if len(self._records) >= PREDICTIONS:
                others = [record for record in self._records if record["type"] != "prediction"]
                self.counts["predictions dropped"] += len(self._records) - len(others)
                self._records = deque(others)
            self._records.extend(records)
            self._changed.notify()

    def close(self, within_s: float = 0.8) -> None:
        """Delivers what was put, and closes the sinks; the log is the caller's to close."""
        until = time.monotonic() + within_s
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self.alive:  # not so where a service could not start
            self._thread.join(within_s)
        if self._log is not None:
            with suppress(SinkError):
                self._log.mark_delivered(self._delivered)
        for sink in self._sinks:
            sink.close(max(LEAST_S, until - time.monotonic()))

    def _run(self) -> None:
        tries = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records or self._closed)
                if not self._records:
                    return
                records, self._records = list(self._records), deque()
            try:
                self._write(self._log_records(records))
                tries = 0
            except SinkError as error:
                if not tries:
                    log.error("%s: events wait until the log can be written", error)
                self._write([record for record in records if record["type"] == "prediction"])
                with self._changed:  # in order, before what has come since
                    self._records.extendleft(record for record in reversed(records) if record["type"] != "prediction")
                    if self._closed:
                        return
                    self._changed.wait_for(lambda: self._closed, RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1

    def _log_records(self, records: list[JsonRecord]) -> list[JsonRecord]:
        """The records, once closed events and gaps are in the log. Raises SinkError."""
        closed = [Event.from_json(record) for record in records if _is_closed_event(record)]
        gaps = [Gap.from_json(record) for record in records if record["type"] == "gap"]
        if self._log is None or not (closed or gaps):
            return records
        self._delivered = self._log.append(closed, gaps, self._delivered)  # to be marked by the next commit
        numbers = iter(self._delivered)
        return [self._with_id(record, next(numbers)) if _is_closed_event(record) else record for record in records]

    def _write(self, records: Sequence[JsonRecord]) -> None:
        self.counts.update(record["type"] for record in records)
        for sink in self._sinks:
            try:
                try:
                    sink.write(records)
                except ValueError:  # sinks make JSON of all records before they pass on any
                    sink.write([record for record in records if _is_json(record)])
                    raise
            except Exception as error:  # whatever it is costs that sink these records, and no other one
                self.counts["failures"] += 1
                expected = isinstance(error, GatestreamError | zmq.ZMQError)
                log.error("%s failed: %s", type(sink).__name__, error, exc_info=not expected)

    def _with_id(self, event: JsonRecord, number: int) -> JsonRecord:
        assert self._log is not None
        named = {**event, "id": f"{self._log.identity}-{number}"}
        clip = clip_name(named["id"], event["camera"], event["label"])
        return {**named, "clip": clip} if self._names_clips else named


def _is_closed_event(record: JsonRecord) -> bool:
    return record["type"] == "event" and not record["open"]


def _is_json(record: JsonRecord) -> bool:
    """Whether it can be told: a score that is no number cannot."""
    try:
        return bool(_json(record))
    except ValueError:
        return False


def _json(record: JsonRecord) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False)
