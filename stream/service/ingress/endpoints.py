"""The sockets of cameras: those to which they connect, and those that connect to publishers."""

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import zmq

from engines.errors import SourceError
from stream.service.config import CameraConfig
from stream.service.ingress.camera_supervisor import needs_process

log = logging.getLogger("gatestream.service")

AT_ONCE = 64  # messages taken from one socket before the others have their turn
CONNECTIONS = 4096  # of one socket, whose cameras are remembered
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
    senders: OrderedDict[bytes, str] = field(default_factory=OrderedDict)  # the camera of each connection

    def remember_sender(self, envelope: Sequence[bytes], camera: str) -> None:
        """Remembers which camera a connection is."""
        self.tries = 0
        self.senders[connection_of(envelope)] = camera
        if len(self.senders) > CONNECTIONS:
            self.senders.popitem(last=False)


class SocketSet:
    """All endpoints, and the poller of their sockets. Owned by the receiver thread.
    secure: secures a socket before it is bound; most_bytes: of a message's part."""

    def __init__(self, context: zmq.Context[Socket], secure: Callable[[Socket], None], most_bytes: int) -> None:
        self._context, self._secure, self._most_bytes = context, secure, most_bytes
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
        self._add(Endpoint(kind, socket, internal=internal))
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

    def receive(self, endpoint: Endpoint) -> Iterator[tuple[list[bytes], list[bytes], str]]:
        """The messages that have come, AT_ONCE at most: what has to come before the answer, the parts, and the sender's
        IP address, "" where there is none."""
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
            peer = ""
            with suppress(zmq.ZMQError):  # a socket file has none
                peer = "" if endpoint.internal else str(frames[-1].get("Peer-Address"))
            yield envelope, parts, peer

    def close(self, linger_ms: int) -> None:
        """Closes all sockets; answers may still go out for `linger_ms`."""
        for endpoint in self:
            endpoint.socket.close(linger=linger_ms)

    def _new_socket(self, kind: int) -> Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = 4  # newest wins: what waits in a socket is old
        socket.maxmsgsize = self._most_bytes + 1  # the sender of more is disconnected before it is stored
        socket.tcp_keepalive = 1
        if kind == zmq.SUB:
            socket.subscribe(b"")
        return socket

    def _add(self, endpoint: Endpoint) -> None:
        self._endpoints[endpoint.socket] = endpoint
        self.poller.register(endpoint.socket, zmq.POLLIN)


def connection_of(envelope: Sequence[bytes]) -> bytes:
    """What tells one connection of a socket from others."""
    return envelope[0] if envelope else b""


def bind(socket: Socket, address: str) -> None:
    """Binds a socket. Raises SourceError."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise SourceError(f"{address} ({error.strerror})", "an address of this machine that is free",
                          "stop what uses it, or choose another one") from error


def _publisher(camera: CameraConfig) -> str:
    return f"tcp://{(camera.source or '').removeprefix('zmq://')}"
