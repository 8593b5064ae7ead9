"""The service: one process that keeps the sockets, one that runs the engine.

    with Service(config) as service:      # binds, starts the engine's process
        service.run(stop)                 # until `stop` is set

    cameras ◄──► Receiver (thread) ◄──► worker process
                     └──► Announcer (thread) ──► log, publisher, webhook, ...

The engine's process may crash or hang: it is started again, a gap is told for each camera, and no sender notices.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

import engines
from engines.errors import EngineError
from stream.service.config import Config
from stream.service.health import HealthServer, Metrics
from stream.service.receiver import Receiver, Records
from stream.service.results import Announcer, Lines, Publisher, Teller, Webhook
from stream.service.security import Doorman, default_folder
from stream.sinks.log import EventLog

log = logging.getLogger("gatestream.service")

ROUND_S = 0.1
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # before the engine's process is started again
LASTING_S = 30.0  # a process that lived so long starts the row anew
HANGS_AFTER_S = 10.0  # with work at hand and none done
BUILDS_FOR_S = 300.0  # a process that does not get ready for so long hangs, too
STOPS_WITHIN_S = 1.2


class Service:
    """See the file's top. Raises UsageError, ModelError, SourceError, SinkError when it cannot start."""

    def __init__(self, config: Config, steady: Callable[[], float] = time.monotonic) -> None:
        self.config, self._steady = config, steady
        loaded = engines.load(config.model)  # so that a wrong name is told here, and at once
        self._model = loaded.contract.name
        self._stack = ExitStack()
        self._worker: subprocess.Popen[bytes] | None = None
        self._started_at, self._deaths, self.restarts = 0.0, 0, 0
        self._fault: BaseException | None = None
        self.health_address: str | None = None
        try:
            self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gatestream-"))  # mode 700
            self._link = f"ipc://{self._folder}/link"
            context = self._stack.enter_context(zmq.Context())
            results = config.results
            event_log = None
            if results.log is not None:
                event_log = self._stack.enter_context(EventLog(results.log, self._model, "service"))
            tellers: list[Teller] = []
            if results.publish:
                tellers.append(Publisher(context.socket(zmq.PUB), results.publish))
            if results.jsonl is not None:
                tellers.append(Lines(results.jsonl))
            if results.webhook is not None:
                tellers.append(Webhook(results.webhook))
            self.announcer = Announcer(event_log, tellers)
            self._stack.callback(self.announcer.close)
            self.receiver = Receiver(config, self._deliver, context, self._guard(context))
            self.addresses = self.receiver.open(self._link)
            self.metrics = Metrics(self.state)
            if config.health.bind is not None:
                server = HealthServer(config.health.bind, self.state, self.metrics)
                self._stack.callback(server.close)
                self.health_address = server.address
            self._thread = threading.Thread(target=self._receive, name="receiver", daemon=True)
        except BaseException:
            self._stack.close()
            raise

    def _guard(self, context: zmq.Context[zmq.Socket[bytes]]) -> Callable[[zmq.Socket[bytes]], None]:
        """What makes sockets safe before they are bound."""
        receive = self.config.receive
        if not receive.curve and not receive.addresses:
            return lambda socket: None
        doorman = Doorman(context, receive.keys or default_folder(), receive.curve, receive.addresses)
        self._stack.callback(doorman.close)
        return doorman.guard

    def __enter__(self) -> Self:
        self.announcer.start()
        self._start_worker()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def run(self, stop: threading.Event) -> None:
        """Keeps the engine's process alive until `stop` is set. Raises EngineError when it cannot start at all, and
        what the receiver died of."""
        while not stop.wait(ROUND_S):
            self.supervise()

    def supervise(self) -> None:
        """One look at the engine's process and the receiver."""
        if self._fault is not None:
            raise self._fault
        worker, now = self._worker, self._steady()
        if worker is None:
            if now >= self._started_at:
                self._start_worker()
            return
        code = worker.poll()
        if code is None and self._hangs(now):
            log.error("the engine's process hangs: it is ended")
            worker.kill()
            code = worker.wait()
        if code is None:
            return
        if code == 2 or (not self.receiver.served and self._deaths >= 2):
            raise EngineError(f"an engine's process that ends with {code} before it serves", "one that starts",
                              "see its message above, and `gatestream doctor`")
        log.error("the engine's process has ended (%s): another one is started", code)
        self._worker, self.restarts = None, self.restarts + 1
        self._deaths = 0 if now - self._started_at > LASTING_S else self._deaths + 1
        self._started_at = now + BACK_OFF_S[min(self._deaths, len(BACK_OFF_S) - 1)]
        self.receiver.call(self.receiver.worker_lost)

    def _hangs(self, now: float) -> bool:
        heard = max(self._started_at, self.receiver.worker_heard_at)
        ready = self.receiver.worker_heard_at > self._started_at
        return now - heard > (HANGS_AFTER_S if ready and len(self.receiver.lobby) else BUILDS_FOR_S)

    def _start_worker(self) -> None:
        said = {"link": self._link, "model": self.config.model, "engine": self.config.engine,
                "slots": self.config.receive.cameras}
        self._started_at = self._steady()
        self._worker = subprocess.Popen([sys.executable, "-m", "stream.service.worker", json.dumps(said)],
                                        stdin=subprocess.DEVNULL)

    def _receive(self) -> None:
        try:
            self.receiver.run()
        except BaseException as error:
            self._fault = error
            raise

    def _deliver(self, records: Records) -> None:
        for record in records:
            if record["type"] == "prediction":
                self.metrics.observe(record["latency_ms"])
        self.announcer.deliver(records)

    def state(self) -> dict[str, Any]:
        """The service's state, as /health shows it."""
        now = self._steady()
        visitors, accounts = dict(self.receiver.visitors), dict(self.receiver.lobby.accounts)
        cameras = {}
        for name, visitor in visitors.items():
            account = accounts.get(name)
            cameras[name] = {
                "present": visitor.present, "protocol": visitor.protocol, "peer": visitor.peer,
                "staleness_seconds": round(now - visitor.last_at, 3) if visitor.last_at else 0.0,
                "frozen": visitor.frozen(now),
                "reconnects": visitor.reconnects, "received": account.received if account else 0,
                "taken": account.taken if account else 0, "bytes": account.bytes if account else 0,
                "dropped": dict(account.dropped) if account else {}}
        ready = self._worker is not None and self.receiver.worker_heard_at > self._started_at
        return {"healthy": ready and self._fault is None, "model": self._model, "engine": self.receiver.engine,
                "cameras": cameras, "refused": dict(self.receiver.refused), "results": dict(self.announcer.counts),
                "waiting": len(self.receiver.lobby), "engine_restarts": self.restarts,
                "memory_bytes": sum(_resident(pid) for pid in (os.getpid(), self._worker and self._worker.pid) if pid)}

    def close(self) -> None:
        """Answers what has come, closes open events, announces everything, and ends: within two seconds."""
        until = self._steady() + STOPS_WITHIN_S
        self.receiver.stop()
        if self._thread.is_alive():
            self._thread.join(STOPS_WITHIN_S)
        if self._worker is not None:
            try:
                self._worker.wait(max(0.1, until - self._steady()))
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()
        self._stack.close()


def _resident(pid: int) -> int:
    """Resident bytes of a process, 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


