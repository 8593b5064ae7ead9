"""ZeroMQ publishers as a source of `gatestream run`: imagezmq's and our own, the newest picture or every."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise

import imagezmq
import numpy as np
import pytest
import zmq

from stream.frame import Frame
from stream.service.egress.outbox import Publisher as Results
from stream.service.ingress.sender import Sender
from stream.sources import open_source
from stream.sources.subscriber import Subscriber
from stream.wire import encode_header


def picture(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


@contextmanager
def sending(send: Callable[[int], object]) -> Iterator[None]:
    """Sends pictures 0, 1, 2, ... until the block ends."""
    ended = threading.Event()

    def run() -> None:
        k = 0
        while not ended.wait(0.005):
            send(k)
            k += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def frames(source: Subscriber, count: int) -> list[Frame]:
    return [item for item in islice(source.frames(), count) if isinstance(item, Frame)]


@contextmanager
def bound() -> Iterator[tuple[zmq.Socket[bytes], str]]:
    with zmq.Context() as context, context.socket(zmq.PUB) as pub:
        pub.linger = 0
        pub.bind("tcp://127.0.0.1:*")
        yield pub, pub.getsockopt_string(zmq.LAST_ENDPOINT).replace("tcp", "zmq")


def test_our_own_publisher_with_its_times() -> None:
    with Sender("tcp://127.0.0.1:*", "desk", publish=True) as sender:
        address = sender._socket.getsockopt_string(zmq.LAST_ENDPOINT).replace("tcp", "zmq")
        with open_source(address, policy="every") as source, \
                sending(lambda k: sender.send(picture(100), captured_at=1000.0 + k)):
            seen = frames(source, 5)
    assert [frame.index for frame in seen] == [0, 1, 2, 3, 4]
    assert np.diff([frame.captured_at for frame in seen]).tolist() == [1.0] * 4
    assert all(abs(int(frame.image_bgr.mean()) - 100) <= 2 for frame in seen)


def test_our_publishers_hold_no_context_up() -> None:
    """A connection keeps the patience its socket had when it was made: ZeroMQ's own is for ever."""
    with Sender("tcp://127.0.0.1:*", "desk", publish=True) as sender, zmq.Context() as context:
        assert 0 <= sender._socket.linger < 1000
        results = context.socket(zmq.PUB)
        told = Results(results, ["tcp://127.0.0.1:*"])
        assert results.linger == 0
        told.close(0.0)


def test_imagezmqs_publisher_is_stamped_when_it_comes(
        imagezmq_publisher: tuple[imagezmq.ImageSender, str]) -> None:
    sender, address = imagezmq_publisher
    ticks = iter(range(1000))
    source = Subscriber(f"zmq://{address}", camera="cell", wall=lambda: float(next(ticks)))
    with source, sending(lambda k: sender.send_image("what it says", picture(7))):
        seen = frames(source, 3)
    assert [frame.captured_at for frame in seen] == [0.0, 1.0, 2.0]
    assert {frame.camera for frame in seen} == {"cell"}
    np.testing.assert_array_equal(seen[0].image_bgr, picture(7))


def test_spoilt_messages_are_counted_and_other_cameras_passed_over() -> None:
    image = picture(9)

    def send(pub: zmq.Socket[bytes], k: int) -> None:
        name = "other" if k % 4 == 0 else "mine"
        body = b"spoilt" if k % 4 == 1 else image.tobytes()
        pub.send_multipart([encode_header(name, image.shape, encoding="raw", captured_at=float(k)), body])

    with bound() as (pub, address):
        source = Subscriber(f"{address}?camera=mine", policy="every")
        with source, sending(lambda k: send(pub, k)):
            seen = frames(source, 6)
    assert {frame.camera for frame in seen} == {"mine"}
    assert all(frame.captured_at % 4 >= 2 for frame in seen)
    assert sum(frame.lost for frame in seen[1:]) in (2, 3)
    assert [b.index - a.index - 1 for a, b in pairwise(seen)] == [frame.lost for frame in seen[1:]]


def test_the_end_of_a_stream_ends_it_and_so_does_closing() -> None:
    with bound() as (pub, address):
        source = Subscriber(address)
        with sending(lambda k: pub.send_multipart([encode_header("desk", end=True), b""])):
            assert frames(source, 1) == []
        closed = Subscriber(address)
        threading.Timer(0.05, closed.close).start()
        assert frames(closed, 1) == []


def test_the_newest_picture_is_taken() -> None:
    with bound() as (pub, address):
        source = Subscriber(address)
        with source, sending(lambda k: pub.send_multipart([
                encode_header("desk", (16, 16, 3), encoding="raw", captured_at=float(k)),
                picture(k % 256).tobytes()])):
            stream = source.frames()
            first = next(stream)
            assert isinstance(first, Frame)
            threading.Event().wait(0.3)  # a slow consumer
            second = next(stream)
            assert isinstance(second, Frame)
            third = next(stream)
            assert isinstance(third, Frame)
            assert third.captured_at > first.captured_at + 2
            stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["zmq://:5555", "zmq://host:0", "zmq://host:port"])
def test_addresses_that_cannot_be(address: str) -> None:
    from engines.errors import UsageError

    with pytest.raises(UsageError, match="zmq://host:port"):
        Subscriber(address)
