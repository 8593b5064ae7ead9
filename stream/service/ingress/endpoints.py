"""The sockets of cameras: those to which they connect, and those that connect to publishers."""

import logging
import random
import socket as sockets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from engines.errors import SourceError
from stream.service.config import CameraConfig
from stream.service.ingress.admission import Connection
from stream.service.ingress.camera_supervisor import needs_process
from stream.service.resources import file_limit
from stream.wire.messages import Message

log = logging.getLogger("gatestream.service")

AT_ONCE = 64  # messages taken from one socket before the others have their turn
CONNECTIONS = 4096  # of one socket that are remembered
SPARE_FILES = 100  # descriptors that connections leave for all else
CUT_OFF = 4  # whoever sends so many times the largest message is disconnected; below that, it gets an answer
BROKEN_OFF = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | BROKEN_OFF
SILENT_AFTER_S, LONGEST_SILENCE_S = 20.0, 320.0  # after which a publisher is connected anew, doubled each time
Socket = zmq.Socket[bytes]


@dataclass(eq=False, slots=True)
class Endpoint:
    """A socket of cameras."""

    kind: int  # zmq.ROUTER, zmq.PAIR or zmq.SUB
    socket: Socket
    camera: CameraConfig | None = None  # of the publisher that it connects to
    internal: bool = False  # for our own processes, which say which cameras they are
    connected_at: float = 0.0
    tries: int = 0  # times that a silent publisher was connected anew
    # By file descriptor, and identity where the socket tells it.
    connections: OrderedDict[tuple[int, bytes], Connection] = field(default_factory=OrderedDict)
    monitor: Socket | None = None  # of connections that come and go
    files: set[int] = field(default_factory=set)  # descriptors of all that are open

    def own_name(self, message: Message) -> str | None:
        """Of the camera that it is for, or that our own process names."""
        return message.name if self.internal else None if self.camera is None else self.camera.name


