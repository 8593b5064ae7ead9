"""The sockets that cameras use: those they dial, and those that dial publishers. One thread's."""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import zmq

from engines.errors import SourceError
from stream.service.config import Camera
from stream.service.ingress.camera_supervisor import needs_process

log = logging.getLogger("gatestream.service")

AT_ONCE = 64  # messages taken from one socket before the others have their turn
CONNECTIONS = 4096  # of one socket, whose cameras are remembered
SILENT_AFTER_S, LONGEST_SILENCE_S = 20.0, 320.0  # after which a publisher is dialled anew, doubled each time
Socket = zmq.Socket[bytes]
Kind = Literal["router", "pair", "sub"]
KINDS: dict[Kind, int] = {"router": zmq.ROUTER, "pair": zmq.PAIR, "sub": zmq.SUB}


@dataclass(eq=False, slots=True)
class Endpoint:
    """A socket. camera: of the publisher that it dials; own: our own processes dial it, which say which cameras they
    are; tries: times that a silent publisher was dialled anew; senders: the camera that each connection is."""

    kind: Kind
    socket: Socket
    camera: Camera | None = None
    own: bool = False
    dialled_at: float = 0.0
    tries: int = 0
    senders: OrderedDict[bytes, str] = field(default_factory=OrderedDict)

    def heard_from(self, envelope: Sequence[bytes], camera: str) -> None:
        """Remembers which camera a connection is."""
        self.tries = 0
        self.senders[connection(envelope)] = camera
        if len(self.senders) > CONNECTIONS:
            self.senders.popitem(last=False)


class IncomingMessage(NamedTuple):
    """A message as it came. envelope: what has to come before its answer; peer: IP address of the sender, "" where
    there is none."""

    envelope: list[bytes]
    parts: list[bytes]
    peer: str


class SocketSet:
    """See the file's top.

    secure: makes a socket safe before it is bound; most_bytes: of a message's part; chance: 0 to 1, so that many
    cameras are not dialled at once.
    """

    def __init__(self, context: zmq.Context[Socket], secure: Callable[[Socket], None], most_bytes: int,
                 steady: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random) -> None:
        self._context, self._secure, self._most_bytes = context, secure, most_bytes
        self._steady, self._chance = steady, chance
        self._endpoints: dict[Socket, Endpoint] = {}
        self.poller = zmq.Poller()

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(list(self._endpoints.values()))

    def listen(self, kind: Kind, address: str, own: bool = False) -> str:
        """Binds a socket; its address, with its port. Raises SourceError."""
        socket = self._made(kind)
        socket.ipv6 = "[" in address  # else senders' addresses would come as IPv6 ones
        if not own:
            self._secure(socket)
        self._add(Endpoint(kind, socket, own=own))
        bind(socket, address)
        return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def dial(self, camera: Camera) -> None:
        """Dials the publisher that is a camera's source, if that is what its source is. Raises SourceError."""
        if camera.source is None or needs_process(camera):
            return
        socket = self._made("sub")
        try:
            socket.connect(_publisher(camera))
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise SourceError(f"camera {camera.name}: {camera.source} ({error.strerror})", "zmq://host:port",
                              "correct its source") from error
        self._add(Endpoint("sub", socket, camera, dialled_at=self._steady()))

    def dial_again(self, endpoint: Endpoint, last_at: float) -> None:
        """Dials a publisher anew that has fallen silent: ZeroMQ itself does so only where it sees that a connection is
        lost. last_at: steady seconds of its last picture."""
        now = self._steady()
        silence_s = min(SILENT_AFTER_S * 2**endpoint.tries, LONGEST_SILENCE_S) * (1 + 0.5 * self._chance())
        if endpoint.camera is None or now - max(last_at, endpoint.dialled_at) <= silence_s:
            return
        endpoint.dialled_at, endpoint.tries = now, endpoint.tries + 1
        log.warning("camera %s: no picture for %.0f s: it is dialled anew", endpoint.camera.name, silence_s)
        with suppress(zmq.ZMQError):
            endpoint.socket.disconnect(_publisher(endpoint.camera))
            endpoint.socket.connect(_publisher(endpoint.camera))

    def hang_up(self, camera: str) -> None:
        """Ends the connection to a camera that was dialled, if it was."""
        for endpoint in self:
            if endpoint.camera is not None and endpoint.camera.name == camera:
                self.poller.unregister(endpoint.socket)
                del self._endpoints[endpoint.socket]
                endpoint.socket.close(linger=0)

    def hear(self, endpoint: Endpoint) -> Iterator[IncomingMessage]:
        """What has come to a endpoint, AT_ONCE messages at most."""
        for _ in range(AT_ONCE):
            try:
                frames = endpoint.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            parts = [frame.bytes for frame in frames]
            envelope: list[bytes] = []
            if endpoint.kind == "router":
                cut = next((i for i, part in enumerate(parts) if i and not part), 0)  # parts[0] is its identity
                envelope, parts = parts[:cut + 1], parts[cut + 1:]
            yield IncomingMessage(envelope, parts, "" if endpoint.own else _peer(frames[-1]))

    def close(self, linger_ms: int) -> None:
        for endpoint in self:
            endpoint.socket.close(linger=linger_ms)

    def _made(self, kind: Kind) -> Socket:
        socket = self._context.socket(KINDS[kind])
        socket.linger = 0
        socket.rcvhwm = 4  # newest wins: what waits in a socket is old
        socket.maxmsgsize = self._most_bytes + 1  # the sender of more is cut off before it is stored
        socket.tcp_keepalive = 1
        if kind == "sub":
            socket.subscribe(b"")
        return socket

    def _add(self, endpoint: Endpoint) -> None:
        self._endpoints[endpoint.socket] = endpoint
        self.poller.register(endpoint.socket, zmq.POLLIN)


def connection(envelope: Sequence[bytes]) -> bytes:
    """What tells one connection of a socket from others."""
    return envelope[0] if envelope else b""


def bind(socket: Socket, address: str) -> None:
    """Binds a socket. Raises SourceError."""
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise SourceError(f"{address} ({error.strerror})", "an address of this machine that is free",
                          "stop what uses it, or choose another one") from error


def _publisher(camera: Camera) -> str:
    return f"tcp://{(camera.source or '').removeprefix('zmq://')}"


def _peer(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:  # a socket file has none
        return ""
