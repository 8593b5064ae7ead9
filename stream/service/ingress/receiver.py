"""The owner of the sockets: takes what cameras send, answers at once, and hands the newest on to the engine's process.

    cameras ──► parse, admit, answer ──► scheduler ──► worker
    records ◄──────────────────────────────────── worker

One thread, which never decodes, never waits for a disk and never waits for an engine, so that no sender stalls because
of us. An answer goes out before the picture is looked at, to bad messages too.
"""

from __future__ import annotations

import json
import logging
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import zmq

from engines.errors import FrameError, SourceError
from stream.frame import ENGINE_RESTARTED, Gap
from stream.service.config import Config
from stream.service.frames import PendingFrame, RecentFrames
from stream.service.ingress.admission import Admission, Refused
from stream.service.ingress.endpoints import Endpoint, Kind, SocketSet, bind, connection
from stream.service.ingress.scheduler import FrameScheduler
from stream.service.worker import protocol
from stream.wire import HEADER_BYTES, Limits, Message, encode_reply, parse

log = logging.getLogger("gatestream.service")

BATCH = 8  # cameras handed to the engine at a time, at most
LEAST = 2  # where many wait: a core each, at least
UNDER_WAY_S = 0.12  # that what has been handed on may take
TICK_S = 0.05  # the longest wait, after which clocks are looked at
LAST_WORDS_S = 0.8  # in which a worker that stops may close its events
Records = list[dict[str, Any]]


class BatchSizer:
    """How many messages are handed on at a time, so that all that are under way are done within UNDER_WAY_S: what waits
    with us instead is overtaken by newer ones. Plain bookkeeping with steady seconds given by the caller."""

    def __init__(self) -> None:
        self._sent: deque[tuple[float, int]] = deque()
        self._done_at = self._each_s = 0.0

    def sent(self, now: float, messages: int) -> None:
        """So many were handed on."""
        self._sent.append((now, messages))

    def done(self, now: float) -> None:
        """The oldest of what was handed on is done."""
        if self._sent:
            sent_at, messages = self._sent.popleft()
            each_s = (now - max(sent_at, self._done_at)) / messages
            self._each_s += (each_s - self._each_s) / 8
            self._done_at = now

    def forget(self) -> None:
        """Nothing is under way any more."""
        self._sent.clear()

    @property
    def most(self) -> int:
        """Messages at a time."""
        fit = BATCH if not self._each_s else int(UNDER_WAY_S / (protocol.CREDITS * self._each_s))
        return max(LEAST, min(BATCH, fit))


@dataclass(slots=True)
class _DelayedAnswer:
    """An answer that waits for its frame's turn."""

    until: float
    endpoint: Endpoint
    envelope: list[bytes]
    message: Message


