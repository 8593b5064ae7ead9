"""What becomes of results: an event is durable before it is announced, and announced at least once.

    records ──► log (events, gaps: committed) ──► every sink

A log that cannot be written holds events back, not the cameras: they are tried again until it can. Predictions are
never held back, and are not kept.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import httpx
import zmq

from engines.errors import GatestreamError, SinkError
from stream.frame import Event, Gap
from stream.sinks.base import output_path, sink_errors
from stream.sinks.log import EventLog

log = logging.getLogger("gatestream.service")

PREDICTIONS = 20_000  # that may wait; beyond that the oldest are dropped
LEAST_S = 0.1  # that each sink has to end
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # the last again and again
Said = dict[str, Any]


class ResultSink(ABC):
    """Someone who is told of results. Never raises for what a network does: it counts, and goes on."""

    @abstractmethod
    def write(self, said: Sequence[Said]) -> None:
        """Passes on JSON objects as interface `--json` has them; events have an `id` if there is a log."""

    @abstractmethod
    def close(self, within_s: float) -> None:
        """Sends what can be sent so soon, and ends."""


class Publisher(ResultSink):
    """A ZeroMQ publisher: two parts, the topic `<camera>/<type>` and the JSON object. Subscribe to "cell-3/" for all of
    one camera, to "cell-3/event" for its events, to "" for everything."""

    def __init__(self, socket: zmq.Socket[bytes], addresses: Sequence[str]) -> None:
        self._socket = socket
        socket.linger = 0  # before it binds, or a subscriber that leaves as we close is waited for without end
        for address in addresses:
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                raise SinkError(f"publishing at {address} ({error.strerror})", "an address that is free",
                                "stop what uses it, or choose another one") from error

    def write(self, said: Sequence[Said]) -> None:
        for one in said:
            self._socket.send_multipart([f"{one['camera']}/{one['type']}".encode(), _line(one)])

    def close(self, within_s: float) -> None:
        self._socket.close(linger=round(1000 * within_s))


class Lines(ResultSink):
    """A file of JSON lines, which is continued."""

    def __init__(self, path: Path) -> None:
        self._path = output_path(path)
        self._failed = False
        with sink_errors("opening", self._path):
            self._file: TextIO = self._path.open("a", encoding="utf-8")

    def write(self, said: Sequence[Said]) -> None:
        try:
            self._file.write("".join(_line(one).decode() + "\n" for one in said))
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
    """An HTTP address that gets every closed event as a POST of JSON, again until it takes it.

    An event has an `id`, so that one which comes twice can be told."""

    def __init__(self, url: str, timeout_s: float = 5.0, most: int = 10_000) -> None:
        self._url, self._client = url, httpx.Client(timeout=timeout_s)
        self._waiting: deque[Said] = deque(maxlen=most)
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def write(self, said: Sequence[Said]) -> None:
        with self._changed:
            self._waiting.extend(one for one in said if one["type"] == "event" and not one["open"])
            self._changed.notify()

    def _run(self) -> None:
        tries = 0
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed and (not self._waiting or tries):
                    return
                one = self._waiting[0]
            try:
                self._client.post(self._url, json=one).raise_for_status()
            except httpx.HTTPError as error:
                if not tries:
                    log.warning("the webhook does not take events (%s): trying again", type(error).__name__)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
                continue
            tries = 0
            with self._changed, suppress(IndexError):
                if self._waiting[0] is one:
                    self._waiting.popleft()

    def close(self, within_s: float) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(within_s)
        self._client.close()


class Outbox:
    """See the file's top. `deliver` may come from any thread; the rest is the outbox's own thread."""

    def __init__(self, event_log: EventLog | None, sinks: Sequence[ResultSink],
                 clip_of: Callable[[Said], str] | None = None) -> None:
        """clip_of: names the video of an event with an id."""
        self._log, self._tellers, self._clip_of = event_log, sinks, clip_of
        self._records: deque[Said] = deque()
        self._told: list[int] = []
        self._changed, self._closed = threading.Condition(), False
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)

    def start(self) -> None:
        """Announces what an earlier run of the service had kept and perhaps not announced; then goes on."""
        if self._log is not None:
            for number, event in self._log.pending():
                self._tell([self._named(event.as_json(), number)])
                self._told.append(number)
        self._thread.start()

    def deliver(self, records: Sequence[Said]) -> None:
        """Takes records, as JSON objects."""
        if not records:
            return
        with self._changed:
            if len(self._records) >= PREDICTIONS:
                kept = [one for one in self._records if one["type"] != "prediction"]
                self.counts["predictions dropped"] += len(self._records) - len(kept)
                self._records = deque(kept)
            self._records.extend(records)
            self._changed.notify()

    def close(self, within_s: float = 0.8) -> None:
        """Announces what has been delivered, and ends the sinks; the log is the caller's to close."""
        until = time.monotonic() + within_s
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(within_s)
        if self._log is not None:
            with suppress(SinkError):
                self._log.mark_delivered(self._told)
        for sink in self._tellers:
            sink.close(max(LEAST_S, until - time.monotonic()))

    def _run(self) -> None:
        tries = 0
        while True:
            with self._changed:
                while not self._records and not self._closed:
                    self._changed.wait()
                if not self._records:
                    return
                records, self._records = list(self._records), deque()
            try:
                self._tell(self._kept(records))
                tries = 0
            except SinkError as error:
                if not tries:
                    log.error("%s: events wait until the log can be written", error)
                self._tell([one for one in records if one["type"] == "prediction"])
                with self._changed:  # in order, before what has come since
                    self._records.extendleft(reversed([one for one in records if one["type"] != "prediction"]))
                    if self._closed:
                        return
                    self._changed.wait_for(lambda: self._closed, RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1

    def _kept(self, records: Sequence[Said]) -> list[Said]:
        """The records, once all that is to be durable is."""
        closed = [i for i, one in enumerate(records) if one["type"] == "event" and not one["open"]]
        gaps = [Gap.from_json(one) for one in records if one["type"] == "gap"]
        said = list(records)
        if self._log is None or not (closed or gaps):
            return said
        numbers = self._log.append([Event.from_json(records[i]) for i in closed], gaps, self._told)
        self._told = numbers  # once they have been told, the next commit says so
        for i, number in zip(closed, numbers, strict=True):
            said[i] = self._named(records[i], number)
        return said

    def _tell(self, said: Sequence[Said]) -> None:
        for one in said:
            self.counts[one["type"]] += 1
        for sink in self._tellers:
            try:
                sink.write(said)
            except (GatestreamError, zmq.ZMQError) as error:
                self.counts["failures"] += 1
                log.error("%s failed: %s", type(sink).__name__, error)

    def _named(self, event: Said, number: int) -> Said:
        assert self._log is not None
        named = {**event, "id": f"{self._log.identity}-{number}"}
        return named if self._clip_of is None else {**named, "clip": self._clip_of(named)}


def _line(said: Said) -> bytes:
    return json.dumps(said, separators=(",", ":"), allow_nan=False).encode()


