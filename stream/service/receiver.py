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
from stream.service.config import Camera, Config
from stream.service.lobby import Lobby
from stream.service.wire import HEADER_BYTES, Limits, Message, answer, parse

log = logging.getLogger("gatestream.service")

AT_ONCE = 64  # messages taken from one socket before the others have their turn
BATCH = 8  # cameras handed to the engine at a time, at most
TICK_S = 0.05  # the longest wait, after which clocks are looked at
CONNECTIONS = 4096  # of one socket, whose cameras are remembered
LAST_WORDS_S = 0.8  # in which a worker that stops may close its events
FROZEN_AFTER_S = 20.0  # of the very same payload
Kind = Literal["router", "pair", "sub"]
Records = list[dict[str, Any]]


@dataclass(slots=True)
class Visitor:
    """What is known of a camera that has shown itself. Times are steady seconds.

    peer: address of its sender; frames, bytes: what its quotas have left; changed_at: when its payload last changed.
    """

    name: str
    said: Camera
    configured: bool
    protocol: str = ""
    peer: str = ""
    last_at: float = 0.0
    present: bool = False
    frames: float = 0.0
    bytes: float = 0.0
    payload: int = 0
    changed_at: float = 0.0
    reconnects: int = 0


class _Refused(Exception):  # noqa: N818 - not a fault of ours
    def __init__(self, cause: str, error: FrameError) -> None:
        self.cause, self.error = cause, error
        super().__init__(cause)


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
    address: str
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
    visitors: dict[str, Visitor] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
            self._visitor(camera.name)
            if camera.source is not None and camera.source.startswith("zmq://"):
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
        self._add(_Door(kind, address, socket))
        _bind(socket, address)
        return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def _dial(self, camera: Camera) -> None:
        assert camera.source is not None
        socket = self.context.socket(zmq.SUB)
        self._prepare(socket)
        socket.subscribe(b"")
        address = "tcp://" + camera.source.removeprefix("zmq://")
        self._add(_Door("sub", address, socket, camera.name))
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
        now, prediction, fault = self.steady(), None, None
        try:
            try:
                message = parse(parts, self.limits)
            except FrameError as error:
                if parts and b'"terminate_flag"' in parts[0][:HEADER_BYTES]:  # NetGear would choke on anything but JSON
                    message = Message("netgear", None, b"")
                raise _Refused("malformed", error) from error
            if message.end:
                self._ends(message, door, envelope)
            elif not message.is_text:
                camera = self._admitted(message, door, peer, now)
                door.senders[_connection(envelope)] = camera
                if len(door.senders) > CONNECTIONS:
                    door.senders.popitem(last=False)
                prediction = self.latest.get(camera)
                at = self.wall() if message.captured_at is None else message.captured_at
                self.lobby.put(camera, message, at, now)
                if self.config.receive.pace_ms and door.kind == "router":
                    self._release(camera)
                    self._held[camera] = _Held(now + self.config.receive.pace_ms / 1000, door, envelope, message)
                    return
        except _Refused as refusal:
            self.refused[refusal.cause] += 1
            fault = str(refusal.error)
        if message is not None and message.protocol == "imagezmq" and not self.config.receive.tell:
            prediction = None
        self._answer(door, envelope, answer(message, prediction, fault))

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
            told = held.message.protocol != "imagezmq" or self.config.receive.tell
            self._answer(held.door, held.envelope, answer(held.message, self.latest.get(camera) if told else None))

    def _admitted(self, message: Message, door: _Door, peer: str, now: float) -> str:
        """The camera that a message is of. Raises _Refused."""
        receive = self.config.receive
        by_address = next((c.name for c in self.config.camera if c.address == peer), None) if peer else None
        name = door.camera or message.name or by_address or f"{message.protocol}@{peer or 'local'}"
        known = self.visitors.get(name)
        if known is None or not known.configured:
            if not receive.unknown:
                raise _refused("unknown camera", f"a camera called {name!r}", "one of the configuration")
            if known is None and len(self.visitors) >= receive.cameras and not self._made_room():
                raise _refused("too many cameras", f"one camera more than {receive.cameras}", "fewer, or another limit")
        visitor = self._visitor(name)
        if visitor.said.address is not None and peer and visitor.said.address != peer:
            raise _refused("wrong address", f"camera {name!r} at {peer}", f"it at {visitor.said.address}")
        since = now - visitor.last_at if visitor.last_at else 1.0
        visitor.frames = min(visitor.frames + since * receive.max_frames_per_s, receive.max_frames_per_s)
        visitor.bytes = min(visitor.bytes + since * receive.max_mb_per_s * 1e6, receive.max_mb_per_s * 1e6)
        visitor.last_at = now
        if visitor.frames < 1 or visitor.bytes < len(message.payload):
            self.lobby.open(name)
            self.lobby.refuse(name, "quota")
            raise _refused("quota", f"camera {name!r} faster than its quota",
                           f"{receive.max_frames_per_s:g} frames/s and {receive.max_mb_per_s:g} MB/s at most")
        visitor.frames -= 1
        visitor.bytes -= len(message.payload)
        if not visitor.present:
            self.lobby.open(name)
            visitor.present, visitor.changed_at = True, now
            visitor.protocol, visitor.peer = message.protocol, peer
            log.info("camera %s is here (%s, %s)", name, message.protocol, peer or "local")
        payload = hash(message.payload)
        if payload != visitor.payload:
            visitor.payload, visitor.changed_at = payload, now
        return name

    def _visitor(self, name: str) -> Visitor:
        if name not in self.visitors:
            said = next((camera for camera in self.config.camera if camera.name == name), None)
            self.visitors[name] = Visitor(name, said or Camera.model_construct(name=name), said is not None)
        return self.visitors[name]

    def _made_room(self) -> bool:
        """Whether a camera that is not of the configuration and has gone could be forgotten."""
        gone = [visitor for visitor in self.visitors.values() if not visitor.configured and not visitor.present]
        if not gone:
            return False
        oldest = min(gone, key=lambda visitor: visitor.last_at)
        del self.visitors[oldest.name]
        self.lobby.close(oldest.name)
        return True

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
            visitor.present = False
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


def _refused(cause: str, got: str, wanted: str) -> _Refused:
    return _Refused(cause, FrameError(got, wanted, "ask whoever runs the service"))


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
