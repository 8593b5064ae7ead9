"""The service: one process that owns the sockets, and one that runs the engine.

    cameras ◄──────────► Receiver (thread) ◄──► worker process
    camera processes ──►     └──► Outbox (thread) ──► log, publisher, webhook, videos, ...

The worker's process may crash or hang: it is started again, a gap is reported for each camera, and no sender notices.
With another model a second process is started beside it, and takes over once it is ready and has passed `promotion`."""

import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import zmq

import engines
from engines.errors import EngineError, GatestreamError, UsageError
from engines.model.file import Model, bundled
from stream.service.config import Config
from stream.service.egress.clips import ClipRecorder
from stream.service.egress.health import Metrics, serve_health
from stream.service.egress.live_feed import LiveFeed
from stream.service.egress.open_sinks import open_sinks
from stream.service.egress.outbox import ResultSink
from stream.service.frames import RecentFrames
from stream.service.ingress.admission import CameraSession
from stream.service.ingress.camera_supervisor import CameraSupervisor
from stream.service.ingress.receiver import Receiver, Records
from stream.service.ingress.scheduler import CameraCounters
from stream.service.ingress.security import SocketAuth, default_folder
from stream.service.worker.processes import resident_bytes, start_process, wait_or_kill

log = logging.getLogger("gatestream.service")

PERIOD_S = 0.1  # between two looks at the processes
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # before the worker's process is started again
LASTING_S = 30.0  # a process that lived this long starts the row anew
HANGS_AFTER_S = 10.0  # with one batch of frames
SILENT_FOR_S = 30.0  # without a sign of life: some libraries hold up all threads while they build
STARTS_WITHIN_S = 120.0  # until the first one
ASLEEP_S = 5.0  # longer between two looks: we were held up ourselves, and so was what the worker has sent
STOPS_WITHIN_S = 1.2
DECISION_S = 2.0  # from the beginning of an action to its event, at most
SPARE_S = 0.5


