"""Results on their way out: a closed event or a gap is on disk before any sink gets it.

    records ──► stages ──► log (closed events, gaps: committed) ──► every sink, in a thread of its own

While the log cannot be written, closed events and gaps wait, and all else goes on. Other records are not logged."""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from engines.errors import GatestreamError, SinkError
from stream.clock import unix_time
from stream.frame import Event, Gap, Record, is_lasting, record_type
from stream.sinks.base import Sink
from stream.sinks.deliveries import DeliveryLog, forget_sinks
from stream.sinks.log import EventLog, clip_name
from stream.sinks.retention import compact
from stream.sinks.sink_thread import BACK_OFF_S, SinkThread
from stream.stage import Stage

log = logging.getLogger("gatestream.service")

COMPACT_EVERY_S = 3600.0
LOOKS_EVERY_S = 1.0  # whether a sink hangs
WAITING = 20_000  # records of each kind that may wait; beyond that the oldest are dropped
LEAST_S = 0.1  # that each sink has to end


class Outbox:
    """Logs records, and hands them to the sinks. `put` may be called from any thread.

        outbox = Outbox(event_log, {"webhook": Webhook(url)}, memory_sinks=[metrics])
        outbox.start()                  # first what an earlier run logged and perhaps did not deliver
        outbox.put(records)
        outbox.close()"""

    def __init__(self, event_log: EventLog, sinks: Mapping[str, Sink], memory_sinks: Sequence[Sink] = (),
                 stages: Sequence[Stage] = (), names_clips: bool = False,
                 keep: tuple[float | None, float | None] = (None, None)) -> None:
        """memory_sinks: get all records in the outbox's own thread, since they only touch memory; names_clips: events
        come with the file name of their video; keep: days and megabytes of the log, see `compact`. Raises SinkError."""
        self._log, self._memory_sinks, self._stages, self._names_clips = event_log, memory_sinks, stages, names_clips
        self.sinks = [SinkThread(name, sink, DeliveryLog(event_log.path, name)
                                 if sink.durable else None) for name, sink in sinks.items()]
        self._durable = {thread.name for thread in self.sinks if thread.deliveries is not None}
        for name, waiting in forget_sinks(event_log.path, self._durable).items():
            log.warning("%d events and gaps are not delivered to %s, which is no sink any more", waiting, name)
        self._records: deque[Record] = deque()
        self._unlogged: deque[Record] = deque()
        self._ids: dict[tuple[str, str, int | None], str] = {}  # of open events
        self._changed, self._closed = threading.Condition(), False
        self._again_at, self._tries = 0.0, 0  # when the log is tried again that cannot be written, and how often it was
        self._keep, self._compact_at = keep, time.monotonic()
        self.fault: str | None = None  # why the log cannot be written now
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)

    def start(self) -> None:
        """Starts all threads."""
        for sink in self.sinks:
            sink.start()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether records are on their way out."""
        return self._thread.is_alive()

    @property
    def faults(self) -> dict[str, str]:
        """Why results do not get on, or not to some sink."""
        found = {"results": None if self.alive else "their thread does not run", "log": self.fault}
        found |= {sink.name: sink.fault for sink in self.sinks}
        found |= {type(sink).__name__: sink.fault for sink in self._memory_sinks}
        return {name: fault for name, fault in found.items() if fault is not None}

    def state(self) -> dict[str, Any]:
        """What /health shows of the sinks."""
        return {sink.name: sink.state() for sink in self.sinks}

    def put(self, records: Sequence[Record]) -> None:
        """Adds records. Never waits."""
        with self._changed:
            self._records.extend(records)
            if len(self._records) > WAITING:  # an outbox that hangs, in a stage or with the log
                lasting = [record for record in self._records if is_lasting(record)]
                self.counts["dropped"] += len(self._records) - len(lasting[-WAITING:])
                self._records = deque(lasting[-WAITING:])
            self._changed.notify()

    def close(self, within_s: float = 0.8) -> None:
        """Hands on what was put, and ends the sinks' threads; the log is the caller's to close."""
        until = time.monotonic() + within_s
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self.alive:  # not so where a service could not start
            self._thread.join(within_s)
        for sink in self.sinks:
            sink.close(max(LEAST_S, until - time.monotonic()))
        for each in self._memory_sinks:
            each.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                due_s = (self._again_at if self._unlogged else self._compact_at) - time.monotonic()
                self._changed.wait_for(lambda: self._records or self._closed, max(0.0, min(due_s, LOOKS_EVERY_S)))
                records, self._records = list(self._records), deque()
            for sink in self.sinks:
                sink.log_hang()
            try:
                self._hand_on(self._process(records))
            except Exception:  # whatever it is costs these records
                self.counts["failures"] += 1
                log.exception("results are lost")
            if self._closed and not self._records:
                return
            if time.monotonic() >= self._compact_at:
                self._compact()

    def _compact(self) -> None:
        """Deletes from the log what is too old or too much."""
        self._compact_at = time.monotonic() + COMPACT_EVERY_S
        if self._keep != (None, None):
            try:
                done = compact(self._log.path, *self._keep, now=unix_time())
                self.counts["events deleted"] += done.events
                self.counts["gaps deleted"] += done.gaps
            except GatestreamError as error:
                log.error("%s", error)

    def _process(self, records: Sequence[Record]) -> list[Record]:
        for stage in self._stages:
            try:
                records = stage.process(None, records)
            except Exception:  # whatever it is: the records go on as they were
                self.counts["stage failures"] += 1
                log.exception("%s failed", type(stage).__name__)
        self.counts.update(map(record_type, records))
        return [self._name(record) for record in records if _is_finite(record)]

    def _hand_on(self, records: list[Record]) -> None:
        """Logs what is to be logged, and gives the sinks all that may go out now."""
        lasting = [*self._unlogged, *filter(is_lasting, records)]
        numbers: list[int] = []
        if lasting:
            try:
                if self._unlogged and time.monotonic() < self._again_at and not self._closed:
                    raise SinkError(self.fault or "", "", "")
                if self._log.is_moved:
                    with ExitStack() as stack:
                        for deliveries in filter(None, (thread.deliveries for thread in self.sinks)):
                            stack.enter_context(deliveries.suspended())
                        self._log.reopen()
                numbers = self._log.append(lasting, bool(self._durable))
                records = [*self._unlogged, *records]  # in order
                self._unlogged.clear()
                self.fault, self._tries = None, 0
            except SinkError as error:
                if self.fault is None:
                    log.error("%s: events wait until the log can be written", error)
                if time.monotonic() >= self._again_at:
                    self.fault = str(error)
                    self._again_at = time.monotonic() + BACK_OFF_S[min(self._tries, len(BACK_OFF_S) - 1)]
                    self._tries += 1
                self.counts["events dropped"] += max(0, len(lasting) - WAITING)
                self._unlogged = deque(lasting, WAITING)
                records = [record for record in records if not is_lasting(record)]
        in_log = iter(numbers)
        items: list[Record | int] = [next(in_log) if is_lasting(record) and numbers else record for record in records]
        for thread in self.sinks:
            thread.put(items if thread.name in self._durable else records)
        for sink in self._memory_sinks:
            try:
                sink.write(None, records)
            except Exception as error:
                self.counts["failures"] += 1
                log.exception("%s failed: %s", type(sink).__name__, error)

    def _name(self, record: Record) -> Record:
        """An event with its id, which it keeps until it closes, and the name of its video."""
        if not isinstance(record, Event):
            return record
        key = record.camera, record.head, record.number
        id = self._ids.pop(key, None) or self._log.new_id()
        if record.open:
            self._ids[key] = id
        return replace(record, id=id, clip=clip_name(id, record.camera, record.label) if self._names_clips else None)


def _is_finite(record: Record) -> bool:
    """Whether an event or a gap can be logged: one with a score that is no number cannot."""
    values = [record.started_at, record.ended_at, record.score] if isinstance(record, Event) else (
        [record.at, record.seconds] if isinstance(record, Gap) else [])
    if not all(map(math.isfinite, values)):
        log.error("%s is left out: it has a number that is none", record)
    return all(map(math.isfinite, values))
