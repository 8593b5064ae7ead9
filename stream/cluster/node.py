"""One worker of a cluster: a service for some of the cameras, whose results the head collects."""

import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Sequence

from stream.frame import Frame, Prediction, Record
from stream.notices import log_to_stderr
from stream.service.config import Config
from stream.service.egress.health import ServiceState
from stream.service.service import Service
from stream.sinks.base import Sink
from stream.sinks.outbox import WAITING

WAITS_S = 0.5  # for results, where there are none


class Node(Sink):
    """A Ray actor that runs a service, and keeps its results until the head has them; predictions beyond WAITING
    are dropped. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._first = 0  # number of the first that is kept
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._configs: queue.SimpleQueue[Config] = queue.SimpleQueue()
        self._service: Service | None = None

    def where(self) -> tuple[str, int]:
        """The machine's name, and this process's number on it."""
        return socket.gethostname(), os.getpid()

    def serve(self, config: str, cores: Sequence[int] = ()) -> list[Record]:
        """Serves a configuration (JSON) until `stop`; returns what was not collected. cores: to run on; empty: all."""
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)  # of this thread, and of all threads and processes that it starts
        with log_to_stderr(), Service(Config.model_validate_json(config), sinks=[self]) as self._service:
            self._service.run(self._stop, lambda: None if self._configs.empty() else self._configs.get())
        return list(self._records)

    def configure(self, config: str) -> None:
        """Takes another configuration (JSON)."""
        self._configs.put(Config.model_validate_json(config))

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        with self._changed:
            self._records.extend(record for record in records
                                 if not isinstance(record, Prediction) or len(self._records) < WAITING)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing to finish."""

    def collect(self, received: int) -> tuple[list[Record], ServiceState | None]:
        """Results from number `received` on, once there are some or the time is over, and the state of the service."""
        with self._changed:
            self._drop(received)
            self._changed.wait_for(lambda: bool(self._records), WAITS_S)
            return list(self._records), None if self._service is None else self._service.state()

    def stop(self, received: int) -> None:
        """Has `serve` end; results before number `received` were collected."""
        with self._changed:
            self._drop(received)
        self._stop.set()

    def _drop(self, received: int) -> None:
        while self._first < received and self._records:
            self._records.popleft()
            self._first += 1