class Service:
    """Serves the cameras of a configuration. Belongs to one thread; `state` may be called from any.

        with Service(config) as service:      # binds the sockets, starts the worker's process
            service.run(stop)                 # until the event `stop` is set

    sinks: get results beside those of the configuration. Raises UsageError, ModelError, SourceError, SinkError when it
    cannot start."""

    def __init__(self, config: Config, sinks: Sequence[ResultSink] = ()) -> None:
        self.config = config
        loaded = engines.load(config.model).require_taught()  # so that a wrong name is an error here, and at once
        self._worker: subprocess.Popen[bytes] | None = None
        # Another model that is being made ready, in a process of its own, and since when.
        self._candidate: tuple[Model, subprocess.Popen[bytes], float] | None = None
        self._live_pid = 0  # of the process that serves the cameras
        self._started_at, self._deaths, self.restarts = 0.0, 0, 0
        self._looked_at = self._awake_since = time.monotonic()
        self._fault: BaseException | None = None
        self._auth: SocketAuth | None = None
        self._clips: Mapping[str, int] = {}
        self._files: dict[Path, BinaryIO] = {}  # copies of models, which stay readable when they are removed
        with ExitStack() as stack:
            self._stack_of_files = stack.enter_context(ExitStack())
            self._folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gatestream-"))  # mode 700
            self._address = f"ipc://{self._folder}/worker"
            self._model = self._copy_of(loaded)
            context = stack.enter_context(zmq.Context())
            if_it_fails = stack.enter_context(ExitStack())  # else whoever has a socket closes it
            if_it_fails.callback(context.destroy, 0)
            recent = RecentFrames(self._recent_s(loaded))
            if config.receive.curve or config.receive.addresses:
                self._auth = SocketAuth(context, config.receive.keys or default_folder(), config.receive.curve,
                                        config.receive.addresses)
                stack.callback(self._auth.close)
            self.receiver = Receiver(config, lambda records: self.outbox.put(records), context,
                                     self._auth.secure if self._auth else lambda socket: None, recent=recent)
            metrics = Metrics(self.state)
            live_feed = LiveFeed(recent, self.receiver.limits) if config.health.serves_pictures else None
            sinks = [*sinks, metrics, *([live_feed] if live_feed else [])]
            if config.clips is not None:
                recorder = ClipRecorder(config.clips, self.receiver.call_soon, recent, self.receiver.limits)
                self.receiver.on_frame, self.receiver.on_poll = recorder.on_frame, recorder.flush
                self._clips = recorder.counts
                sinks.append(recorder)
            self.outbox = open_sinks(config, loaded.contract.name, context, stack, sinks)
            internal_address = f"ipc://{self._folder}/cameras"
            self.addresses = self.receiver.open(self._address, internal_address)
            self._supervisor = CameraSupervisor(internal_address)
            stack.callback(self._supervisor.close)
            self._supervisor.configure(config.camera)
            self.health_address = stack.enter_context(serve_health(config.health.bind, metrics, live_feed))
            self._thread = threading.Thread(target=self._receive, name="receiver", daemon=True)
            if_it_fails.pop_all()
            self._stack = stack.pop_all()

    def _recent_s(self, model: Model) -> float:
        """How long frames are kept: for a worker that comes late, and for what came before an event."""
        contract, clips = model.contract, self.config.clips
        warm_s = max(contract.warmup_frames, contract.receptive_frames) / contract.frame_rate + SPARE_S
        return max(warm_s, clips.before_s + DECISION_S if clips else 0.0)

    def __enter__(self) -> Self:
        self.outbox.start()
        self._thread.start()
        self.supervise()  # starts the worker's process
        return self

    def run(self, stop: threading.Event, changed: Callable[[], Config | None] = lambda: None) -> None:
        """Keeps the processes alive until `stop` is set, and takes the configurations that `changed` returns.
        Raises EngineError when the engine cannot start at all, and what ended the receiver's thread."""
        while not stop.wait(PERIOD_S):
            if (config := changed()) is not None:
                self.reload(config)
            self.supervise()

    def reload(self, config: Config) -> None:
        """Takes another configuration: cameras, quotas, allowed keys, and the model once it is ready. Logs which keys
        are only taken at the next start."""
        fixed = self.config.receive.model_dump(include={"bind", "pair", "sub", "curve", "keys", "addresses", "cameras"})
        taken = self.config.model_copy(update={
            "camera": config.camera, "cluster": config.cluster, "receive": config.receive.model_copy(update=fixed)})
        rest = [key for key in Config.model_fields if key != "model" and getattr(config, key) != getattr(taken, key)]
        if rest:
            log.warning("changes under %s take effect at the next start", ", ".join(rest))
        self.config = taken
        self.receiver.call_soon(lambda: self.receiver.configure(taken))
        self._supervisor.configure(taken.camera)
        if self._auth is not None:
            self._auth.reload()
        try:
            self._prepare_model(config.model)
        except GatestreamError as error:
            log.error("the model is not changed: %s", error)
        log.info("the configuration was read again: %d cameras in it", len(taken.camera))

    def _copy_of(self, model: Model) -> Model:
        """A model from a copy of its file that is ours: a crashed worker's place is taken by the same model."""
        assert model.path is not None
        copy = Path(self._folder) / f"{model.digest}.safetensors"
        shutil.copyfile(model.path, copy)
        self._files[copy] = self._stack_of_files.enter_context(copy.open("rb"))
        return engines.load(copy)

    def _restore(self, copy: Path) -> None:
        """Writes a model's file anew if it is gone: systems clean their temporary folder of what is some days old."""
        if not copy.exists():
            copy.parent.mkdir(mode=0o700, exist_ok=True)
            self._files[copy].seek(0)
            with copy.open("wb") as file:
                shutil.copyfileobj(self._files[copy], file)

    def _prepare_model(self, name: str) -> None:
        """Starts a process with another model, if it is another one. Raises UsageError, ModelError."""
        model = engines.load(name).require_taught()
        if model.digest == self._model.digest:
            return
        path = model.path.resolve() if model.path else None
        folders = [folder.resolve() for folder in self.config.models]
        if name not in bundled() and not (path and any(path.is_relative_to(folder) for folder in folders)):
            raise UsageError(f"model {name}", "a bundled one, or one in the folders that `models` named at the start",
                             "move it there, or start the service again")
        if self.config.gate is not None and not self.config.gate.recording.exists():
            raise UsageError(f"model {name}, for which the recording {self.config.gate.recording} is not there",
                             "the recording in which it has to find what the running model finds", "put it back")
        self._end_candidate()
        copy = self._copy_of(model)
        self._candidate = copy, self._start_process(copy, self.receiver.worker.events), time.monotonic()
        log.info("preparing model %s", name)

    def _check_candidate(self) -> None:
        """Lets a process with another model replace the one before it; logs one that failed."""
        if self._candidate is None:
            return
        model, process, started_at = self._candidate
        if self.receiver.worker.pid == process.pid:
            before, self._worker, self._model, self._candidate = self._worker, process, model, None
            self.receiver.recent.seconds = self._recent_s(self._model)
            self._started_at = min(self._started_at, self.receiver.worker.last_at - SPARE_S)
            log.info("model %s is live", self._model.contract.name)
            if before is not None and before.pid != self._live_pid:
                before.kill()  # one that is still being built would take over in its turn
            if before is not None:
                threading.Thread(target=wait_or_kill, args=(before, STOPS_WITHIN_S), daemon=True).start()
        elif (code := process.poll()) is not None or self._is_silent(process, started_at):
            self._end_candidate()
            log.error("the model is not changed: the new one's process %s",
                      "hangs" if code is None else f"ended with {code}")

    def _end_candidate(self) -> None:
        if self._candidate is not None:
            wait_or_kill(self._candidate[1], 0.0)
            self._candidate = None

    def supervise(self) -> None:
        """Looks once at the processes and the receiver. Raises as `run` does."""
        if self._fault is not None:
            raise self._fault
        now = time.monotonic()
        if now - self._looked_at > ASLEEP_S:
            self._awake_since = now
        self._looked_at = now
        if self.receiver.worker.was_ready:  # a recording would be lost while an engine is built for the first time
            self._supervisor.supervise(dict(self.receiver.sessions))
        self._check_candidate()
        worker = self._worker
        self._live_pid = self.receiver.worker.pid
        if worker is None:
            if now >= self._started_at:
                known = self.receiver.worker.events if self.receiver.worker.was_ready else None
                self._started_at, self._worker = now, self._start_process(self._model, None, known)
            return
        code = worker.poll()
        waiting_s = min(self.receiver.worker.batch.waiting_s(now), now - self._awake_since)
        stuck = self._ready and waiting_s > HANGS_AFTER_S
        if code is None and (stuck or self._is_silent(worker, self._started_at)):
            log.error("the engine's process hangs: ending it")
            code = wait_or_kill(worker, 0.0)
        if code is None:
            return
        if code == 2 or (not self.receiver.worker.was_ready and self._deaths >= 2):
            raise EngineError(f"an engine's process that ends with {code} before it serves", "one that starts",
                              "see its message above, and `gatestream doctor`")
        log.error("the engine's process has ended (%s): starting another one", code)
        self._worker, self.restarts = None, self.restarts + 1
        self._deaths = 0 if now - self._started_at > LASTING_S else self._deaths + 1
        self._started_at = now + BACK_OFF_S[min(self._deaths, len(BACK_OFF_S) - 1)]
        self.receiver.call_soon(self.receiver.on_worker_lost)

    def _is_silent(self, process: subprocess.Popen[bytes], started_at: float) -> bool:
        """Whether a worker gives no sign of life any more. One that builds an engine for hours does."""
        now, alive_at = time.monotonic(), self.receiver.worker.alive_at.get(process.pid, 0.0)
        if alive_at < started_at:
            return now - max(started_at, self._awake_since) > STARTS_WITHIN_S
        return now - max(alive_at, self._awake_since) > SILENT_FOR_S

    @property
    def _ready(self) -> bool:
        """Whether the worker that was started last has sent anything but signs of life."""
        return self.receiver.worker.last_at > self._started_at

    def _start_process(self, model: Model, expected: Records | None, known: Records | None = None
                       ) -> subprocess.Popen[bytes]:
        """Starts a worker. expected: events that the model before it found in the recording for promotions; known:
        those that this one found when it ran before."""
        promotion = self.config.gate if known is None else None  # its recording need not be there any more
        assert model.path is not None
        self._restore(model.path)
        return start_process("stream.service.worker.worker", {
            "address": self._address, "model": str(model.path), "engine": self.config.engine,
            "slots": self.config.receive.cameras, "promotion": promotion and promotion.model_dump(mode="json"),
            "expected": expected, "known": known})

    def _receive(self) -> None:
        try:
            self.receiver.run()
        except BaseException as error:
            self._fault = error
            raise

    def state(self) -> dict[str, Any]:
        """The service's state, as /health shows it."""
        now, log_path, clips = time.monotonic(), self.config.results.log, self.config.clips
        return {"healthy": (self._worker is not None and self._ready and self._fault is None
                            and self.outbox.alive),
                "model": self._model.contract.name,
                "background": self._model.contract.background, "engine": self.receiver.worker.engine,
                "log": log_path and str(log_path.resolve()), "clips_folder": clips and str(clips.folder.resolve()),
                "cameras": {name: self._camera_state(session, now)
                            for name, session in dict(self.receiver.sessions).items()},
                "refused": dict(self.receiver.refused), "results": dict(self.outbox.counts), "clips": dict(self._clips),
                "waiting": len(self.receiver.scheduler), "engine_restarts": self.restarts,
                "memory_bytes": resident_bytes(os.getpid()) + (resident_bytes(self._worker.pid) if self._worker else 0)}

    def _camera_state(self, session: CameraSession, now: float) -> dict[str, Any]:
        counters = self.receiver.scheduler.counters.get(session.name) or CameraCounters()
        latest = self.receiver.latest.get(session.name, {"heads": {}})
        return {"present": session.present, "protocol": session.protocol, "peer": session.peer,
                "staleness_seconds": round(now - session.last_at, 3) if session.last_at else 0.0,
                "frozen": session.frozen(now), "predictions": session.predictions,
                "labels": {head: scores["window"][0] for head, scores in latest["heads"].items()},
                "reconnects": session.reconnects, "received": counters.received, "taken": counters.taken,
                "passed": counters.passed, "bytes": counters.bytes, "dropped": dict(counters.dropped),
                "gaps": dict(session.gaps), "odd": list(session.odd)}

    def __exit__(self, *_: object) -> None:
        """Answers what has come, closes open events, delivers everything, and ends: within two seconds."""
        until = time.monotonic() + STOPS_WITHIN_S
        self._supervisor.close()
        self._end_candidate()
        self.receiver.stop()
        if self._thread.is_alive():
            self._thread.join(max(0.1, until - time.monotonic()))
        if self._worker is not None:
            wait_or_kill(self._worker, max(0.1, until - time.monotonic()))
        self._stack.close()
