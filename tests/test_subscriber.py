"""ZeroMQ publishers as a source of `gatestream run`: imagezmq's and our own, the newest picture or every."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import imagezmq
import numpy as np
import pytest
import zmq

from engines.errors import SinkError
from stream.frame import Event, Frame
from stream.sender import Sender
from stream.sinks import publisher
from stream.sinks.publisher import ConfirmedQueue
from stream.sinks.publisher import Publisher as Results
from stream.sources import open_source
from stream.sources.subscriber import Subscriber
from stream.wire.messages import encode_header


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
    with Sender("tcp://127.0.0.1:*", "desk", publish=True) as sender, zmq.Context():
        assert 0 <= sender._socket.linger < 1000
        told = Results(["tcp://127.0.0.1:*"])
        assert told._socket.linger == 0
        told.close()


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


def test_events_wait_for_a_subscriber_of_before_and_names_cannot_make_topics_of_others() -> None:
    event = Event("cell-3", "gesture", "left", 1.0, 2.0, 0.9, False)
    with zmq.Context() as context:
        told = Results(["tcp://127.0.0.1:*"])
        address = told._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        writer = threading.Thread(target=lambda: told.write(None, [event, replace(event, camera="cell-3/event")]))
        writer.start()  # before anybody has subscribed
        with context.socket(zmq.SUB) as sub:
            sub.subscribe(b"cell-3")
            sub.connect(address)
            topics = [sub.recv_multipart()[0] if sub.poll(20_000) else b"" for _ in range(2)]
        writer.join()
        told.close()
    assert topics == [b"cell-3/event", b"cell-3%2Fevent/event"]


def test_a_consumer_that_confirms_gets_all_in_order_and_again_what_it_did_not_confirm(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "ANSWERS_WITHIN_S", 0.2)
    events = [Event("cell-3", "gesture", label, 1.0, 2.0, 0.9, False) for label in ("left", "right")]
    with zmq.Context() as context:
        queue = ConfirmedQueue(["tcp://127.0.0.1:*"])
        with pytest.raises(SinkError, match="does not answer"):
            queue.write(None, events[:1])  # nobody is there
        with context.socket(zmq.DEALER) as consumer:
            consumer.connect(queue._socket.getsockopt_string(zmq.LAST_ENDPOINT))
            with pytest.raises(SinkError, match="does not answer"):
                queue.write(None, events[:1])
            late, _ = consumer.recv_multipart()
            consumer.send(late)
            got: list[str] = []

            def confirm() -> None:
                for _ in events:
                    number, body = consumer.recv_multipart()
                    got.append(json.loads(body)["label"])
                    consumer.send(number)

            monkeypatch.setattr(publisher, "ANSWERS_WITHIN_S", 20.0)
            thread = threading.Thread(target=confirm)
            thread.start()
            queue.write(None, [events[0], replace(events[0], open=True), events[1]])
            thread.join()
        queue.close()
    assert got == ["left", "right"]


PROGRAM = """
import sys
from stream.frame import Event
from stream.sinks.outbox import Outbox
from stream.sinks.log import EventLog
from stream.sinks.publisher import ConfirmedQueue
import zmq

with zmq.Context():
    outbox = Outbox(EventLog(sys.argv[1], "lamps", "service"), {"confirmed": ConfirmedQueue(["tcp://127.0.0.1:*"])})
    outbox.start()
    outbox.put([Event("a", "gesture", "left", 1.0, 2.0, 0.9, False)])
    while outbox.sinks[0]._busy_since is None:
        pass
    outbox.close(0.1)
"""


def test_a_consumer_that_is_not_there_holds_up_no_end(tmp_path: Path) -> None:
    """Its thread still waits when the process ends."""
    assert subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "log.db")], timeout=20, check=False,
                          env={**os.environ, "PYTHONPATH": os.getcwd()}).returncode == 0