@dataclass
class Receiver:
    """See the file's top. `run` is the thread's; `call` may come from others.

    deliver: takes the worker's records, and our own gaps; secure: see `SocketSet`; wall, steady: clocks, in seconds;
    recent: what an engine's process that comes late is warmed up with; watch: is shown every message that is let in;
    rounds: is called every TICK_S or sooner.
    """

    config: Config
    deliver: Callable[[Records], None]
    context: zmq.Context[zmq.Socket[bytes]]
    secure: Callable[[zmq.Socket[bytes]], None] = lambda socket: None
    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    recent: RecentFrames = field(default_factory=lambda: RecentFrames(2.0))
    watch: Callable[[PendingFrame], None] = lambda frame: None
    rounds: Callable[[], None] = lambda: None
    scheduler: FrameScheduler = field(default_factory=FrameScheduler)
    refused: Counter[str] = field(default_factory=Counter)
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admission = Admission(self.config, self.scheduler)
        self.sessions = self.admission.sessions
        self._held: dict[str, _DelayedAnswer] = {}
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._worker: bytes | None = None  # the one that gets frames
        self._pace = BatchSizer()
        self._credits: Counter[bytes] = Counter()
        self._stopping_at: float | None = None
        self.worker_heard_at = 0.0  # steady seconds of its last word
        self.engine = ""  # what it runs
        self.served = False  # whether any worker ever got ready
        self.worker_pid = 0  # of the one that gets frames
        self.events: Records = []  # that it found in the gate's recording
        self.limits = Limits(int(self.config.receive.max_message_mb * 1024 * 1024))
        self.sockets = SocketSet(self.context, self.secure, self.limits.payload_bytes, self.steady)
        self._link = self.context.socket(zmq.ROUTER)
        self._link.linger, self._link.sndhwm = 0, 0
        self.sockets.poller.register(self._link, zmq.POLLIN)

    # ---- what others may call ----

    def call(self, what: Callable[[], None]) -> None:
        """Has the receiver's thread do something soon."""
        self._calls.put(what)

    def stop(self) -> None:
        """Ends `run` soon, once what was received is answered."""
        self.call(self._stop)

    def open(self, link_address: str, local_address: str | None = None) -> list[str]:
        """Binds and dials everything, before `run`; the addresses bound, with their ports. Raises SourceError.

        local_address: where our own processes send cameras' pictures, which need no key."""
        try:
            if local_address is not None:
                self.sockets.listen("router", local_address, own=True)
            return self._opened(link_address)
        except SourceError:
            self._close(0)
            raise

    def _opened(self, link_address: str) -> list[str]:
        bind(self._link, link_address)
        receive = self.config.receive
        kinds: dict[Kind, tuple[str, ...]] = {"router": receive.bind, "pair": receive.pair, "sub": receive.sub}
        bound = [self.sockets.listen(kind, address) for kind, addresses in kinds.items() for address in addresses]
        for camera in self.config.camera:
            self.admission.session(camera.name)
            self.sockets.dial(camera)
        return bound

    def configure(self, config: Config) -> None:
        """Takes another configuration's cameras and limits, on the receiver's thread; sockets that are bound stay."""
        before = {camera.name: camera.source for camera in self.config.camera}
        after = {camera.name: camera.source for camera in config.camera}
        self.config = config
        self.limits = Limits(int(config.receive.max_message_mb * 1024 * 1024))
        self.admission.configure(config)
        for name in [name for name, source in before.items() if source is not None and after.get(name) != source]:
            self._leaves(name, "its source is another one now")
            self.sockets.hang_up(name)
        for camera in config.camera:
            if before.get(camera.name) != camera.source:
                try:
                    self.sockets.dial(camera)
                except SourceError as error:
                    log.error("%s", error)
        self._tell_worker(protocol.CAMERAS, self._told_of_cameras())

    # ---- the thread ----

    def run(self) -> None:
        """Receives until `stop`. Then what has come is answered, the worker's last records are heard, and the sockets
        are closed."""
        try:
            while self._stopping_at is None or (self._worker is not None and self.steady() < self._stopping_at):
                self._round(TICK_S)
            self._round(0.0)  # whoever has sent gets an answer, or would wait for ever
        finally:
            self._close(200)

    def _close(self, linger_ms: int) -> None:
        self.sockets.close(linger_ms)
        self._link.close(linger=linger_ms)

    def _round(self, wait_s: float) -> None:
        ready = dict(self.sockets.poller.poll(round(1000 * wait_s)))
        if self._link in ready:
            self._hear_worker()
        for endpoint in self.sockets:
            if endpoint.socket in ready:
                for heard in self.sockets.hear(endpoint):
                    self._hear(endpoint, *heard)
        while not self._calls.empty():
            self._calls.get()()
        now = self.steady()
        self._watch(now)
        self._hand_on(now)
        self.rounds()

    # ---- cameras ----

    def _hear(self, endpoint: Endpoint, envelope: list[bytes], parts: Sequence[bytes], peer: str) -> None:
        message: Message | None = None
        now, camera, fault = self.steady(), None, None
        try:
            try:
                message = parse(parts, self.limits)
            except FrameError as error:
                if parts and b'"terminate_flag"' in parts[0][:HEADER_BYTES]:  # NetGear would choke on anything but JSON
                    message = Message("netgear", None, b"")
                raise Refused("malformed", error) from error
            if message.end:
                self._ends(message, endpoint, envelope)
            elif not message.is_text:
                camera = self._admitted(message, endpoint, peer, now)
                endpoint.heard_from(envelope, camera)
                at = self.wall() if message.captured_at is None else message.captured_at
                frame = self.scheduler.put(camera, message, at, now)
                self.recent.add(frame)
                self.watch(frame)
                if self.config.receive.pace_ms and endpoint.kind == "router" and self.scheduler.waits(camera) is frame:
                    self._release(camera)
                    until = now + self.config.receive.pace_ms / 1000
                    self._held[camera] = _DelayedAnswer(until, endpoint, envelope, message)
                    return
        except Refused as refusal:
            self.refused[refusal.cause] += 1
            fault = str(refusal.error)
        self._answer(endpoint, envelope, encode_reply(message, self._news(message, camera), fault))

    def _news(self, message: Message | None, camera: str | None) -> dict[str, Any] | None:
        """What an answer tells of the camera: its latest prediction, if there is one and the sender may expect it."""
        told = message is not None and (message.protocol != "imagezmq" or self.config.receive.tell)
        return self.latest.get(camera) if told and camera is not None else None

    def _ends(self, message: Message, endpoint: Endpoint, envelope: list[bytes]) -> None:
        """The camera of this connection says that its stream is over; NetGear's do not say which they are."""
        camera = message.name or endpoint.senders.pop(connection(envelope), None)
        if camera in self.sessions:
            self._leaves(camera, "the camera ended its stream")

    def _answer(self, endpoint: Endpoint, envelope: list[bytes], said: bytes) -> None:
        if endpoint.kind == "sub":
            return
        try:
            endpoint.socket.send_multipart([*envelope, said], zmq.NOBLOCK)
        except zmq.ZMQError:  # it has gone
            self.refused["gone before its answer"] += 1

    def _release(self, camera: str) -> None:
        held = self._held.pop(camera, None)
        if held is not None:
            self._answer(held.endpoint, held.envelope, encode_reply(held.message, self._news(held.message, camera)))

    def _admitted(self, message: Message, endpoint: Endpoint, peer: str, now: float) -> str:
        """The camera that a message is of; tells of one that comes, or is back. Raises Refused."""
        dialled = message.name if endpoint.own else None if endpoint.camera is None else endpoint.camera.name
        session = self.admission.admit(message, dialled, peer, now)
        if not session.present:
            session.present = True
            log.info("camera %s is here (%s, %s)", session.name, message.protocol, peer or "local")
            if session.left_at is not None:
                session.reconnects += 1
                self._pass_on([Gap(session.name, self.wall(), now - session.left_at, "reconnected").as_json()])
        return session.name

    def _watch(self, now: float) -> None:
        for session in self.sessions.values():
            if session.present and now - session.last_at > session.said.lost_after_s:
                self._leaves(session.name, f"no frames for {session.said.lost_after_s:g} s")
        for camera, held in list(self._held.items()):
            if now >= held.until:
                self._release(camera)
        for endpoint in self.sockets:
            if endpoint.camera is not None:
                self.sockets.dial_again(endpoint, self.sessions[endpoint.camera.name].last_at)

    def _leaves(self, camera: str, why: str) -> None:
        session = self.sessions[camera]
        if session.present:
            session.present, session.left_at = False, session.last_at
            self.scheduler.discard(camera)  # it would come to the worker after its end
            log.info("camera %s has left: %s", camera, why)
            self._tell_worker(protocol.LEAVE, {"camera": camera})
            self.latest.pop(camera, None)
            self.recent.forget(camera)

    # ---- the worker ----

    def _hear_worker(self) -> None:
        while True:
            try:
                identity, kind, *rest = self._link.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            said = json.loads(rest[0])
            self.worker_heard_at = self.steady()
            if kind == protocol.READY and self._stopping_at is None:
                self._tell_worker(protocol.STOP, {})  # one that this one replaces; what it has is still done
                self._worker, self.engine, self.served = identity, said["engine"], True
                self._pace.forget()
                if "clock" in said:
                    self.scheduler.keep_time(*said["clock"])
                self.worker_pid, self.events = said.get("pid", 0), said.get("events", [])
                self._tell_worker(protocol.CAMERAS, self._told_of_cameras())
                self._warm()
                log.info("the engine is ready: %s", said["engine"])
            credits = said.get("credits", 1)
            self._credits[identity] += credits
            if kind == protocol.DONE and credits and identity == self._worker:
                self._pace.done(self.worker_heard_at)
            for record in said.get("records", ()):
                if record["type"] == "prediction":
                    self.latest[record["camera"]] = record
                    if record["camera"] in self.sessions:
                        self.sessions[record["camera"]].predictions += 1
            if kind == protocol.DONE:
                for camera, index, cause, error in said.get("errors", ()):
                    if camera in self.scheduler.counters:
                        self.scheduler.counters[camera].dropped[cause] += 1
                        self.scheduler.spoilt(camera, index)
                    log.debug("camera %s: %s", camera, error)
                self._pass_on(said["records"])
            if said.get("last") and identity == self._worker:
                self._worker = None

    def _pass_on(self, records: Records) -> None:
        for record in records:
            if record["type"] == "gap" and record["camera"] in self.sessions:
                self.sessions[record["camera"]].gaps[record["action"]] += 1
        self.deliver(records)

    def _told_of_cameras(self) -> list[dict[str, Any]]:
        return [camera.model_dump() for camera in self.config.camera]

    def _warm(self) -> None:
        """Shows a new worker what cameras sent last, one message of each camera at a time."""
        rows = []
        for camera, session in self.sessions.items():
            waits = self.scheduler.waits(camera)
            if session.present:
                rows.append([frame for frame in self.recent.of(camera) if waits is None or frame.index < waits.index])
        for frames in zip_longest(*rows):
            some = [replace(frame, lost=0) for frame in frames if frame is not None]
            for first in range(0, len(some), BATCH):
                self._tell(protocol.pack(some[first:first + BATCH], protocol.WARM))
            self.scheduler.show(some)

    def worker_lost(self) -> None:
        """The worker's process has ended: its cameras' state is gone. Tells of a gap for each."""
        self._worker = None
        self._credits.clear()
        self._pace.forget()
        now, at = self.steady(), self.wall()
        self._pass_on([Gap(name, at, now - session.last_at, ENGINE_RESTARTED).as_json()
                      for name, session in self.sessions.items() if session.present])

    def _hand_on(self, now: float) -> None:
        while self._worker is not None and self._credits[self._worker] and len(self.scheduler):
            frames = self.scheduler.take(self._pace.most, now, self._budget_s)
            for frame in frames:
                self._release(frame.camera)
            if frames:
                self._credits[self._worker] -= 1
                self._pace.sent(self.steady(), len(frames))
                self._tell(protocol.pack(frames))

    def _budget_s(self, camera: str) -> float:
        """How long a message of a camera may wait."""
        return (self.sessions[camera].said.staleness_ms or self.config.receive.staleness_ms) / 1000

    def _tell_worker(self, kind: bytes, said: Any) -> None:
        self._tell([kind, json.dumps(said).encode()])

    def _tell(self, parts: Sequence[bytes]) -> None:
        if self._worker is not None:
            self._link.send_multipart([self._worker, *parts], zmq.NOBLOCK)

    def _stop(self) -> None:
        for camera in list(self._held):
            self._release(camera)
        self._tell_worker(protocol.STOP, {})
        self._stopping_at = self.steady() + LAST_WORDS_S
