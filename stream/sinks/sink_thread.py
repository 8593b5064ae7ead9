"""A sink in a thread of its own: it may be slow, hang, or raise whatever it likes, and that costs this sink alone."""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import zmq

from engines.errors import GatestreamError
from stream.frame import Record, is_lasting
from stream.sinks.base import RefusedError, Sink
from stream.sinks.deliveries import DeliveryLog

log = logging.getLogger("gatestream.service")

BACK_OFF_S = (0.5, 1.0, 2.0, 5.0)  # from one try to the next, the last again and again
WAITING = 20_000  # records that may wait; of more, those that are in no log are dropped
RETRIES_S = 5.0  # from one look for what is to be sent once more to the next
HANGS_AFTER_S = 3.0  # that is told; a sink may limit a wait as it likes


class SinkThread:
    """Writes to a sink what `put` is given. A durable sink gets closed events and gaps from the log: `put` has their
    numbers, in their places among other records. `put` and `state` may be called from any thread."""

    def __init__(self, name: str, sink: Sink, deliveries: DeliveryLog | None) -> None:
        self.name, self._sink, self.deliveries = name, sink, deliveries
        self._waiting: deque[Record | int] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._error: str | None = None
        self._busy_since: float | None = None
        self._hang_logged = False
        self._until = math.inf  # steady seconds
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread, with what an earlier process has logged and not delivered."""
        if self.deliveries is not None:
            self.put([self.deliveries.newest()])
        self._thread.start()

    def put(self, items: Sequence[Record | int]) -> None:
        """Adds records, and numbers of the log. Never waits."""
        if self._sink.takes_lasting_only:
            items = [item for item in items if isinstance(item, int) or is_lasting(item)]
        if not items:
            return
        with self._changed:
            self._waiting.extend(items)
            if len(self._waiting) > WAITING:
                numbers = [item for item in self._waiting if isinstance(item, int)]
                self.counts["dropped"] += len(self._waiting) - len(numbers)
                self._waiting = deque(numbers[-1:])  # it stands for those before it
            self._changed.notify()

    @property
    def fault(self) -> str | None:
        """Why nothing gets through now."""
        return self._hang or self._error or self._sink.fault

    @property
    def _hang(self) -> str | None:
        busy_s = time.monotonic() - (self._busy_since or math.inf)
        return f"it hangs: no answer for {busy_s:.0f} s" if busy_s > HANGS_AFTER_S else None

    def log_hang(self) -> None:
        """Logs once that a write hangs, which its own thread cannot. To be called again and again."""
        if (hang := self._hang) is not None and not self._hang_logged:
            log.error("%s: %s", self.name, hang)
        self._hang_logged = hang is not None

    def state(self) -> dict[str, Any]:
        """What /health shows of the sink."""
        return {"fault": self.fault, "waiting": len(self._waiting), **{
            what: self.counts[what] for what in ("delivered", "refused", "failures", "dropped")}}

    def close(self, within_s: float) -> None:
        """Writes what it can in that time. The rest of a durable sink's is in the log, for the next process."""
        with self._changed:
            self._closed, self._until = True, time.monotonic() + within_s
            self._changed.notify()
        if self._thread.is_alive():  # not so where a service could not start
            self._thread.join(within_s)
        if self._thread.is_alive():
            log.warning("%s does not end in time: it is left behind", self.name)

    def _run(self) -> None:
        tries, under_way = 0, deque[Record | int]()
        while True:
            with self._changed:
                if not under_way:
                    self._changed.wait_for(lambda: self._waiting or self._closed,
                                           RETRIES_S if self.deliveries is not None else None)
                    under_way, self._waiting = self._waiting, deque()
            if self._closed and not under_way:
                break
            self._busy_since = time.monotonic()
            try:
                self._write_all(under_way)
                self._retry()
                tries, self._error = 0, None
            except Exception as error:  # whatever it is costs this sink alone
                self.counts["failures"] += 1
                if not tries:
                    expected = isinstance(error, GatestreamError | zmq.ZMQError | OSError)
                    log.error("%s fails: %s", self.name, error, exc_info=not expected)
                self._error, self._busy_since = str(error) or type(error).__name__, None
                with self._changed:
                    if self._closed or self._changed.wait_for(lambda: self._closed,
                                                              BACK_OFF_S[min(tries, len(BACK_OFF_S) - 1)]):
                        break
                tries += 1
            self._busy_since = None
        self._sink.close()
        if self.deliveries is not None:
            self.deliveries.close()

    def _write_all(self, items: deque[Record | int]) -> None:
        """Writes items, which it takes from the deque; a number stays there until all up to it is delivered."""
        while items:
            if isinstance(items[0], int):
                self._deliver(items[0])
                items.popleft()
                continue
            records: list[Record] = []
            while items and not isinstance(items[0], int):
                records.append(items.popleft())  # type: ignore[arg-type]
            try:
                self._sink.write(None, records)
            except (ValueError, RefusedError):  # of one of them: sinks make JSON of all before they pass on any
                for record in records:
                    try:
                        self._sink.write(None, [record])
                    except (ValueError, RefusedError) as error:
                        self.counts["failures"] += 1
                        log.error("%s cannot write %s: %s", self.name, record, error)

    def _deliver(self, until: int) -> None:
        assert self.deliveries is not None
        while found := self.deliveries.read(until):
            for number, record in found:
                if time.monotonic() > self._until:
                    return
                self.deliveries.advance(number, self._send(record))

    def _retry(self) -> None:
        for number, record in self.deliveries.retries() if self.deliveries is not None else ():
            assert self.deliveries is not None
            if (refused := self._send(record)) is None:
                self.deliveries.settle(number)
            else:
                self.deliveries.advance(number, refused)

    def _send(self, record: Record) -> str | None:
        """Delivers one record; returns why it is refused for good, if it is."""
        self._busy_since = time.monotonic()
        try:
            self._sink.write(None, [record])
        except RefusedError as error:
            self.counts["refused"] += 1
            log.error("%s refuses an event, see `gatestream events --undelivered`: %s", self.name, error)
            return str(error)
        self.counts["delivered"] += 1
        return None
