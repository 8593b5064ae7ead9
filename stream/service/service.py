"""The service: one process that keeps the sockets, one that runs the engine.

    with Service(config) as service:      # binds, starts the engine's process
        service.run(stop)                 # until `stop` is set

    cameras ◄──► Receiver (thread) ◄──► worker process
    supervisor ──►      └──► Outbox (thread) ──► log, publisher, webhook, videos, ...

The engine's process may crash or hang: it is started again, a gap is told for each camera, and no sender notices. With
another model a second process is started beside it, and takes over once it is ready and has passed the gate.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

import engines
from engines.errors import EngineError, GatestreamError, UsageError
from engines.model.file import Model, bundled
from stream.service.config import Config
from stream.service.egress.clips import ClipRecorder
from stream.service.egress.health import HealthServer, Metrics
from stream.service.egress.live_feed import LiveFeed
from stream.service.egress.open_sinks import open_sinks
from stream.service.egress.outbox import ResultSink
from stream.service.frames import RecentFrames
from stream.service.ingress.camera_supervisor import CameraSupervisor, FrameTimes
from stream.service.ingress.receiver import Receiver, Records
from stream.service.ingress.security import SocketAuth, default_folder
from stream.service.worker.processes import start_process

log = logging.getLogger("gatestream.service")

ROUND_S = 0.1
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # before the engine's process is started again
LASTING_S = 30.0  # a process that lived so long starts the row anew
HANGS_AFTER_S = 10.0  # with work at hand and none done
BUILDS_FOR_S = 300.0  # a process that does not get ready for so long hangs, too
STOPS_WITHIN_S = 1.2
DECIDED_S = 2.0  # from the beginning of an action to the event that tells of it, at most
SPARE_S = 0.5


@dataclass(frozen=True)
class _Candidate:
    """Another model that is made ready, in a process of its own."""

    model: Model
    process: subprocess.Popen[bytes]
    started_at: float


class Service:
    """See the file's top. Raises UsageError, ModelError, SourceError, SinkError when it cannot start."""

    def __init__(self, config: Config, steady: Callable[[], float] = time.monotonic,
                 sinks: Sequence[ResultSink] = ()) -> None:
        """sinks: are told of results beside those of the configuration."""
        self.config, self._steady = config, steady
        loaded = engines.load(config.model)  # so that a wrong name is told here, and at once
        self._stack = ExitStack()
        self._worker: subprocess.Popen[bytes] | None = None
        self._candidate: _Candidate | None = None
        self._live = 0  # process id of the one that cameras are served by
        self._started_at, self._deaths, self.restarts = 0.0, 0, 0
        self._fault: BaseException | None = None
        self._auth: SocketAuth | None = None
        self.health_address: str | None = None
        try:
            self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gatestream-"))  # mode 700
            self._link = f"ipc://{self._folder}/link"
            self._model = self._kept(loaded)
            context = self._stack.enter_context(zmq.Context())
            recent = RecentFrames(self._recent_s(loaded))
            self.receiver = Receiver(config, self._deliver, context, self._guard(context), recent=recent)
            recorder: ClipRecorder | None = None
            if config.clips is not None:
                recorder = ClipRecorder(config.clips, self.receiver.call, recent, self.receiver.limits)
                self.receiver.watch, self.receiver.rounds = recorder.see, recorder.watch
            self._clips = recorder.counts if recorder is not None else {}
            live_feed = LiveFeed(lambda: self.receiver.recent, self.receiver.limits) if config.health.shows else None
            self.outbox = open_sinks(config.results, loaded.contract.name, context, self._stack, recorder,
                                    [*sinks, *([] if live_feed is None else [live_feed])])
            supervisor = f"ipc://{self._folder}/supervisor"
            self.addresses = self.receiver.open(self._link, supervisor)
            self._supervisor = CameraSupervisor(supervisor)
            self._stack.callback(self._supervisor.close)
            self._supervisor.configure(config.camera)
            self.metrics = Metrics(self.state)
            if config.health.bind is not None:
                server = HealthServer(config.health.bind, self.state, self.metrics, live_feed)
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
        self._auth = SocketAuth(context, receive.keys or default_folder(), receive.curve, receive.addresses)
        self._stack.callback(self._auth.close)
        return self._auth.guard

    def _recent_s(self, model: Model) -> float:
        """How long messages are kept: for an engine that comes late, and for what came before an event."""
        contract, clips = model.contract, self.config.clips
        warm_s = max(contract.warmup_frames, contract.receptive_frames) / contract.frame_rate + SPARE_S
        return max(warm_s, clips.before_s + DECIDED_S if clips else 0.0)

    def __enter__(self) -> Self:
        self.outbox.start()
        self._start_worker()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def run(self, stop: threading.Event, changed: Callable[[], Config | None] = lambda: None) -> None:
        """Keeps the engine's process alive until `stop` is set, and takes what configurations `changed` gives.

        Raises EngineError when the engine cannot start at all, and what the receiver died of."""
        while not stop.wait(ROUND_S):
            if (config := changed()) is not None:
                self.reload(config)
            self.supervise()

    def reload(self, config: Config) -> None:
        """Takes another configuration: cameras, quotas, allowed keys, and the model once it is ready. Says what is only
        taken at the next start."""
        own = self.config
        fixed = {key: getattr(own.receive, key) for key in ("bind", "pair", "sub", "curve", "keys", "addresses",
                                                            "cameras")}
        taken = config.model_copy(update={
            "engine": own.engine, "models": own.models, "gate": own.gate, "results": own.results, "clips": own.clips,
            "health": own.health, "model": own.model, "receive": config.receive.model_copy(update=fixed)})
        rest = [key for key in Config.model_fields if key != "model" and getattr(config, key) != getattr(taken, key)]
        if rest:
            log.warning("what has changed under %s is taken at the next start", ", ".join(rest))
        self.config = taken
        self.receiver.call(lambda: self.receiver.configure(taken))
        self._supervisor.configure(taken.camera)
        if self._auth is not None:
            self._auth.read_again()
        try:
            self._try(config.model)
        except GatestreamError as error:
            log.error("the model stays as it is: %s", error)
        log.info("the configuration was read again: %d cameras in it", len(taken.camera))

    def _kept(self, model: Model) -> Model:
        """A model from a copy of its file that is ours: whatever becomes of the file, a crashed engine's process is
        replaced by the same."""
        assert model.path is not None
        copy = Path(self._folder) / f"{model.digest}.safetensors"
        shutil.copyfile(model.path, copy)
        return engines.load(copy)

    def _try(self, name: str) -> None:
        """Starts a process with another model, if it is another one. Raises UsageError, ModelError."""
        model = engines.load(name)
        if model.digest == self._model.digest:
            return
        path = model.path.resolve() if model.path else None
        folders = [folder.resolve() for folder in self.config.models]
        if name not in bundled() and not (path and any(path.is_relative_to(folder) for folder in folders)):
            raise UsageError(f"model {name}", "a bundled one, or one in the folders that `models` named at the start",
                             "move it there, or start the service again")
        self._end_candidate()
        kept = self._kept(model)
        self._candidate = _Candidate(kept, self._started(kept, self.receiver.events), self._steady())
        log.info("model %s is made ready", name)

    def _watch_candidate(self) -> None:
        """Lets a process with another model replace the one before it; tells of one that failed."""
        candidate = self._candidate
        if candidate is None:
            return
        if self.receiver.worker_pid == candidate.process.pid:
            before, self._worker, self._model = self._worker, candidate.process, candidate.model
            self._candidate = None
            self.receiver.recent.seconds = self._recent_s(self._model)
            self._started_at = min(self._started_at, self.receiver.worker_heard_at - SPARE_S)
            log.info("model %s is live", self._model.contract.name)
            if before is not None and before.pid != self._live:
                before.kill()  # one that is still being built would take over in its turn
            if before is not None:
                threading.Thread(target=_ended, args=(before,), daemon=True).start()
        elif (code := candidate.process.poll()) is not None or self._steady() - candidate.started_at > BUILDS_FOR_S:
            self._end_candidate()
            log.error("the model stays as it is: the new one's process has %s",
                      "not got ready" if code is None else f"ended with {code}")

    def _end_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            candidate.process.kill()
            candidate.process.wait()

    def supervise(self) -> None:
        """One look at the engine's process and the receiver."""
        if self._fault is not None:
            raise self._fault
        if self.receiver.served:  # while an engine is built for the first time, what a recording shows would be lost
            self._supervisor.supervise({name: FrameTimes(session.last_at, session.changed_at)
                                     for name, session in dict(self.receiver.sessions).items()})
        self._watch_candidate()
        worker, now = self._worker, self._steady()
        self._live = self.receiver.worker_pid
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
        return now - heard > (HANGS_AFTER_S if ready and len(self.receiver.scheduler) else BUILDS_FOR_S)

    def _start_worker(self) -> None:
        self._started_at = self._steady()
        self._worker = self._started(self._model, None)

    def _started(self, model: Model, events: Records | None) -> subprocess.Popen[bytes]:
        """A process of the engine. events: that the model before it found in the gate's recording."""
        gate = self.config.gate
        said = {"link": self._link, "model": str(model.path), "engine": self.config.engine,
                "slots": self.config.receive.cameras, "gate": gate and gate.model_dump(mode="json"),
                "wanted": events}
        return start_process("stream.service.worker.worker", said)

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
        self.outbox.deliver(records)

    def state(self) -> dict[str, Any]:
        """The service's state, as /health shows it."""
        now = self._steady()
        sessions, counters = dict(self.receiver.sessions), dict(self.receiver.scheduler.counters)
        latest = dict(self.receiver.latest)
        cameras = {}
        for name, session in sessions.items():
            counts = counters.get(name)
            cameras[name] = {
                "present": session.present, "protocol": session.protocol, "peer": session.peer,
                "staleness_seconds": round(now - session.last_at, 3) if session.last_at else 0.0,
                "frozen": session.frozen(now), "predictions": session.predictions,
                "labels": {head: scores["window"][0] for head, scores in latest[name]["heads"].items()}
                if name in latest else {},
                "reconnects": session.reconnects, "received": counts.received if counts else 0,
                "taken": counts.taken if counts else 0,
                "passed": counts.passed if counts else 0, "bytes": counts.bytes if counts else 0,
                "dropped": dict(counts.dropped) if counts else {}, "gaps": dict(session.gaps)}
        ready = self._worker is not None and self.receiver.worker_heard_at > self._started_at
        log_path, clips = self.config.results.log, self.config.clips
        return {"healthy": ready and self._fault is None, "model": self._model.contract.name,
                "background": self._model.contract.background, "engine": self.receiver.engine,
                "log": log_path and str(log_path.resolve()), "clips_folder": clips and str(clips.folder.resolve()),
                "cameras": cameras, "refused": dict(self.receiver.refused),
                "results": dict(self.outbox.counts), "clips": dict(self._clips),
                "waiting": len(self.receiver.scheduler), "engine_restarts": self.restarts,
                "memory_bytes": sum(_resident(pid) for pid in (os.getpid(), self._worker and self._worker.pid) if pid)}

    def close(self) -> None:
        """Answers what has come, closes open events, announces everything, and ends: within two seconds."""
        until = self._steady() + STOPS_WITHIN_S
        self._supervisor.close()
        self._end_candidate()
        self.receiver.stop()
        if self._thread.is_alive():
            self._thread.join(max(0.1, until - self._steady()))
        if self._worker is not None:
            try:
                self._worker.wait(max(0.1, until - self._steady()))
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()
        self._stack.close()


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Waits for a process that was told to end."""
    try:
        process.wait(STOPS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _resident(pid: int) -> int:
    """Resident bytes of a process, 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
