"""A service on more than one machine, with Ray: a worker for each GPU or group of cores, results in one log.

    cameras ──► workers (open their cameras) ──results──► head ──► log, publisher, webhook, ...

Only configurations and results travel through Ray, never a frame. A camera stays with its worker, which has its state;
when a worker dies a gap is reported for each of its cameras, the others open them, and another worker is started."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from engines.errors import EngineError, UsageError, first_line
from engines.runtime.temporary import temporary_dir
from stream.archive.ray import connect_ray
from stream.cluster.node import Node
from stream.cluster.placement import Placement
from stream.frame import ENGINE_RESTARTED, Gap
from stream.service.api.server import serve_api
from stream.service.config import ApiConfig, Config, HealthConfig, ResultsConfig
from stream.service.egress.health import Metrics, ServiceState
from stream.service.egress.open_sinks import open_sinks
from stream.service.worker.models import Models
from stream.sinks.live_feed import LiveFeed
from stream.wire.frames import RecentFrames
from stream.wire.messages import Limits

log = logging.getLogger("gatestream.service")

WAIT_S = 0.05  # for results
STARTS_WITHIN_S = 300.0
STOPS_WITHIN_S = 2.0
DEATHS = 5  # of workers, none of which ever served: then it is no accident


@dataclass
class _Worker:
    """A worker as the head sees it."""

    actor: Any
    number: int
    call: Any  # that is under way, a Ray reference
    serving: Any = None  # the call that its service runs in, once there is room and a machine for it
    received: int = 0  # results from it
    state: ServiceState | None = None


class Cluster:
    """The head of a cluster. Belongs to one thread; `state` may be called from any.

        with Cluster(config) as cluster:
            cluster.run(stop)

    Raises UsageError without Ray, or for a camera that no worker can open; EngineError when none can be started."""

    def __init__(self, config: Config) -> None:
        _check_supported(config)
        self.config = config
        model = Models.load(config).default
        self._contract = model.contract
        self._placement = Placement()
        self._workers: dict[str, _Worker] = {}
        self._started, self._lost, self._served = 0, 0, False
        with ExitStack() as stack:
            self._ray = stack.enter_context(connect_ray(config.cluster.address))
            metrics = Metrics(self.state)
            live_feed = LiveFeed(RecentFrames(0.0), Limits())  # without pictures: frames stay with their workers
            folder = stack.enter_context(temporary_dir())
            self.outbox = open_sinks(config, model, folder, stack, [metrics, live_feed])
            self.health_address = stack.enter_context(
                serve_api(config, metrics, live_feed if config.serves_pictures else None))
            self._start_workers()
            self._stack = stack.pop_all()

    def _start_workers(self) -> None:
        ray, settings = self._ray, self.config.cluster
        resources = ray.cluster_resources()
        self._gpus = int(resources.get("GPU", 0)) > 0
        count = settings.workers or (int(resources["GPU"]) if self._gpus else
                                     max(1, int(resources["CPU"]) // settings.cores))
        self._remote = ray.remote(num_cpus=settings.cores, num_gpus=int(self._gpus), max_concurrency=3)(Node)
        for _ in range(count):
            self._start_worker()
        until = time.monotonic() + STARTS_WITHIN_S
        while not all(worker.serving for worker in self._workers.values()):
            self.collect(WAIT_S)
            if time.monotonic() > until:
                raise EngineError(f"no room for {count} workers in the cluster",
                                  f"{settings.cores} free cores for each", "start fewer workers, or more machines")
        self._place_cameras()

    def __enter__(self) -> Self:
        self.outbox.start()
        return self

    def run(self, stop: threading.Event, changed: Callable[[], Config | None] = lambda: None) -> None:
        """Collects results until `stop` is set, replaces workers that die, takes what configurations `changed` returns.
        Raises EngineError when no worker ever serves."""
        while not stop.is_set():
            if (config := changed()) is not None:
                self.reload(config)
            self.collect(WAIT_S)

    def reload(self, config: Config) -> None:
        """Takes another configuration's cameras and model. Cameras that stay keep their worker."""
        try:
            _check_supported(config)
        except UsageError as error:
            log.error("the configuration is not changed: %s", error)
            return
        self.config = config.model_copy(update={"cluster": self.config.cluster, "results": self.config.results,
                                                "health": self.config.health})
        self._place_cameras()
        log.info("the configuration was read again: %d cameras in it", len(config.camera))

    def _place_cameras(self) -> None:
        self._placement.configure([camera.name for camera in self.config.camera])
        self._configure(set(self._workers))

    def collect(self, wait_s: float) -> None:
        """Takes the results that come within a time."""
        names = {call: name for name, worker in self._workers.items() for call in (worker.serving, worker.call) if call}
        ready, _ = self._ray.wait(list(names), num_returns=1, timeout=wait_s) if names else ([], [])
        for call in ready:
            name = names[call]
            worker = self._workers[name]
            try:
                answer = self._ray.get(call)
            except Exception as error:  # whatever a worker dies of, the others go on
                self._on_lost(name, worker, error)
                continue
            if worker.serving:
                records, worker.state = answer
                self._served |= bool(worker.state and worker.state["healthy"])
                worker.received += len(records)
                self.outbox.put(records)
            else:
                self._on_joined(name, worker, *answer)
            worker.call = worker.actor.collect.remote(worker.received)

    def _start_worker(self) -> None:
        """Asks for one more worker, which joins when there is room for it."""
        self._started += 1
        actor = self._remote.remote()
        self._workers[f"worker {self._started}"] = _Worker(actor, self._started, actor.where.remote())

    def _on_joined(self, name: str, worker: _Worker, host: str, pid: int) -> None:
        """Gives a new worker the cameras that no other has."""
        self._placement.join(name)
        worker.serving = worker.actor.serve.remote(self._config_for(name), self._core_group(worker.number))
        log.info("%s is started on %s (process %d)", name, host, pid)

    def _core_group(self, number: int) -> list[int]:
        """Cores for a worker of this machine: each has a group of its own, as far as they last."""
        if self._gpus or self.config.cluster.address is not None:
            return []
        own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        size = self.config.cluster.cores
        groups = [own[first:first + size] for first in range(0, len(own) - size + 1, size)]
        return groups[(number - 1) % len(groups)] if groups else []

    def _on_lost(self, name: str, worker: _Worker, error: Exception) -> None:
        log.error("%s is lost (%s): its cameras move", name, first_line(error))
        del self._workers[name]
        self._ray.kill(worker.actor)  # one that only failed would keep its place
        self._lost += 1
        if not self._served and self._lost >= DEATHS:
            raise EngineError(f"{self._lost} workers that died before any of them served ({error})", "one that serves",
                              "see its messages above, and `gatestream doctor` on its machine") from error
        cameras, changed = self._placement.lose(name) if worker.serving else ([], set())
        at = time.time()
        self.outbox.put([Gap(camera, at, 0.0, ENGINE_RESTARTED) for camera in cameras])
        self._configure(changed)
        self._start_worker()

    def _configure(self, names: set[str]) -> None:
        for name in names & set(self._workers):
            self._workers[name].actor.configure.remote(self._config_for(name))

    def _config_for(self, name: str) -> str:
        """What of the configuration is one worker's, as JSON: its cameras and engine. It binds and writes nothing."""
        own, receive = set(self._placement.cameras(name)), self.config.receive
        return self.config.model_copy(update={
            "camera": tuple(camera for camera in self.config.camera if camera.name in own), "results": ResultsConfig(),
            "health": HealthConfig(bind=None), "api": ApiConfig(),
            "receive": receive.model_copy(update={"bind": (), "pair": (), "sub": (), "unknown": False})
        }).model_dump_json()

    def state(self) -> ServiceState:
        """The cluster's state, as /health shows it: that of all workers' services, and who has which camera."""
        log_path = self.config.results.log
        states = {name: worker.state for name, worker in dict(self._workers).items() if worker.state is not None}
        cameras = {camera: {**facts, "worker": name} for name, state in states.items()
                   for camera, facts in state["cameras"].items() if camera in self._placement.cameras(name)}
        faults = self.outbox.faults
        of_workers = {f"{name}: {part}": fault for name, state in states.items()
                      for part, fault in state["faults"].items()}
        return {"healthy": bool(states) and all(state["healthy"] for state in states.values()) and not faults,
                "faults": faults | of_workers, "sinks": self.outbox.state(),
                "model": self._contract.name, "background": self._contract.background,
                "engine": ", ".join(sorted({state["engine"] for state in states.values()})),
                "log": str(log_path.resolve()) if log_path else None, "clips_folder": None, "cameras": cameras,
                "refused": dict(sum((Counter(state["refused"]) for state in states.values()), Counter[str]())),
                "results": dict(self.outbox.counts), "clips": {},
                "waiting": sum(state["waiting"] for state in states.values()),
                "engine_restarts": self._lost + sum(state["engine_restarts"] for state in states.values()),
                "memory_bytes": sum(state["memory_bytes"] for state in states.values()),
                "workers": {name: self._placement.cameras(name) for name in states}}

    def __exit__(self, *_: object) -> None:
        """Ends all workers, and delivers what they still had."""
        last = {worker.serving: name for name, worker in self._workers.items() if worker.serving}
        for name in last.values():
            self._workers[name].actor.stop.remote(self._workers[name].received)
        ready, _ = self._ray.wait(list(last), num_returns=len(last), timeout=STOPS_WITHIN_S) if last else ([], [])
        for call in ready:
            try:
                self.outbox.put(self._ray.get(call))
            except Exception as error:  # it died in the meantime
                log.warning("%s is lost (%s)", last[call], type(error).__name__)
        for worker in self._workers.values():
            self._ray.kill(worker.actor)
        self._stack.close()


def _check_supported(config: Config) -> None:
    unopened = [camera.name for camera in config.camera if camera.source is None]
    if unopened or not config.camera:
        raise UsageError(f"a cluster with camera {unopened[0]!r} without a source" if unopened else
                         "a cluster without cameras", "a source for each camera, which its worker opens",
                         "add `source = ...`")
    if config.clips is not None:
        raise UsageError("videos of events in a cluster", "no [clips]", "leave it out: frames stay with their workers")
