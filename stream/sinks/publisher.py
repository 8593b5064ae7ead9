"""Records over ZeroMQ: published to whoever listens, or handed to one consumer that confirms each."""

import time
from collections.abc import Sequence
from contextlib import suppress

import zmq

from engines.errors import SinkError
from stream.frame import Frame, Record, is_lasting, record_type
from stream.sinks.base import Sink, to_json

SETTLES_S = 2.0  # in which subscribers of an earlier process come back
ANSWERS_WITHIN_S = 5.0
LINGER_MS = 500


class Publisher(Sink):
    """A publisher of two parts, the topic `<camera>/<type>` and the JSON object: subscribe to "cell-3/" for all of one
    camera, to "cell-3/event" for its events. A slash or per cent sign in a camera's name is %2F or %25 in the topic.
    What is published while nobody listens is gone; but for the first SETTLES_S, in which closed events and gaps wait
    for somebody. Raises SinkError for an address that is taken."""

    durable = True

    def __init__(self, addresses: Sequence[str]) -> None:
        self._socket = _bind(zmq.XPUB, addresses)
        self._settled_at: float | None = time.monotonic() + SETTLES_S

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if self._settled_at is not None and any(map(is_lasting, records)):
            self._socket.poll(max(0, round(1000 * (self._settled_at - time.monotonic()))))
            self._settled_at = None
        with suppress(zmq.Again):
            while True:  # subscriptions, which are in force by now
                self._socket.recv(zmq.NOBLOCK)
        messages = []
        for record in records:
            camera = record.camera.replace("%", "%25").replace("/", "%2F")
            messages.append([f"{camera}/{record_type(record)}".encode(), to_json(record).encode()])
        for message in messages:
            self._socket.send_multipart(message)

    def close(self) -> None:
        self._socket.close(linger=LINGER_MS)
        self._socket.context.term()


class ConfirmedQueue(Sink):
    """A DEALER socket for one consumer, itself a DEALER that connects: it gets each closed event and gap as [number,
    JSON object] and answers [number] once it has it. Without an answer in ANSWERS_WITHIN_S it is sent again."""

    durable = takes_lasting_only = True

    def __init__(self, addresses: Sequence[str]) -> None:
        self._socket, self._number = _bind(zmq.DEALER, addresses), time.time_ns()

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        for record in filter(is_lasting, records):
            self._number += 1
            number = str(self._number).encode()
            try:
                self._socket.sndtimeo = round(1000 * ANSWERS_WITHIN_S)
                self._socket.send_multipart([number, to_json(record).encode()])
                until = time.monotonic() + ANSWERS_WITHIN_S
                while self._socket.poll(max(0, round(1000 * (until - time.monotonic())))):
                    if self._socket.recv_multipart() == [number]:
                        break  # others are late answers to what was sent again
                else:
                    raise zmq.Again
            except zmq.Again as error:
                raise SinkError("a consumer of events that does not answer", f"its answer in {ANSWERS_WITHIN_S:g} s",
                                "start it, or look why it hangs") from error

    def close(self) -> None:
        self._socket.close(linger=0)
        self._socket.context.term()


def _bind(kind: int, addresses: Sequence[str]) -> zmq.Socket[bytes]:
    """A socket in a context of its own: a shared one would be ended while this one is still waited for."""
    context = zmq.Context()
    socket = context.socket(kind)
    socket.immediate = True
    socket.linger = 0  # before it binds, or a subscriber that leaves as we close is waited for without end
    for address in addresses:
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            context.destroy(0)
            raise SinkError(f"publishing at {address} ({error.strerror})", "an address that is free",
                            "stop what uses it, or choose another one") from error
    return socket