class SocketSet:
    """All endpoints, and the poller of their sockets. Owned by the receiver thread.
    secure: secures a socket before it is bound; most_bytes: of a message's part; on_refused: is told the causes of
    connections that do not come about."""

    def __init__(self, context: zmq.Context[Socket], secure: Callable[[Socket], None], most_bytes: int,
                 on_refused: Callable[[str, str, str], None] = lambda cause, address, reason: None) -> None:
        self._context, self._secure, self._most_bytes, self._on_refused = context, secure, most_bytes, on_refused
        files = file_limit()
        self.most_connections = max(files - SPARE_FILES, files // 2)
        self._endpoints: dict[Socket, Endpoint] = {}
        self.poller = zmq.Poller()

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(list(self._endpoints.values()))

    def listen(self, kind: int, address: str, internal: bool = False) -> str:
        """Binds a socket; returns its address, with its port. Raises SourceError."""
        socket = self._new_socket(kind)
        socket.ipv6 = "[" in address  # else senders' addresses would come as IPv6 ones
        if not internal:
            self._secure(socket)
        self._add(Endpoint(kind, socket, internal=internal, monitor=socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | FAILED)))
        bind(socket, address)
        return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def connect(self, camera: CameraConfig) -> None:
        """Connects to the publisher that is a camera's source, if its source is one. Raises SourceError."""
        if camera.source is None or needs_process(camera):
            return
        socket = self._new_socket(zmq.SUB)
        try:
            socket.connect(_publisher(camera))
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise SourceError(f"camera {camera.name}: {camera.source} ({error.strerror})", "zmq://host:port",
                              "correct its source") from error
        self._add(Endpoint(zmq.SUB, socket, camera, connected_at=time.monotonic()))

    def reconnect_if_silent(self, endpoint: Endpoint, last_at: float) -> None:
        """Connects anew to a publisher whose last frame came long ago (steady seconds): ZeroMQ does so by itself only
        where it sees that a connection is lost."""
        now = time.monotonic()
        # By chance a little more, so that many cameras are not connected at once.
        silence_s = min(SILENT_AFTER_S * 2**endpoint.tries, LONGEST_SILENCE_S) * random.uniform(1.0, 1.5)
        if endpoint.camera is None or now - max(last_at, endpoint.connected_at) <= silence_s:
            return
        endpoint.connected_at, endpoint.tries = now, endpoint.tries + 1
        log.warning("camera %s: no picture for %.0f s: connecting again", endpoint.camera.name, silence_s)
        with suppress(zmq.ZMQError):
            endpoint.socket.disconnect(_publisher(endpoint.camera))
            endpoint.socket.connect(_publisher(endpoint.camera))

    def disconnect(self, camera: str) -> None:
        """Ends the connection to a camera's publisher, if there is one."""
        for endpoint in self:
            if endpoint.camera is not None and endpoint.camera.name == camera:
                self.poller.unregister(endpoint.socket)
                del self._endpoints[endpoint.socket]
                endpoint.socket.close(linger=0)

    def check_connections(self) -> None:
        """Notes which connections have gone, and ends new ones for which there are no descriptors: ZeroMQ itself would
        try to accept them without a pause."""
        for endpoint in self:
            while endpoint.monitor is not None and endpoint.monitor.poll(0):
                event = parse_monitor_message(endpoint.monitor.recv_multipart())
                if event["event"] & FAILED:
                    self._on_refused("no access", event["endpoint"].decode(errors="replace"),
                                     _failure(event, endpoint.socket.mechanism == zmq.CURVE))
                elif event["event"] == zmq.EVENT_DISCONNECTED:
                    endpoint.files.discard(event["value"])
                    for (file, _), connection in endpoint.connections.items():
                        connection.open = connection.open and file != event["value"]
                else:
                    endpoint.files.add(event["value"])
                    endpoint.connections.pop((event["value"], b""), None)  # one before it, with the same descriptor
                    if sum(len(one.files) for one in self) > self.most_connections:
                        self._on_refused("too many connections", event["endpoint"].decode(errors="replace"), "")
                        with suppress(OSError):
                            accepted = sockets.socket(fileno=event["value"])  # ZeroMQ's, which closes it
                            try:
                                accepted.shutdown(sockets.SHUT_RDWR)
                            finally:
                                accepted.detach()

    def receive(self, endpoint: Endpoint) -> Iterator[tuple[list[bytes], list[bytes], Connection]]:
        """The messages that have come, AT_ONCE at most: what has to come before the answer, the parts, and whose they
        are."""
        for _ in range(AT_ONCE):
            try:
                frames = endpoint.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            parts = [frame.bytes for frame in frames]
            envelope: list[bytes] = []
            if endpoint.kind == zmq.ROUTER:
                cut = next((i for i, part in enumerate(parts) if i and not part), 0)  # parts[0] is its identity
                envelope, parts = parts[:cut + 1], parts[cut + 1:]
            yield envelope, parts, _connection(endpoint, envelope, frames[-1])

    def close(self, linger_ms: int) -> None:
        """Closes all sockets; answers may still go out for `linger_ms`."""
        for endpoint in self:
            if endpoint.monitor is not None:
                endpoint.socket.disable_monitor()
                endpoint.monitor.close(linger=0)
            endpoint.socket.close(linger=linger_ms)

    def _new_socket(self, kind: int) -> Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = 4  # newest wins: what waits in a socket is old
        socket.maxmsgsize = CUT_OFF * self._most_bytes
        socket.tcp_keepalive, socket.tcp_keepalive_idle = 1, 30  # else those that were switched off stay for hours
        socket.tcp_keepalive_intvl, socket.tcp_keepalive_cnt = 10, 3
        if kind == zmq.SUB:
            socket.subscribe(b"")
        return socket

    def _add(self, endpoint: Endpoint) -> None:
        self._endpoints[endpoint.socket] = endpoint
        self.poller.register(endpoint.socket, zmq.POLLIN)


def _connection(endpoint: Endpoint, envelope: list[bytes], frame: zmq.Frame) -> Connection:
    """The connection over which a message came."""
    key = int(frame.get(zmq.SRCFD)), envelope[0] if envelope else b""
    if key not in endpoint.connections:
        known = {}
        for name in ("Peer-Address", "User-Id"):
            with suppress(zmq.ZMQError):  # a socket file has none
                known[name] = "" if endpoint.internal else str(frame.get(name))
        endpoint.connections[key] = Connection(known.get("Peer-Address", ""), known.get("User-Id", ""))
        if len(endpoint.connections) > CONNECTIONS:
            endpoint.connections.popitem(last=False)
    endpoint.connections.move_to_end(key)
    return endpoint.connections[key]


def bind(socket: Socket, address: str) -> None:
    """Binds a socket. Raises SourceError."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise SourceError(f"{address} ({error.strerror})", "an address of this machine that is free",
                          "stop what uses it, or choose another one") from error


def _failure(event: Mapping[str, Any], curve: bool) -> str:
    """Why a connection did not come about."""
    if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "its key or address is not allowed"
    mismatch = "it has no key, which receive.curve asks for" if curve else "it has a key, where receive.curve is off"
    if event["event"] == BROKEN_OFF:  # of two that do not agree, either may see it first
        return f"it broke off, perhaps because {mismatch}"
    return mismatch if event["value"] == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH else "it is no ZeroMQ sender"


def _publisher(camera: CameraConfig) -> str:
    return f"tcp://{(camera.source or '').removeprefix('zmq://')}"
