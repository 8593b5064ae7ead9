"""The owner of the sockets: takes what cameras send, answers at once, and sends the newest frames to the worker.

    cameras ──► parse, admit, answer ──► scheduler ──► worker
    records ◄──────────────────────────────────────── worker

One thread, which never decodes, never waits for a disk and never waits for an engine, so that no sender stalls because
of us. An answer goes out before the picture is looked at, to bad messages too."""

import logging
import queue
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import zmq

from engines.errors import FrameError, SourceError
from stream.clock import unix_time
from stream.frame import ENGINE_RESTARTED, Camera, Gap, Record, record_from_json
from stream.notices import NoticeLimiter
from stream.service.config import Config
from stream.service.ingress.admission import Admission, Connection, Refused
from stream.service.ingress.endpoints import Endpoint, SocketSet, bind
from stream.service.ingress.scheduler import FrameScheduler
from stream.service.ingress.security import SocketAuth
from stream.service.worker import protocol
from stream.wire.frames import PendingFrame, RecentFrames
from stream.wire.messages import HEADER_BYTES, Limits, Message, encode_reply, encode_wish, parse

log = logging.getLogger("gatestream.service")

POLL_S = 0.05  # the longest wait, after which timeouts are checked
ALONE = 200  # frames that go to the engine one by one after it ended with some, so that the next time tells which
STOPS_WITHIN_S = 0.8  # in which a worker that stops may close its events


