"""The owner of the sockets: takes what cameras send, answers at once, and hands the newest on to the engine's process.

    cameras ──► parse, admit, answer ──► lobby ──► worker
    records ◄──────────────────────────────────── worker

One thread, which never decodes, never waits for a disk and never waits for an engine, so that no sender stalls because
of us. An answer goes out before the picture is looked at, to bad messages too.
"""

from __future__ import annotations

import json
import logging
import queue
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import zmq

from engines.errors import FrameError, SourceError
from stream.frame import Gap
from stream.service import link
from stream.service.admission import Admission, Refused
from stream.service.config import Camera, Config
from stream.service.lobby import Lobby
from stream.service.wire import HEADER_BYTES, Limits, Message, answer, parse

log = logging.getLogger("gatestream.service")

AT_ONCE = 64  # messages taken from one socket before the others have their turn
BATCH = 8  # cameras handed to the engine at a time, at most
TICK_S = 0.05  # the longest wait, after which clocks are looked at
CONNECTIONS = 4096  # of one socket, whose cameras are remembered
LAST_WORDS_S = 0.8  # in which a worker that stops may close its events
Kind = Literal["router", "pair", "sub"]
Records = list[dict[str, Any]]


@dataclass(slots=True)
class _Held:
    """An answer that waits for its frame's turn."""

    until: float
    door: _Door
    envelope: list[bytes]
    message: Message


@dataclass(eq=False, slots=True)
class _Door:
    kind: Kind
    socket: zmq.Socket[bytes]
    camera: str | None = None  # of a publisher that we dial
    senders: OrderedDict[bytes, str] = field(default_factory=OrderedDict)  # the camera that each connection is


