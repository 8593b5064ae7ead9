"""The owner of the sockets: takes what cameras send, answers at once, and sends the newest frames to the worker.

    cameras ──► parse, admit, answer ──► scheduler ──► worker
    records ◄──────────────────────────────────────── worker

One thread, which never decodes, never waits for a disk and never waits for an engine, so that no sender stalls because
of us. An answer goes out before the picture is looked at, to bad messages too."""

import logging
import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import zmq

from engines.errors import FrameError, SourceError
from stream.frame import ENGINE_RESTARTED, Gap
from stream.service.config import Config
from stream.service.frames import PendingFrame, RecentFrames
from stream.service.ingress.admission import Admission, Refused
from stream.service.ingress.endpoints import Endpoint, SocketSet, bind, connection_of
from stream.service.ingress.scheduler import FrameScheduler
from stream.service.worker import protocol
from stream.wire import HEADER_BYTES, Limits, Message, encode_reply, parse

log = logging.getLogger("gatestream.service")

POLL_S = 0.05  # the longest wait, after which timeouts are checked
STOPS_WITHIN_S = 0.8  # in which a worker that stops may close its events
Records = list[dict[str, Any]]


@dataclass
class Receiver:
    """Receives frames and passes them on, in the thread that calls `run`.
    `call_soon` and `stop` may be called from any thread, `open` before `run`; all else is the receiver's thread's.
    Other threads may read `sessions`, `latest`, `refused`, `recent.newest`, `scheduler.counters`, `worker`."""

    config: Config
    deliver: Callable[[Records], None]  # takes the worker's records, and our own gaps
    context: zmq.Context[zmq.Socket[bytes]]
    secure: Callable[[zmq.Socket[bytes]], None] = lambda socket: None  # see `SocketSet`
    recent: RecentFrames = field(default_factory=lambda: RecentFrames(2.0))  # a new worker is warmed up with them
    on_frame: Callable[[PendingFrame], None] = lambda frame: None  # is given every frame that is admitted
    on_poll: Callable[[], None] = lambda: None  # is called every POLL_S or sooner
    scheduler: FrameScheduler = field(default_factory=FrameScheduler)
    refused: Counter[str] = field(default_factory=Counter)  # messages, by cause
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)  # each camera's latest prediction

    def __post_init__(self) -> None:
        self.admission = Admission(self.config, self.scheduler)
        self.sessions = self.admission.sessions
        # Answers that wait until the engine takes their camera's frame, or until a time (steady seconds).
        self._delayed: dict[str, tuple[float, Callable[[], None]]] = {}
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping_at: float | None = None
        self.limits = Limits(int(self.config.receive.max_message_mb * 1024 * 1024))
        self.sockets = SocketSet(self.context, self.secure, self.limits.payload_bytes)
        self.worker = protocol.WorkerSocket(self.context)
        self.sockets.poller.register(self.worker.socket, zmq.POLLIN)

    # ---- what others may call ----

    def call_soon(self, function: Callable[[], None]) -> None:
        """Has the receiver's thread call a function soon."""
        self._calls.put(function)

    def stop(self) -> None:
        """Ends `run` soon, once what was received is answered."""
        self.call_soon(self._stop)

    def open(self, worker_address: str, internal_address: str | None = None) -> list[str]:
        """Binds and connects all sockets; returns the addresses for cameras, with their ports. Raises SourceError.
        internal_address: where our own processes send cameras' frames, for which no key is needed."""
        try:
            if internal_address is not None:
                self.sockets.listen(zmq.ROUTER, internal_address, internal=True)
            bind(self.worker.socket, worker_address)
            receive = self.config.receive
            kinds = (zmq.ROUTER, receive.bind), (zmq.PAIR, receive.pair), (zmq.SUB, receive.sub)
            bound = [self.sockets.listen(kind, address) for kind, addresses in kinds for address in addresses]
            for camera in self.config.camera:
                self.admission.session(camera.name)
                self.sockets.connect(camera)
            return bound
        except SourceError:
            self._close(0)
            raise

    # ---- the thread ----

    def run(self) -> None:
        """Receives until `stop`; then answers what has come, delivers the worker's last records, closes the sockets."""
        try:
            while self._stopping_at is None or (self.worker.identity and time.monotonic() < self._stopping_at):
                self._poll_once(POLL_S)
            self._poll_once(0.0)  # whoever has sent gets an answer, or would wait for ever
        finally:
            self._close(200)

    def configure(self, config: Config) -> None:
        """Takes another configuration's cameras and limits; sockets that are bound stay."""
        before = {camera.name: camera.source for camera in self.config.camera}
        after = {camera.name: camera.source for camera in config.camera}
        self.config = config
        self.limits = Limits(int(config.receive.max_message_mb * 1024 * 1024))
        self.admission.configure(config)
        for name in [name for name, source in before.items() if source is not None and after.get(name) != source]:
            self._remove(name, "it has another source now")
            self.sockets.disconnect(name)
        for camera in config.camera:
            if before.get(camera.name) != camera.source:
                try:
                    self.sockets.connect(camera)
                except SourceError as error:
                    log.error("%s", error)
        self._send_cameras()

    def _stop(self) -> None:
        for camera in list(self._delayed):
            self._answer_delayed(camera)
        self.worker.send(protocol.encode(protocol.STOP, {}))
        self._stopping_at = time.monotonic() + STOPS_WITHIN_S

    def _close(self, linger_ms: int) -> None:
        self.sockets.close(linger_ms)
        self.worker.socket.close(linger=linger_ms)

    def _poll_once(self, wait_s: float) -> None:
        ready = dict(self.sockets.poller.poll(round(1000 * wait_s)))
        if self.worker.socket in ready:
            self._receive_from_worker()
        for endpoint in self.sockets:
            if endpoint.socket in ready:
                for envelope, parts, peer in self.sockets.receive(endpoint):
                    self._handle(endpoint, envelope, parts, peer)
        while not self._calls.empty():
            self._calls.get()()
        now = time.monotonic()
        self._check_timeouts(now)
        self._dispatch(now)
        self.on_poll()

    # ---- cameras ----

    def _handle(self, endpoint: Endpoint, envelope: list[bytes], parts: list[bytes], peer: str) -> None:
        message: Message | None = None
        now, camera, error = time.monotonic(), None, None
        try:
            message = parse(parts, self.limits)
            if message.end:
                # NetGear's senders do not say which camera they are.
                remembered = endpoint.senders.pop(connection_of(envelope), None)
                name = self._own_name(message, endpoint) or message.name or remembered
                if name in self.sessions:
                    if self.sessions[name].connection != (id(endpoint), connection_of(envelope)):
                        raise Refused("not its sender", f"the end of camera {name!r} by another one",
                                      "it from the connection that its frames come from")
                    self._remove(name, "it ended its stream")
            elif not message.is_text:
                camera = self._admit(message, endpoint, peer, now)
                endpoint.remember_sender(envelope, camera)
                self.sessions[camera].connection = id(endpoint), connection_of(envelope)
                at = time.time() if message.captured_at is None else message.captured_at
                frame = self.scheduler.put(camera, message, at, now)
                self.recent.add(frame)
                self.on_frame(frame)
                pace_s = self.config.receive.pace_ms / 1000
                if pace_s and endpoint.kind == zmq.ROUTER and self.scheduler.pending(camera) is frame:
                    self._answer_delayed(camera)
                    self._delayed[camera] = now + pace_s, partial(self._answer, endpoint, envelope, message, camera)
                    return
        except FrameError as fault:
            self.refused[fault.cause if isinstance(fault, Refused) else "malformed"] += 1
            error = str(fault)
            if message is None and parts and b'"terminate_flag"' in parts[0][:HEADER_BYTES]:
                message = Message("netgear", None, b"")  # which needs a JSON answer
        self._answer(endpoint, envelope, message, camera, error)

    def _answer(self, endpoint: Endpoint, envelope: list[bytes], message: Message | None, camera: str | None,
                error: str | None = None) -> None:
        """Answers with the camera's latest prediction, if there is one and its sender may expect it, or the error."""
        if endpoint.kind == zmq.SUB:
            return
        expected = message is not None and (message.protocol != "imagezmq" or self.config.receive.tell)
        prediction = self.latest.get(camera) if expected and camera is not None else None
        try:
            endpoint.socket.send_multipart([*envelope, encode_reply(message, prediction, error)], zmq.NOBLOCK)
        except zmq.ZMQError:  # the sender has gone
            self.refused["gone before its answer"] += 1

    def _answer_delayed(self, camera: str) -> None:
        if camera in self._delayed:
            _, answer = self._delayed.pop(camera)
            answer()

    def _own_name(self, message: Message, endpoint: Endpoint) -> str | None:
        """Of the camera that an endpoint is for, or that our own process names."""
        return message.name if endpoint.internal else None if endpoint.camera is None else endpoint.camera.name

    def _admit(self, message: Message, endpoint: Endpoint, peer: str, now: float) -> str:
        """The camera that a message is of; reports one that joins or is back. Raises Refused."""
        session = self.admission.admit(message, self._own_name(message, endpoint), peer, now)
        if not session.present:
            session.present = True
            log.info("camera %s has joined (%s, %s)", session.name, message.protocol, peer or "local")
            if session.left_at is not None:
                session.reconnects += 1
                self._deliver([Gap(session.name, time.time(), now - session.left_at, "reconnected").as_json()])
        return session.name

    def _check_timeouts(self, now: float) -> None:
        for session in self.sessions.values():
            if session.present and now - session.last_at > session.config.lost_after_s:
                self._remove(session.name, f"no frames for {session.config.lost_after_s:g} s")
        for camera, (due, _) in list(self._delayed.items()):
            if now >= due:
                self._answer_delayed(camera)
        for endpoint in self.sockets:
            if endpoint.camera is not None:
                self.sockets.reconnect_if_silent(endpoint, self.sessions[endpoint.camera.name].last_at)

    def _remove(self, camera: str, reason: str) -> None:
        session = self.sessions[camera]
        if session.present:
            session.present, session.left_at = False, session.last_at
            self.scheduler.discard(camera)  # it would come to the worker after its end
            log.info("camera %s has left: %s", camera, reason)
            self.worker.send(protocol.encode(protocol.LEAVE, {"camera": camera}))
            self.latest.pop(camera, None)
            self.recent.forget(camera)

    # ---- the worker ----

    def _receive_from_worker(self) -> None:
        for kind, content in self.worker.receive(accept=self._stopping_at is None):
            if kind == protocol.DONE:
                self._on_done(content)
            elif kind == protocol.READY and self._stopping_at is None:
                if "clock" in content:
                    self.scheduler.set_clock(*content["clock"])
                self._send_cameras()
                self._warm_up()
                log.info("the engine is ready: %s", content["engine"])

    def _on_done(self, content: dict[str, Any]) -> None:
        for record in content["records"]:
            if record["type"] == "prediction":
                self.latest[record["camera"]] = record
                if record["camera"] in self.sessions:
                    self.sessions[record["camera"]].predictions += 1
        for camera, line in content.get("odd", ()):
            log.warning("camera %s: %s", camera, line)
            if camera in self.sessions:
                self.sessions[camera].odd.append(line)
        for camera, index, cause, error in content.get("errors", ()):
            if camera in self.scheduler.counters:
                self.scheduler.counters[camera].dropped[cause] += 1
                self.scheduler.undo_tick(camera, index)
            log.debug("camera %s: %s", camera, error)
        self._deliver(content["records"])

    def _deliver(self, records: Records) -> None:
        for record in records:
            if record["type"] == "gap" and record["camera"] in self.sessions:
                self.sessions[record["camera"]].gaps[record["action"]] += 1
        self.deliver(records)

    def _send_cameras(self) -> None:
        self.worker.send(protocol.encode(protocol.CAMERAS, [camera.model_dump() for camera in self.config.camera]))

    def _warm_up(self) -> None:
        """Sends a new worker the cameras' recent frames, one of each camera at a time."""
        rows = []
        for camera, session in self.sessions.items():
            pending = self.scheduler.pending(camera)
            if session.present:
                rows.append([one for one in self.recent.of(camera) if pending is None or one.index < pending.index])
        for column in zip_longest(*rows):
            frames = [replace(frame, lost=0) for frame in column if frame is not None]
            for first in range(0, len(frames), protocol.BATCH):
                self.worker.send(protocol.pack(frames[first:first + protocol.BATCH], protocol.WARM))
            self.scheduler.advance(frames)

    def on_worker_lost(self) -> None:
        """The worker's process has ended: its cameras' state is gone. Reports a gap for each."""
        self.worker.on_lost()
        now, at = time.monotonic(), time.time()
        self._deliver([Gap(name, at, now - session.last_at, ENGINE_RESTARTED).as_json()
                       for name, session in self.sessions.items() if session.present])

    def _dispatch(self, now: float) -> None:
        while self.worker.takes_work and len(self.scheduler):
            frames = self.scheduler.take(self.worker.batch.size, now, lambda camera: (
                self.sessions[camera].config.staleness_ms or self.config.receive.staleness_ms) / 1000)
            for frame in frames:
                self._answer_delayed(frame.camera)
            if frames:
                self.worker.send_batch(frames)
