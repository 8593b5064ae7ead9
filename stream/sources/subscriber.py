"""A ZeroMQ publisher as a source: imagezmq, NetGear's message form, or `gatestream camera --publish`."""

import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, urlsplit

import zmq

from engines.errors import FrameError, SourceError, UsageError
from stream.clock import unix_time
from stream.frame import Frame, Gap
from stream.sources.address import has_host, normalise
from stream.sources.base import Policy, Source, SourceInfo
from stream.wire.messages import Limits, Message, decode, parse

SLICE_MS = 100  # how soon `close` is noticed
GIVE_UP_S = 120.0  # without a picture: as other network cameras
NEWEST, EVERY = 2, 1000  # messages that may wait


class Subscriber(Source):
    """zmq://host:port connects to a publisher; ?camera=NAME takes only that camera's pictures.
    captured_at is what the sender states, else when the message came. With `newest` older messages are dropped.
    Raises UsageError for another form of address."""

    def __init__(self, spec: str, camera: str | None = None, policy: Policy = "auto",
                 wall: Callable[[], float] = unix_time, steady: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(normalise(spec) if has_host(spec) else "")
        wanted = dict(parse_qsl(parts.query))
        if not parts.port or set(wanted) - {"camera"}:
            raise UsageError(spec, "zmq://host:port or zmq://host:port?camera=NAME", "check the address")
        self._only = wanted.get("camera")
        self.info = SourceInfo(camera or self._only or f"{parts.hostname}:{parts.port}", True, None, None, None)
        self._newest, self._wall, self._steady = policy != "every", wall, steady
        self._what = spec
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = NEWEST if self._newest else EVERY
        self._socket.maxmsgsize = Limits().payload_bytes
        self._socket.subscribe(b"")
        self._socket.connect(f"tcp://{parts.netloc.rpartition('@')[2]}")

    def frames(self) -> Iterator[Frame | Gap]:
        index, unseen = -1, 0
        received_at = self._steady()
        try:
            while not self._closed:
                if not self._socket.poll(SLICE_MS):
                    if self._steady() - received_at > GIVE_UP_S:
                        raise SourceError(f"{self._what}: no picture for {GIVE_UP_S:g} s", "a publisher that sends",
                                          "check that it runs and binds that address")
                    continue
                found, lost = self._receive()
                unseen += lost
                self.lost += lost
                if found is None:
                    continue
                received_at = self._steady()
                if found.end:
                    return
                try:
                    image_bgr = decode(found, Limits())
                except FrameError:
                    unseen, self.lost = unseen + 1, self.lost + 1
                    continue
                index += 1 + unseen
                at = self._wall() if found.captured_at is None else found.captured_at
                yield Frame(image_bgr, at, index, self.info.camera, unseen)
                unseen = 0
        finally:
            self._context.destroy(linger=0)

    def _receive(self) -> tuple[Message | None, int]:
        """The next message, or the newest by policy; and how many were dropped or could not be parsed."""
        found: Message | None = None
        lost = 0
        while True:
            try:
                message = parse(self._socket.recv_multipart(zmq.NOBLOCK), Limits())
            except zmq.Again:
                return found, lost
            except FrameError:
                lost += 1
                continue
            if message.is_text or self._only not in (None, message.name):
                continue
            lost += found is not None
            found = message
            if not self._newest or message.end:
                return found, lost