@dataclass
class Receiver:
    """Receives frames and passes them on, in the thread that calls `run`.
    `call_soon` and `stop` may be called from any thread, `open` before `run`; all else is the receiver's thread's.
    Other threads may read `sessions`, `refused`, `recent.newest`, `scheduler.counters`, `worker`."""

    config: Config
    deliver: Callable[[Sequence[Record]], None]  # takes the worker's records, and our own gaps
    context: zmq.Context[zmq.Socket[bytes]]
    auth: SocketAuth | None = None  # who may connect
    recent: RecentFrames = field(default_factory=lambda: RecentFrames(2.0))  # a new worker is warmed up with them
    on_frame: Callable[[PendingFrame], object] = lambda frame: None  # is given every frame that is admitted
    on_poll: Callable[[], None] = lambda: None  # is called every POLL_S or sooner
    scheduler: FrameScheduler = field(default_factory=FrameScheduler)
    refused: Counter[str] = field(default_factory=Counter)  # messages, by cause

    def __post_init__(self) -> None:
        self.admission = Admission(self.config, self.scheduler,
                                   self.auth.camera_of_key if self.auth and self.auth.curve else None)
        self.sessions = self.admission.sessions
        self._delayed: dict[str, tuple[float, Callable[[], None]]] = {}  # answers that wait for the engine, how long
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping_at: float | None = None
        self._alone = 0  # frames that still go one by one
        self.limits, self._notices = Limits(int(self.config.receive.max_message_mb * 1024 * 1024)), NoticeLimiter()
        self.sockets = SocketSet(self.context, self.auth.secure if self.auth else lambda socket: None,
                                 self.limits.payload_bytes, self._refuse)
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
        self.worker.send(protocol.STOP, {})
        self._stopping_at = time.monotonic() + STOPS_WITHIN_S

    def _close(self, linger_ms: int) -> None:
        self.sockets.close(linger_ms)
        self.worker.socket.close(linger=linger_ms)

    def _poll_once(self, wait_s: float) -> None:
        ready = dict(self.sockets.poller.poll(round(1000 * wait_s)))
        if self.worker.socket in ready:
            self._receive_from_worker()
        self.sockets.check_connections()
        for endpoint in self.sockets:
            if endpoint.socket in ready:
                for envelope, parts, connection in self.sockets.receive(endpoint):
                    self._handle(endpoint, envelope, parts, connection)
        while not self._calls.empty():
            self._calls.get()()
        now = time.monotonic()
        self._check_timeouts(now)
        self._dispatch(now)
        self.on_poll()

    # ---- cameras ----

    def _handle(self, endpoint: Endpoint, envelope: list[bytes], parts: list[bytes], connection: Connection) -> None:
        message: Message | None = None
        now, camera, error = time.monotonic(), None, None
        try:
            message = parse(parts, self.limits)
            if message.alive and endpoint.internal and message.name in self.sessions:  # which wants no answer
                self.sessions[message.name].alive_at = now
                return
            if message.end:  # NetGear's senders do not say which camera they are
                name = endpoint.own_name(message) or message.name or connection.camera
                if name in self.sessions:
                    if self.sessions[name].connection is not connection:
                        raise Refused("not its sender", f"the end of camera {name!r} by another one",
                                      "it from the connection that its frames come from")
                    self._remove(name, "it ended its stream")
            elif not message.is_text:
                camera, endpoint.tries = self._admit(message, endpoint, connection, now), 0
                at = self.sessions[camera].capture_time(message, now, endpoint.internal)
                frame = self.scheduler.put(camera, message, at, now)
                self.recent.add(small := replace(frame, message=message.small))
                self.on_frame(small)
                if endpoint.internal:
                    self._send(endpoint, [*envelope, encode_wish(
                        self.scheduler.next_at(frame), self.limits, self.config.clips is not None)])
                    return
                pace_s = self.config.receive.pace_ms / 1000
                if pace_s and endpoint.kind == zmq.ROUTER and self.scheduler.pending(camera) is frame:
                    self._answer_delayed(camera)
                    self._delayed[camera] = now + pace_s, partial(self._answer, endpoint, envelope, message, camera)
                    return
        except FrameError as fault:
            error = str(fault)
            self._refuse(fault.cause if isinstance(fault, Refused) else "malformed", connection.peer or "local",
                         f"{fault.got}; wanted {fault.wanted}", None if message is None else message.name)
            if message is None and parts and b'"terminate_flag"' in parts[0][:HEADER_BYTES]:
                message = Message("netgear", None, b"")  # which needs a JSON answer
        self._answer(endpoint, envelope, message, camera, error)

    def _refuse(self, cause: str, sender: str, reason: str = "", camera: str | None = None) -> None:
        """Counts what is refused, and tells it once a minute for each sender and reason."""
        self.refused[cause] += 1
        if self._notices.passes((cause, sender, re.sub(r"\d+", "", reason)), time.monotonic()):
            log.warning("refused, %s: %s%s", sender, cause, reason and f" ({reason})")
            self._deliver([Camera(camera or sender, unix_time(), "refused", f"{cause}, from {sender}: {reason}")])

    def _answer(self, endpoint: Endpoint, envelope: list[bytes], message: Message | None, camera: str | None,
                error: str | None = None) -> None:
        """Answers with the error, or why its camera's latest picture could not be decoded, or the camera's latest
        prediction, if there is one and its sender may expect it."""
        if endpoint.kind == zmq.SUB:
            return
        expected = message is not None and (message.protocol != "imagezmq" or self.config.receive.tell)
        session = None if camera is None else self.sessions.get(camera)
        prediction = session.answer if expected and session is not None else None
        error = error or (session.fault if session is not None else "") or None
        self._send(endpoint, [*envelope, encode_reply(message, prediction, error)])

    def _send(self, endpoint: Endpoint, parts: list[bytes]) -> None:
        try:
            endpoint.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError:  # the sender has gone
            self.refused["gone before its answer"] += 1

    def _answer_delayed(self, camera: str) -> None:
        if camera in self._delayed:
            _, answer = self._delayed.pop(camera)
            answer()

    def _admit(self, message: Message, endpoint: Endpoint, connection: Connection, now: float) -> str:
        """The camera that a message is of; reports one that joins or is back. Raises Refused."""
        session = self.admission.admit(message, endpoint.own_name(message), connection, now)
        if not session.present:
            session.join()
            if session.crashes > 1:  # it may do so again
                self._alone = ALONE
            log.info("camera %s has joined (%s, %s)", session.name, message.protocol, connection.peer or "local")
            at, action = unix_time(), "joined" if session.left_at is None else "returned"
            self._deliver([Camera(session.name, at, action, connection.peer)])
            if session.left_at is not None:
                session.reconnects += 1
                self._deliver([Gap(session.name, at, now - session.left_at, "reconnected")])
        return session.name

    def _check_timeouts(self, now: float) -> None:
        for session in self.sessions.values():
            if session.present and now - session.last_at > session.config.lost_after_s:
                self._remove(session.name, f"no frames for {session.config.lost_after_s:g} s")
            session.check_silence(now)
        for camera, (due, _) in list(self._delayed.items()):
            if now >= due:
                self._answer_delayed(camera)
        for endpoint in self.sockets:
            if endpoint.camera is not None:
                self.sockets.reconnect_if_silent(endpoint, self.sessions[endpoint.camera.name].last_at)

    def _remove(self, camera: str, reason: str) -> None:
        session = self.sessions[camera]
        if session.present:
            session.leave()
            self.scheduler.discard(camera)  # it would come to the worker after its end
            log.info("camera %s has left: %s", camera, reason)
            self._deliver([Camera(camera, unix_time(), "left", reason)])
            self.worker.send(protocol.LEAVE, {"camera": camera})
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
        self._deliver([record_from_json(record) for record in content["records"]])
        for camera, line in content.get("odd", ()):
            log.warning("camera %s: %s", camera, line)
            if camera in self.sessions:
                self.sessions[camera].odd.append(line)
        for camera, _, cause, error in content.get("errors", ()):
            if camera in self.scheduler.counters:
                self.scheduler.counters[camera].dropped[cause] += 1
            if camera in self.sessions:
                self.sessions[camera].fault = error
            if self._notices.passes((camera, cause), time.monotonic()):
                log.warning("camera %s: %s", camera, error)

    def _deliver(self, records: Sequence[Record]) -> None:
        records = [one for one in records if not isinstance(one, Gap | Camera) or one.camera not in self.sessions
                   or self.sessions[one.camera].may_report(one, time.monotonic())]
        for record in records:
            if record.camera in self.sessions:
                self.sessions[record.camera].on_record(record)
        self.deliver(records)

    def _send_cameras(self) -> None:
        self.worker.send(protocol.CAMERAS, [camera.model_dump() for camera in self.config.camera])

    def _warm_up(self) -> None:
        """Sends a new worker the cameras' recent frames, one of each camera at a time."""
        pending = {camera: self.scheduler.pending(camera) for camera, one in self.sessions.items() if one.present}
        rows = [[one for one in self.recent.of(camera) if newest is None or one.index < newest.index]
                for camera, newest in pending.items()]
        for column in zip_longest(*rows):
            frames = self.scheduler.tick([replace(frame, lost=0) for frame in column if frame is not None])
            size = 1 if self._alone else protocol.BATCH
            for batch in (frames[first:first + size] for first in range(0, len(frames), size)):
                self.worker.send_frames(batch, protocol.WARM)

    def on_worker_lost(self, killed: bool = False) -> None:
        """The worker's process has ended: its cameras' state is gone. Closes the events that were open, as far as they
        were known, and reports a gap for each camera. The frames that it was at work on may be the cause, unless
        it was killed from outside: no other worker gets them."""
        suspects = self.worker.on_lost()[:0 if killed else None]
        now, at = time.monotonic(), unix_time()
        self._deliver([replace(event, open=False) for session in self.sessions.values()
                       for event in list(session.open_events.values())])
        self._deliver([Gap(name, at, now - session.last_at, ENGINE_RESTARTED)
                       for name, session in self.sessions.items() if session.present])
        self.recent.remove(suspects)
        self._alone = ALONE if suspects else self._alone
        for camera in self.admission.count_crash({frame.camera for frame in suspects}, now):
            self._remove(camera, "the engine's process ended at its pictures again, which are refused for "
                                 f"{self.sessions[camera].refused_until - now:.0f} s")

    def _dispatch(self, now: float) -> None:
        while self.worker.takes_work and len(self.scheduler) and not (self._alone and self.worker.under_way):
            most, self._alone = 1 if self._alone else self.worker.batch.size, max(0, self._alone - 1)
            frames = self.scheduler.take(most, now, lambda camera: (
                self.sessions[camera].config.staleness_ms or self.config.receive.staleness_ms) / 1000)
            for frame in frames:
                self._answer_delayed(frame.camera)
            if frames:
                self.worker.send_frames(frames)