@dataclass
class Receiver:
    """See the file's top. `run` is the thread's; `call` may come from others.

    deliver: takes the worker's records, and our own gaps; wall, steady: clocks, in seconds.
    """

    config: Config
    deliver: Callable[[Records], None]
    context: zmq.Context[zmq.Socket[bytes]]
    secure: Callable[[zmq.Socket[bytes]], None] = lambda socket: None
    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    lobby: Lobby = field(default_factory=Lobby)
    refused: Counter[str] = field(default_factory=Counter)
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admission = Admission(self.config, self.lobby)
        self.visitors = self.admission.visitors
        self._doors: dict[zmq.Socket[bytes], _Door] = {}
        self._held: dict[str, _Held] = {}
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._worker: bytes | None = None  # the one that gets frames
        self._credits: Counter[bytes] = Counter()
        self._stopping_at: float | None = None
        self.worker_heard_at = 0.0  # steady seconds of its last word
        self.engine = ""  # what it runs
        self.served = False  # whether any worker ever got ready
        self._poller = zmq.Poller()
        self.limits = Limits(int(self.config.receive.max_message_mb * 1024 * 1024))
        self._link = self.context.socket(zmq.ROUTER)
        self._link.linger = 0
        self._poller.register(self._link, zmq.POLLIN)

    # ---- what others may call ----

    def call(self, what: Callable[[], None]) -> None:
        """Has the receiver's thread do something soon."""
        self._calls.put(what)

    def stop(self) -> None:
        """Ends `run` soon, once what was received is answered."""
        self.call(self._stop)

    def open(self, link_address: str) -> list[str]:
        """Binds and dials everything, before `run`; the addresses bound, with their ports. Raises SourceError."""
        try:
            return self._opened(link_address)
        except SourceError:
            self._close(0)
            raise

    def _opened(self, link_address: str) -> list[str]:
        _bind(self._link, link_address)
        receive = self.config.receive
        kinds: dict[Kind, tuple[str, ...]] = {"router": receive.bind, "pair": receive.pair, "sub": receive.sub}
        bound = [self._listen(kind, address) for kind, addresses in kinds.items() for address in addresses]
        for camera in self.config.camera:
            self.admission.visitor(camera.name)
            if camera.source is not None:
                self._dial(camera)
        return bound

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
        for door in self._doors.values():
            door.socket.close(linger=linger_ms)
        self._link.close(linger=linger_ms)

    def _round(self, wait_s: float) -> None:
        ready = dict(self._poller.poll(round(1000 * wait_s)))
        if self._link in ready:
            self._hear_worker()
        for socket, door in list(self._doors.items()):
            if socket in ready:
                self._hear_door(door)
        while not self._calls.empty():
            self._calls.get()()
        now = self.steady()
        self._watch(now)
        self._hand_on(now)

    # ---- cameras ----

    def _listen(self, kind: Kind, address: str) -> str:
        socket = self.context.socket({"router": zmq.ROUTER, "pair": zmq.PAIR, "sub": zmq.SUB}[kind])
        self._prepare(socket)
        socket.ipv6 = "[" in address  # else senders' addresses would come as IPv6 ones
        self.secure(socket)
        if kind == "sub":
            socket.subscribe(b"")
        self._add(_Door(kind, socket))
        _bind(socket, address)
        return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def _dial(self, camera: Camera) -> None:
        assert camera.source is not None
        socket = self.context.socket(zmq.SUB)
        self._prepare(socket)
        socket.subscribe(b"")
        address = "tcp://" + camera.source.removeprefix("zmq://")
        self._add(_Door("sub", socket, camera.name))
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise SourceError(f"camera {camera.name}: {camera.source} ({error.strerror})", "zmq://host:port",
                              "correct its source") from error

    def _prepare(self, socket: zmq.Socket[bytes]) -> None:
        socket.linger = 0
        socket.rcvhwm = 4  # newest wins: what waits in a socket is old
        socket.maxmsgsize = self.limits.payload_bytes + 1  # the sender of more is cut off before it is stored
        socket.tcp_keepalive = 1

    def _add(self, door: _Door) -> None:
        self._doors[door.socket] = door
        self._poller.register(door.socket, zmq.POLLIN)

    def _hear_door(self, door: _Door) -> None:
        for _ in range(AT_ONCE):
            try:
                frames = door.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            parts = [frame.bytes for frame in frames]
            envelope: list[bytes] = []
            if door.kind == "router":
                cut = next((i for i, part in enumerate(parts) if i and not part), 0)  # parts[0] is its identity
                envelope, parts = parts[:cut + 1], parts[cut + 1:]
            self._hear(door, envelope, parts, _peer(frames[-1]))

    def _hear(self, door: _Door, envelope: list[bytes], parts: Sequence[bytes], peer: str) -> None:
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
                self._ends(message, door, envelope)
            elif not message.is_text:
                camera = self._admitted(message, door.camera, peer, now)
                door.senders[_connection(envelope)] = camera
                if len(door.senders) > CONNECTIONS:
                    door.senders.popitem(last=False)
                at = self.wall() if message.captured_at is None else message.captured_at
                self.lobby.put(camera, message, at, now)
                if self.config.receive.pace_ms and door.kind == "router":
                    self._release(camera)
                    self._held[camera] = _Held(now + self.config.receive.pace_ms / 1000, door, envelope, message)
                    return
        except Refused as refusal:
            self.refused[refusal.cause] += 1
            fault = str(refusal.error)
        self._answer(door, envelope, answer(message, self._news(message, camera), fault))

    def _news(self, message: Message | None, camera: str | None) -> dict[str, Any] | None:
        """What an answer tells of the camera: its latest prediction, if there is one and the sender may expect it."""
        told = message is not None and (message.protocol != "imagezmq" or self.config.receive.tell)
        return self.latest.get(camera) if told and camera is not None else None

    def _ends(self, message: Message, door: _Door, envelope: list[bytes]) -> None:
        """The camera of this connection says that its stream is over; NetGear's do not say which they are."""
        camera = message.name or door.senders.pop(_connection(envelope), None)
        if camera in self.visitors:
            self._leaves(camera, "the camera ended its stream")

    def _answer(self, door: _Door, envelope: list[bytes], said: bytes) -> None:
        if door.kind == "sub":
            return
        try:
            door.socket.send_multipart([*envelope, said], zmq.NOBLOCK)
        except zmq.ZMQError:  # it has gone
            self.refused["gone before its answer"] += 1

    def _release(self, camera: str) -> None:
        held = self._held.pop(camera, None)
        if held is not None:
            self._answer(held.door, held.envelope, answer(held.message, self._news(held.message, camera)))

    def _admitted(self, message: Message, dialled: str | None, peer: str, now: float) -> str:
        """The camera that a message is of; tells of one that comes, or is back. Raises Refused."""
        visitor = self.admission.admit(message, dialled, peer, now)
        if not visitor.present:
            visitor.present = True
            log.info("camera %s is here (%s, %s)", visitor.name, message.protocol, peer or "local")
            if visitor.left_at is not None:
                visitor.reconnects += 1
                self.deliver([Gap(visitor.name, self.wall(), now - visitor.left_at, "reconnected").as_json()])
        return visitor.name

    def _watch(self, now: float) -> None:
        for visitor in self.visitors.values():
            if visitor.present and now - visitor.last_at > visitor.said.lost_after_s:
                self._leaves(visitor.name, f"no frames for {visitor.said.lost_after_s:g} s")
        for camera, held in list(self._held.items()):
            if now >= held.until:
                self._release(camera)

    def _leaves(self, camera: str, why: str) -> None:
        visitor = self.visitors[camera]
        if visitor.present:
            visitor.present, visitor.left_at = False, visitor.last_at
            self.lobby.discard(camera)  # it would come to the worker after its end
            log.info("camera %s has left: %s", camera, why)
            self._tell_worker(link.LEAVE, {"camera": camera})
            self.latest.pop(camera, None)

    # ---- the worker ----

    def _hear_worker(self) -> None:
        while True:
            try:
                identity, kind, *rest = self._link.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            said = json.loads(rest[0])
            self.worker_heard_at = self.steady()
            if kind == link.READY:
                self._worker, self.engine, self.served = identity, said["engine"], True
                self._tell_worker(link.CAMERAS, [camera.model_dump() for camera in self.config.camera])
                log.info("the engine is ready: %s", said["engine"])
            self._credits[identity] += said.get("credits", 1)
            for record in said.get("records", ()):
                if record["type"] == "prediction":
                    self.latest[record["camera"]] = record
            if kind == link.DONE:
                for camera, cause, error in said.get("errors", ()):
                    if camera in self.lobby.accounts:
                        self.lobby.accounts[camera].dropped[cause] += 1
                    log.debug("camera %s: %s", camera, error)
                self.deliver(said["records"])
            if said.get("last"):
                self._worker = None

    def worker_lost(self) -> None:
        """The worker's process has ended: its cameras' state is gone. Tells of a gap for each."""
        self._worker = None
        self._credits.clear()
        now, at = self.steady(), self.wall()
        self.deliver([Gap(name, at, now - visitor.last_at, "engine restarted").as_json()
                      for name, visitor in self.visitors.items() if visitor.present])

    def _hand_on(self, now: float) -> None:
        while self._worker is not None and self._credits[self._worker] and len(self.lobby):
            budget_s = self.config.receive.staleness_ms / 1000
            guests = self.lobby.take(BATCH, now, budget_s)
            for guest in guests:
                self._release(guest.camera)
            if guests:
                self._credits[self._worker] -= 1
                self._link.send_multipart([self._worker, *link.packed(guests)], zmq.NOBLOCK)

    def _tell_worker(self, kind: bytes, said: Any) -> None:
        if self._worker is not None:
            self._link.send_multipart([self._worker, kind, json.dumps(said).encode()], zmq.NOBLOCK)

    def _stop(self) -> None:
        for camera in list(self._held):
            self._release(camera)
        self._tell_worker(link.STOP, {})
        self._stopping_at = self.steady() + LAST_WORDS_S


def _connection(envelope: Sequence[bytes]) -> bytes:
    return envelope[0] if envelope else b""


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise SourceError(f"{address} ({error.strerror})", "an address of this machine that is free",
                          "stop what uses it, or choose another one") from error


def _peer(frame: zmq.Frame) -> str:
    """IP address of the sender, "" where there is none (a socket file)."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""
