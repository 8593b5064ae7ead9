"""The service: one process that owns the sockets, and one that runs the engine.

    cameras ◄──────────► Receiver (thread) ◄──► worker process
    camera processes ──►     └──► Outbox (thread) ──► log, publisher, webhook, videos, ...

The worker's process may crash or hang: it is started again, a gap is reported for each camera, and no sender notices.
With another model a second process is started beside it, and takes over once it is ready and has passed `promotion`."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import zmq

from engines.errors import EngineError, GatestreamError, UsageError
from engines.runtime.temporary import temporary_dir
from stream.access.keys import default_folder
from stream.service.api.server import serve_api
from stream.service.config import Config
from stream.service.egress.health import Metrics, ServiceState
from stream.service.egress.open_sinks import open_sinks
from stream.service.ingress.admission import CameraSession
from stream.service.ingress.camera_supervisor import CameraSupervisor
from stream.service.ingress.receiver import Receiver
from stream.service.ingress.scheduler import CameraCounters, FrameScheduler
from stream.service.ingress.security import SocketAuth
from stream.service.resources import ResourceMonitor
from stream.service.worker.models import ModelCopies, Models
from stream.service.worker.processes import BACK_OFF_S, ChildProcess, end_processes, resident_bytes, start_process
from stream.sinks.base import Sink
from stream.sinks.clips import ClipRecorder
from stream.sinks.continuous import ContinuousRecorder
from stream.sinks.live_feed import LiveFeed
from stream.sinks.segments import VideoSettings
from stream.stage import Stage
from stream.wire.frames import RecentFrames

log = logging.getLogger("gatestream.service")

PERIOD_S = 0.1  # between two looks at the processes
HANGS_AFTER_S = 10.0  # with one batch of frames
STALLS_AFTER_S = 3.0  # likewise; that is told
SILENT_FOR_S = 30.0  # without a sign of life: some libraries hold up all threads while they build
STARTS_WITHIN_S = 120.0  # until the first one
ASLEEP_S = 5.0  # longer between two looks: we were held up ourselves, and so was what the worker has sent
STOPS_WITHIN_S = 1.2
DECISION_S = 2.0  # from the beginning of an action to its event, at most
SPARE_S = 0.5
# Of the memory for pictures: those that wait, the last seconds of all cameras, events' videos.
PENDING_SHARE, RECENT_SHARE, CLIPS_SHARE = 0.25, 0.25, 0.5


class Service:
    """Serves the cameras of a configuration. Belongs to one thread; `state` may be called from any.

        with Service(config) as service:      # binds the sockets, starts the worker's process
            service.run(stop)                 # until the event `stop` is set

    sinks: get results beside those of the configuration; stages: change them before. Raises UsageError,
    ModelError, SourceError, SinkError when it cannot start."""

    def __init__(self, config: Config, sinks: Sequence[Sink] = (), stages: Sequence[Stage] = ()) -> None:
        self.config = config
        loaded = Models.load(config)  # so that a wrong name is an error here, and at once
        self._candidate: tuple[Models, ChildProcess] | None = None  # other ones that are being made ready
        self._held: set[str] = set()  # new cameras that wait for their model
        self._live_pid, self._stalled = 0, False  # the process that serves the cameras
        self._looked_at = self._awake_since = time.monotonic()
        self._fault: BaseException | None = None
        self._auth: SocketAuth | None = None
        self._clips: Mapping[str, int] = {}
        self._missed_since: dict[str, float] = {}  # when each camera of the configuration came into it
        self._thread = threading.Thread(target=self._receive, name="receiver", daemon=True)
        with ExitStack() as stack:
            self._folder = stack.enter_context(temporary_dir())
            self._address = f"ipc://{self._folder}/worker"
            self._copies = stack.enter_context(ModelCopies(Path(self._folder)))
            self._models = loaded.map(self._copies.add)
            self._engine = ChildProcess("the engine", BACK_OFF_S["engine"], partial(self._start_engine, self._models))
            context = zmq.Context()
            stack.callback(self._end_context, context)
            if_it_fails = stack.enter_context(ExitStack())  # else whoever has a socket closes it
            if_it_fails.callback(context.destroy, 0)
            recent = RecentFrames(self._recent_s(loaded), int(RECENT_SHARE * config.memory_mb * 1e6))
            if config.receive.curve or config.receive.addresses:
                self._auth = SocketAuth(context, config.receive.keys or default_folder(), config.receive.curve,
                                        config.receive.addresses)
                stack.callback(self._auth.close)
            self.receiver = Receiver(config, lambda records: self.outbox.put(records), context,
                                     self._auth, recent,
                                     scheduler=FrameScheduler(int(PENDING_SHARE * config.memory_mb * 1e6)))
            metrics = Metrics(self.state)
            live_feed = LiveFeed(recent, self.receiver.limits)
            memory_sinks: list[Sink] = [metrics, live_feed]
            if config.clips is not None:
                most_bytes = int(CLIPS_SHARE * config.memory_mb * 1e6)
                continuous_bytes = most_bytes // 4 if config.clips.continuous else 0
                settings = VideoSettings(**dict(config.clips))
                recorder = ClipRecorder(settings, self.receiver.call_soon, recent, self.receiver.limits,
                                        most_bytes - continuous_bytes)
                self._clips = recorder.counts
                recorders: list[ClipRecorder | ContinuousRecorder] = [recorder]
                self.receiver.on_poll = recorder.flush
                if continuous_bytes:
                    continuous = ContinuousRecorder(settings, self.receiver.limits, continuous_bytes,
                                                    recorder.counts)
                    recorders.append(continuous)
                memory_sinks.extend(recorders)
                self.receiver.on_frame = lambda frame: [each.on_frame(frame) for each in recorders]
            self.outbox = open_sinks(config, loaded.default, Path(self._folder), stack, memory_sinks, sinks, stages,
                                     live_feed.picture)
            internal_address = f"ipc://{self._folder}/cameras"
            self.addresses = self.receiver.open(self._address, internal_address)
            self._supervisor = CameraSupervisor(internal_address)
            stack.callback(self._supervisor.close)
            self._configure_cameras()
            folders = [config.results.log.parent if config.results.log else Path(self._folder),
                       *([config.clips.folder] if config.clips else [])]
            self._resources = ResourceMonitor(folder.expanduser().resolve() for folder in folders)
            stack.callback(self._resources.close)
            self.health_address = stack.enter_context(serve_api(
                config, metrics, live_feed if config.serves_pictures else None))
            if_it_fails.pop_all()
            self._stack = stack.pop_all()

    def _recent_s(self, models: Models) -> float:
        """How long frames are kept: for a worker that comes late, and for what came before an event."""
        clips, contracts = self.config.clips, [model.contract for model in models.distinct]
        warm_s = max(max(one.warmup_frames, one.receptive_frames) / one.frame_rate for one in contracts) + SPARE_S
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
        """Takes another configuration: cameras, quotas, allowed keys, and the models once they are ready, and with them
        new cameras that have their own. Logs which keys are only taken at the next start."""
        fixed = self.config.receive.model_dump(include={"bind", "pair", "sub", "curve", "keys", "addresses", "cameras"})
        taken = self.config.model_copy(update={
            "camera": config.camera, "cluster": config.cluster, "receive": config.receive.model_copy(update=fixed)})
        rest = [key for key in Config.model_fields if key != "model" and getattr(config, key) != getattr(taken, key)]
        if rest:
            log.warning("changes under %s take effect at the next start", ", ".join(rest))
        served = {camera.name for camera in self.config.camera} - self._held
        self._held = {camera.name for camera in taken.camera if camera.model is not None} - served
        self.config = taken
        try:
            self._prepare_models(config)
        except GatestreamError as error:
            log.error("the model is not changed: %s", error)
        self._configure_cameras()
        if self._auth is not None:
            self._auth.reload()
        log.info("the configuration was read again: %d cameras in it", len(taken.camera))

    def _configure_cameras(self) -> None:
        """Gives the cameras, but those that wait for their model, to whoever serves them."""
        now, config = time.monotonic(), self.config.model_copy(update={
            "camera": tuple(camera for camera in self.config.camera if camera.name not in self._held)})
        self._missed_since = {camera.name: self._missed_since.get(camera.name, now) for camera in config.camera}
        self.receiver.call_soon(lambda: self.receiver.configure(config))
        self._supervisor.configure(config.camera)

    def _prepare_models(self, config: Config) -> None:
        """Starts a process with another configuration's models, if they are other ones. Raises UsageError,
        ModelError."""
        self._check_candidate()
        wanted = Models.load(config)
        if self._candidate is not None and wanted.digests == self._candidate[0].digests:
            return
        wanted.check_allowed(self._models, self.config.models)
        gate, changed = self.config.gate, wanted.default.digest != self._models.default.digest
        if changed and gate is not None and not gate.recording.exists():
            raise UsageError(f"model {config.model}, for which the recording {gate.recording} is not there",
                             "the recording in which it has to find what the running model finds", "put it back")
        end_processes([self._candidate and self._candidate[1].process])
        self._candidate = None
        if wanted.digests == self._models.digests:
            self._held = set()
            return
        copies = wanted.map(self._copies.add)
        self._candidate = copies, ChildProcess("the engine", BACK_OFF_S["engine"], partial(self._start_engine, copies))
        log.info("preparing model %s", copies)

    def _check_candidate(self) -> None:
        """Lets a process with another model replace the one before it; logs one that failed."""
        if self._candidate is None:
            return
        models, child = self._candidate
        if child.process is not None and self.receiver.worker.pid == child.process.pid:
            before, self._engine, self._models, self._candidate = self._engine, child, models, None
            child.restarts = before.restarts
            self.receiver.recent.seconds = self._recent_s(models)
            log.info("model %s is live", models)
            self._held = set()
            self._configure_cameras()
            served = before.process is not None and before.process.pid == self._live_pid
            within_s = STOPS_WITHIN_S if served else 0.0  # one that is still being built would take over in its turn
            threading.Thread(target=end_processes, args=([before.process], within_s), daemon=True).start()
        elif (code := child.supervise(partial(self._hang_reason, child))) is not None:
            self._candidate = None
            log.error("the model is not changed: the new one's process ended with %d", code)

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
        if self._batch_s(now) > STALLS_AFTER_S and not self._stalled:
            log.warning("the engine has had one batch of frames for %g s", STALLS_AFTER_S)
        self._stalled = self._batch_s(now) > STALLS_AFTER_S
        self._live_pid = self.receiver.worker.pid
        if (code := self._engine.supervise(partial(self._hang_reason, self._engine))) is None:
            return
        if code == 2 or (not self.receiver.worker.was_ready and self._engine.deaths >= 2):
            raise EngineError(f"an engine's process that ends with {code} before it serves", "one that starts",
                              "see its message above, and `gatestream doctor`")
        log.error("the engine's process has ended (%s)", code)
        self._engine.restart()
        killed = code == -signal.SIGKILL and self._engine.hung is None  # not by us
        self.receiver.call_soon(lambda: self.receiver.on_worker_lost(killed))

    def _hang_reason(self, child: ChildProcess) -> str | None:
        """Why an engine's process is to be ended. One that is idle, or builds for hours, gives signs of life."""
        now, worker = time.monotonic(), self.receiver.worker
        if child is self._engine and self._batch_s(now) > HANGS_AFTER_S:
            return f"one batch of frames for {HANGS_AFTER_S:g} s"
        alive_at = worker.alive_at.get(child.process.pid, 0.0) if child.process else 0.0
        limit_s = STARTS_WITHIN_S if alive_at < child.started_at else SILENT_FOR_S
        if now - max(alive_at, child.started_at, self._awake_since) > limit_s:
            return f"no sign of life for {limit_s:g} s"
        return None

    def _batch_s(self, now: float) -> float:
        """How long the engine that serves has had one batch of frames."""
        return min(self.receiver.worker.batch.waiting_s(now), now - self._awake_since) if self._ready else 0.0

    @property
    def _ready(self) -> bool:
        """Whether the worker that was started last has sent anything but signs of life."""
        return self.receiver.worker.last_at > self._engine.started_at

    def _start_engine(self, models: Models) -> subprocess.Popen[bytes]:
        """Starts a worker, with the events that it, or the model before it, found in the recording for promotions."""
        worker, same = self.receiver.worker, models.default.digest == self._models.default.digest
        known = worker.events if same and worker.was_ready else None
        promotion = self.config.gate if known is None else None  # its recording need not be there any more
        for model in models.distinct:
            self._copies.restore(model)
        return start_process("stream.service.worker.worker", {
            "address": self._address, "model": str(models.default.path),
            "own": {camera: str(model.path) for camera, model in models.own.items()}, "engine": self.config.engine,
            "slots": self.config.receive.cameras, "promotion": promotion and promotion.model_dump(mode="json"),
            "expected": None if same else worker.events, "known": known})

    def _receive(self) -> None:
        try:
            self.receiver.run()
        except BaseException as error:
            self._fault = error
            raise

    def state(self) -> ServiceState:
        """The service's state, as /health shows it."""
        now, log_path, clips = time.monotonic(), self.config.results.log, self.config.clips
        engine, sessions = self._engine.process, dict(self.receiver.sessions)
        grave = self.outbox.faults
        if self._fault is not None:
            grave["receiver"] = f"it has ended: {self._fault}"
        if engine is None or not self._ready:
            grave["engine"] = f"it does not serve yet, {self._engine.restarts} times started again so far"
        elif self._stalled:
            grave["engine"] = f"it has had one batch of frames for {self._batch_s(now):.0f} s"
        return {"healthy": not grave, "faults": grave | self._resources.faults | self._camera_faults(now),
                "sinks": self.outbox.state(),
                "model": self._models.default.contract.name,
                "background": self._models.default.contract.background, "engine": self.receiver.worker.engine,
                "log": str(log_path.resolve()) if log_path else None,
                "clips_folder": str(clips.folder.resolve()) if clips else None,
                "cameras": {name: self._camera_state(session, now) for name, session in sessions.items()},
                "refused": dict(self.receiver.refused), "results": dict(self.outbox.counts), "clips": dict(self._clips),
                "waiting": len(self.receiver.scheduler), "engine_restarts": self._engine.restarts,
                "memory_bytes": resident_bytes(os.getpid()) + (resident_bytes(engine.pid) if engine else 0)}

    def _camera_faults(self, now: float) -> dict[str, str]:
        """What is wrong with cameras: those of the configuration that do not send, too, but for recordings that have
        been played."""
        found = {f"camera {name}": "it waits for its model" for name in self._held}
        for name, session in dict(self.receiver.sessions).items():
            child = self._supervisor.children.get(name)
            if child and child.finished:
                continue
            if session.present:
                fault = session.find_fault(now)
            else:
                since = session.last_at or self._missed_since.get(name, now)
                fault = f"it has sent nothing for {now - since:.0f} s" if session.configured else ""
            found |= {f"camera {name}": fault} if fault else {}
        return found

    def _camera_state(self, session: CameraSession, now: float) -> dict[str, Any]:
        counters = self.receiver.scheduler.counters.get(session.name) or CameraCounters()
        child = self._supervisor.children.get(session.name)
        return {**session.state(now), "model": self._models.of(session.name).contract.name,
                "restarts": child.restarts if child else 0, "received": counters.received, "taken": counters.taken,
                "passed": counters.passed, "bytes": counters.bytes, "dropped": dict(counters.dropped)}

    def _end_context(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Ends ZeroMQ, unless a thread of ours still uses it: that would wait for ever."""
        if not self._thread.is_alive():
            ending = threading.Thread(target=context.destroy, args=(0,), daemon=True)
            ending.start()
            ending.join(STOPS_WITHIN_S)

    def __exit__(self, *_: object) -> None:
        """Answers what has come, closes open events, delivers everything, and ends: within two seconds."""
        until = time.monotonic() + STOPS_WITHIN_S
        self._supervisor.close()
        end_processes([self._candidate and self._candidate[1].process])
        self.receiver.stop()
        if self._thread.is_alive():
            self._thread.join(max(0.1, until - time.monotonic()))
        # One that builds its engine hears nothing.
        end_processes([self._engine.process], max(0.1, until - time.monotonic()) if self._ready else 0.0)
        self._stack.close()
