"""One worker of a cluster: a service for some of the cameras, whose results somebody collects."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from engines.errors import EngineError
from stream.notices import log_to_stderr
from stream.service.config import Config, Health, Results
from stream.service.egress.outbox import PREDICTIONS, ResultSink, Said
from stream.service.service import Service

WAITS_S = 0.5  # for results, where there are none


class ResultBuffer(ResultSink):
    """Keeps results until whoever collects them says that it has them; too many predictions are dropped."""

    def __init__(self) -> None:
        self._said: deque[Said] = deque()
        self._first = 0  # number of the first that is kept
        self._changed = threading.Condition()

    def write(self, said: Sequence[Said]) -> None:
        with self._changed:
            self._said.extend(one for one in said
                              if one["type"] != "prediction" or len(self._said) < PREDICTIONS)
            self._changed.notify_all()

    def collect(self, had: int, wait_s: float = WAITS_S) -> list[Said]:
        """All from number `had` on, once there are some or the time is over; those before are forgotten."""
        with self._changed:
            while self._first < had and self._said:
                self._said.popleft()
                self._first += 1
            self._changed.wait_for(lambda: bool(self._said), wait_s)
            return list(self._said)

    def close(self, within_s: float) -> None:
        with self._changed:
            self._changed.notify_all()


class Node:
    """See the file's top. Its methods may be called from several threads; `start` comes first."""

    def __init__(self) -> None:
        self._buffer = ResultBuffer()
        self._configs: queue.SimpleQueue[Config] = queue.SimpleQueue()
        self._begun, self._stop = threading.Event(), threading.Event()
        self._fault: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._service: Service | None = None

    def where(self) -> tuple[str, int]:
        """The machine's name, and this process's number on it."""
        return socket.gethostname(), os.getpid()

    def start(self, config: str, cores: Sequence[int] = ()) -> None:
        """Serves the cameras of a configuration (JSON). cores: those to run on, all if empty."""
        try:
            if cores and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)
            self._service = Service(own_part(Config.model_validate_json(config)), sinks=[self._buffer])
            self._thread = threading.Thread(target=self._run, args=(self._service,), name="service", daemon=True)
            self._thread.start()
        except BaseException as error:
            self._fault = error
        finally:
            self._begun.set()

    def configure(self, config: str) -> None:
        """Takes another configuration."""
        self._configs.put(Config.model_validate_json(config))

    def collect(self, had: int) -> tuple[list[Said], dict[str, Any]]:
        """Results from number `had` on, and the state of the service. Raises what the service died of."""
        self._begun.wait()
        said = self._buffer.collect(had)
        if self._fault is not None or self._service is None:
            raise self._fault or EngineError("a worker without a service", "one", "start it")
        return said, self._service.state()

    def stop(self, had: int) -> list[Said]:
        """Ends the service; the last results."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        return self._buffer.collect(had, 0.0)

    def _run(self, service: Service) -> None:
        try:
            with log_to_stderr(), service:
                service.run(self._stop, lambda: None if self._configs.empty() else own_part(self._configs.get()))
        except BaseException as error:
            self._fault = error


def own_part(config: Config) -> Config:
    """What of a cluster's configuration is a worker's: its cameras and engine. It binds nothing and writes nothing."""
    return config.model_copy(update={
        "results": Results(), "health": Health(bind=None),
        "receive": config.receive.model_copy(update={"bind": (), "pair": (), "sub": (), "unknown": False})})
