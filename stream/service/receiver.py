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
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

import zmq

from engines.errors import FrameError, SourceError
from stream.frame import ENGINE_RESTARTED, Gap
from stream.service import link
from stream.service.admission import Admission, Refused, Visitor
from stream.service.config import Camera, Config
from stream.service.feeders import is_fed
from stream.service.lobby import Guest, Lobby
from stream.service.recent import Recent
from stream.service.wire import HEADER_BYTES, Limits, Message, answer, parse

log = logging.getLogger("gatestream.service")

AT_ONCE = 64  # messages taken from one socket before the others have their turn
BATCH = 8  # cameras handed to the engine at a time, at most
TICK_S = 0.05  # the longest wait, after which clocks are looked at
SILENT_AFTER_S, LONGEST_SILENCE_S = 20.0, 320.0  # after which a publisher is dialled anew, doubled each time
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
    own: bool = False  # our own processes, which say which cameras they are, dial it
    dialled_at: float = 0.0
    tries: int = 0
    senders: OrderedDict[bytes, str] = field(default_factory=OrderedDict)  # the camera that each connection is


@dataclass
class Receiver:
    """See the file's top. `run` is the thread's; `call` may come from others.

    deliver: takes the worker's records, and our own gaps; wall, steady: clocks, in seconds; chance: 0 to 1, so that
    many cameras are not dialled at once; recent: what an engine's process that comes late is warmed up with;
    watch: is shown every message that is let in; rounds: is called every TICK_S or sooner.
    """

    config: Config
    deliver: Callable[[Records], None]
    context: zmq.Context[zmq.Socket[bytes]]
    secure: Callable[[zmq.Socket[bytes]], None] = lambda socket: None
    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    recent: Recent = field(default_factory=lambda: Recent(2.0))
    watch: Callable[[Guest], None] = lambda guest: None
    rounds: Callable[[], None] = lambda: None
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
        self.worker_pid = 0  # of the one that gets frames
        self.events: Records = []  # that it found in the gate's recording
        self._poller = zmq.Poller()
        self.limits = Limits(int(self.config.receive.max_message_mb * 1024 * 1024))
        self._link = self.context.socket(zmq.ROUTER)
        self._link.linger, self._link.sndhwm = 0, 0
        self._poller.register(self._link, zmq.POLLIN)

    # ---- what others may call ----

    def call(self, what: Callable[[], None]) -> None:
        """Has the receiver's thread do something soon."""
        self._calls.put(what)

    def stop(self) -> None:
        """Ends `run` soon, once what was received is answered."""
        self.call(self._stop)

    def open(self, link_address: str, feeders_address: str | None = None) -> list[str]:
        """Binds and dials everything, before `run`; the addresses bound, with their ports. Raises SourceError.

        feeders_address: where our own processes send cameras' pictures, which need no key."""
        try:
            if feeders_address is not None:
                self._listen("router", feeders_address, own=True)
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
            self._dial(camera)
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
            for door in [door for door in self._doors.values() if door.camera == name]:
                self._poller.unregister(door.socket)
                del self._doors[door.socket]
                door.socket.close(linger=0)
        for camera in config.camera:
            if before.get(camera.name) != camera.source:
                self._dial(camera)
        self._tell_worker(link.CAMERAS, self._told_of_cameras())

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
        self.rounds()

    # ---- cameras ----

    def _listen(self, kind: Kind, address: str, own: bool = False) -> str:
        socket = self.context.socket({"router": zmq.ROUTER, "pair": zmq.PAIR, "sub": zmq.SUB}[kind])
        self._prepare(socket)
        socket.ipv6 = "[" in address  # else senders' addresses would come as IPv6 ones
        if not own:
            self.secure(socket)
        if kind == "sub":
            socket.subscribe(b"")
        self._add(_Door(kind, socket, own=own))
        _bind(socket, address)
        return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def _dial(self, camera: Camera) -> None:
        """Dials the publisher that is a camera's source, if that is what its source is."""
        if camera.source is None or is_fed(camera):
            return
        socket = self.context.socket(zmq.SUB)
        self._prepare(socket)
        socket.subscribe(b"")
        self._add(_Door("sub", socket, camera.name, dialled_at=self.steady()))
        try:
            socket.connect(_publisher(camera))
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
            self._hear(door, envelope, parts, "" if door.own else _peer(frames[-1]))

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
                camera = self._admitted(message, message.name if door.own else door.camera, peer, now)
                door.tries = 0
                door.senders[_connection(envelope)] = camera
                if len(door.senders) > CONNECTIONS:
                    door.senders.popitem(last=False)
                at = self.wall() if message.captured_at is None else message.captured_at
                guest = self.lobby.put(camera, message, at, now)
                self.recent.add(guest)
                self.watch(guest)
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
                self._pass_on([Gap(visitor.name, self.wall(), now - visitor.left_at, "reconnected").as_json()])
        return visitor.name

    def _watch(self, now: float) -> None:
        for visitor in self.visitors.values():
            if visitor.present and now - visitor.last_at > visitor.said.lost_after_s:
                self._leaves(visitor.name, f"no frames for {visitor.said.lost_after_s:g} s")
        for camera, held in list(self._held.items()):
            if now >= held.until:
                self._release(camera)
        for door in self._doors.values():
            if door.camera is not None:
                self._dial_again(door, self.visitors[door.camera], now)

    def _dial_again(self, door: _Door, visitor: Visitor, now: float) -> None:
        """A publisher that has fallen silent: ZeroMQ itself dials anew only where it sees that a connection is lost."""
        silence_s = min(SILENT_AFTER_S * 2**door.tries, LONGEST_SILENCE_S) * (1 + 0.5 * self.chance())
        if now - max(visitor.last_at, door.dialled_at) <= silence_s:
            return
        door.dialled_at, door.tries = now, door.tries + 1
        log.warning("camera %s: no picture for %.0f s: it is dialled anew", visitor.name, silence_s)
        with suppress(zmq.ZMQError):
            door.socket.disconnect(_publisher(visitor.said))
            door.socket.connect(_publisher(visitor.said))

    def _leaves(self, camera: str, why: str) -> None:
        visitor = self.visitors[camera]
        if visitor.present:
            visitor.present, visitor.left_at = False, visitor.last_at
            self.lobby.discard(camera)  # it would come to the worker after its end
            log.info("camera %s has left: %s", camera, why)
            self._tell_worker(link.LEAVE, {"camera": camera})
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
            if kind == link.READY and self._stopping_at is None:
                self._tell_worker(link.STOP, {})  # one that this one replaces; what it has is still done
                self._worker, self.engine, self.served = identity, said["engine"], True
                self.worker_pid, self.events = said.get("pid", 0), said.get("events", [])
                self._tell_worker(link.CAMERAS, self._told_of_cameras())
                self._warm()
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
                self._pass_on(said["records"])
            if said.get("last") and identity == self._worker:
                self._worker = None

    def _pass_on(self, records: Records) -> None:
        for record in records:
            if record["type"] == "gap" and record["camera"] in self.visitors:
                self.visitors[record["camera"]].gaps[record["action"]] += 1
        self.deliver(records)

    def _told_of_cameras(self) -> list[dict[str, Any]]:
        return [camera.model_dump() for camera in self.config.camera]

    def _warm(self) -> None:
        """Shows a new worker what cameras sent last, one message of each camera at a time."""
        rows = []
        for camera, visitor in self.visitors.items():
            waits = self.lobby.waits(camera)
            if visitor.present:
                rows.append([guest for guest in self.recent.of(camera) if waits is None or guest.index < waits.index])
        for guests in zip_longest(*rows):
            some = [replace(guest, lost=0) for guest in guests if guest is not None]
            for first in range(0, len(some), BATCH):
                self._tell(link.packed(some[first:first + BATCH], link.WARM))

    def worker_lost(self) -> None:
        """The worker's process has ended: its cameras' state is gone. Tells of a gap for each."""
        self._worker = None
        self._credits.clear()
        now, at = self.steady(), self.wall()
        self._pass_on([Gap(name, at, now - visitor.last_at, ENGINE_RESTARTED).as_json()
                      for name, visitor in self.visitors.items() if visitor.present])

    def _hand_on(self, now: float) -> None:
        while self._worker is not None and self._credits[self._worker] and len(self.lobby):
            budget_s = self.config.receive.staleness_ms / 1000
            guests = self.lobby.take(BATCH, now, budget_s)
            for guest in guests:
                self._release(guest.camera)
            if guests:
                self._credits[self._worker] -= 1
                self._tell(link.packed(guests))

    def _tell_worker(self, kind: bytes, said: Any) -> None:
        self._tell([kind, json.dumps(said).encode()])

    def _tell(self, parts: Sequence[bytes]) -> None:
        if self._worker is not None:
            self._link.send_multipart([self._worker, *parts], zmq.NOBLOCK)

    def _stop(self) -> None:
        for camera in list(self._held):
            self._release(camera)
        self._tell_worker(link.STOP, {})
        self._stopping_at = self.steady() + LAST_WORDS_S


def _publisher(camera: Camera) -> str:
    return f"tcp://{(camera.source or '').removeprefix('zmq://')}"


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
