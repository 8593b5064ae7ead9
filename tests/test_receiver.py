"""The owner of the sockets, with real imagezmq and NetGear senders: everyone is answered, whatever happens behind."""

from __future__ import annotations

import json
import logging
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import cv2
import imagezmq
import numpy as np
import pytest
import zmq
from fakes import FakeEngine, FakeModel
from test_subscriber import sending

from stream.commands.cli import main
from stream.frame import Camera, Event, HeadScores, Prediction, Record
from stream.recognizer import Recognizer
from stream.sender import Sender
from stream.service.config import Config
from stream.service.ingress import admission
from stream.service.ingress.receiver import Receiver
from stream.service.resources import MOST_FILES, raise_file_limit
from stream.service.worker import protocol
from stream.service.worker.worker import Worker
from stream.wire.frames import PendingFrame
from stream.wire.messages import Limits, Message, decode, encode_header

IMAGE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 4)
JPEG = cv2.imencode(".jpg", IMAGE)[1].tobytes()
PATIENCE_S = 10.0


def wait(condition: Callable[[], object]) -> None:
    """Until it holds; fails after PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)


@contextmanager
def running(**receive: Any) -> Iterator[Receiver]:
    """A receiver at free ports by default; see its `.ports`. No frame grows stale on a slow machine by itself."""
    cameras = receive.pop("camera", ())
    make_auth = receive.pop("make_auth", lambda context: None)
    receive = {"bind": ["tcp://127.0.0.1:*"], "staleness_ms": 1000 * PATIENCE_S, **receive}
    config = Config.model_validate({"receive": receive, "camera": cameras})
    records: list[Any] = []  # JSON objects, but for what is said of cameras
    with zmq.Context() as context:
        receiver = Receiver(config, lambda got: records.extend(
            record.as_json() for record in got if not isinstance(record, Camera)), context, make_auth(context))
        receiver.ports = receiver.open(f"inproc://link-{id(receiver)}")  # type: ignore[attr-defined]
        receiver.records = records  # type: ignore[attr-defined]
        thread = threading.Thread(target=receiver.run)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.stop()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@contextmanager
def worker(receiver: Receiver, credits: int = 2) -> Iterator[zmq.Socket[bytes]]:
    """What talks to the receiver as an engine's process does."""
    with receiver.context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"inproc://link-{id(receiver)}")
        socket.rcvtimeo = round(1000 * PATIENCE_S)
        socket.send_multipart([protocol.READY, json.dumps({"engine": "none", "credits": credits}).encode()])
        assert socket.recv_multipart()[0] == protocol.CAMERAS
        yield socket


def frames(socket: zmq.Socket[bytes]) -> list[Any]:
    while True:
        kind, *rest = socket.recv_multipart()
        if kind != protocol.WARM:  # what came before it was there
            assert kind == protocol.FRAMES
            return protocol.unpack(rest)


def port(receiver: Receiver, which: int = 0) -> str:
    return str(receiver.ports[which])  # type: ignore[attr-defined]


def prediction(camera: str) -> dict[str, Any]:
    scores = HeadScores((("left", 0.9),), ())
    return Prediction(camera, 1, 1.0, True, {"gesture": scores}, (), {"total": 1.0}, 0, 0).as_json()


class TestImagezmq:
    def test_pictures_come_through_whole_and_are_answered_with_ok(self) -> None:
        with running() as receiver, worker(receiver) as engine, imagezmq.ImageSender(port(receiver)) as sender:
            assert sender.send_image("bench", IMAGE) == b"OK"
            [frame] = frames(engine)
            assert frame.camera == "bench"
            np.testing.assert_array_equal(decode(frame.message, Limits()), IMAGE)
            assert sender.send_jpg("bench", JPEG) == b"OK"
            [frame] = frames(engine)
            assert np.abs(decode(frame.message, Limits()).astype(int) - IMAGE).mean() < 3
            assert abs(frame.captured_at - time.time()) < 60

    def test_words_are_answered_and_are_no_picture(self) -> None:
        with running() as receiver, imagezmq.ImageSender(port(receiver)) as sender:
            assert sender.send_jpg("heartbeat", b"0") == b"OK"
            assert not len(receiver.scheduler)

    def test_a_publisher_is_dialled(self, imagezmq_publisher: tuple[imagezmq.ImageSender, str]) -> None:
        sender, address = imagezmq_publisher
        camera = {"name": "cell", "source": f"zmq://{address}"}
        with running(camera=[camera]) as receiver, worker(receiver) as engine, \
                sending(lambda _: sender.send_image_pubsub("what it calls itself", IMAGE)):
            assert frames(engine)[0].camera == "cell"

    def test_senders_go_on_when_the_service_starts_again(self) -> None:
        with running() as receiver:
            address = port(receiver)
            sender = imagezmq.ImageSender(address)
            assert sender.send_image("bench", IMAGE) == b"OK"
        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(sender.send_image("bench", IMAGE)), daemon=True)
        asking.start()  # while there is no service
        with running(bind=[address]) as receiver:
            asking.join(PATIENCE_S)
            assert answers == [b"OK"]
            assert receiver.scheduler.counters["bench"].received == 1
            sender.close()

    def test_a_name_has_one_sender_at_a_time(self, caplog: pytest.LogCaptureFixture) -> None:
        with running() as receiver, imagezmq.ImageSender(port(receiver)) as second:
            with imagezmq.ImageSender(port(receiver)) as first:
                assert first.send_jpg("bench", JPEG) == b"OK"
                for _ in range(3):
                    assert b"ERROR: a second sender of camera 'bench'" in second.send_jpg("bench", JPEG)
                    assert first.send_jpg("bench", JPEG) == b"OK"
                assert receiver.scheduler.counters["bench"].received == 4
                assert receiver.refused == {"name taken": 3}
            wait(lambda: second.send_jpg("bench", JPEG) == b"OK")  # at once, the first one has gone
        assert len([line for line in caplog.messages if "a second sender of camera 'bench'" in line]) == 1

    @pytest.mark.parametrize(("name", "says"), [
        ("a\tb", b"a camera called 'a\\tb'"), ("a\nb", b"a camera called 'a\\nb'"),
        ("x" * 65, b"a camera called 'xxx")])
    def test_a_text_that_is_no_name_is_refused(self, name: str, says: bytes) -> None:
        with running() as receiver, imagezmq.ImageSender(port(receiver)) as sender:
            assert says in sender.send_jpg(name, JPEG)
            assert receiver.refused == {"not a name": 1}
            assert not receiver.sessions

    def test_a_sender_with_another_name_in_every_message_leaves_room(self) -> None:
        with running(cameras=64) as receiver, imagezmq.ImageSender(port(receiver)) as restless, \
                imagezmq.ImageSender(port(receiver)) as newcomer:
            answers = [restless.send_jpg(f"at {k}", JPEG) for k in range(256)]
            assert answers.count(b"OK") < 64
            assert newcomer.send_jpg("bench", JPEG) == b"OK"

    def test_pictures_that_cannot_be_decoded_are_told_in_the_answers(self, caplog: pytest.LogCaptureFixture) -> None:
        with running() as receiver, worker(receiver) as engine, imagezmq.ImageSender(port(receiver)) as sender:
            for k in range(2):
                sender.send_jpg("bench", b"RIFF" + bytes(60))
                frames(engine)
                error = [["bench", k, "FrameError", "60 bytes that are no JPEG or PNG"]]
                engine.send_multipart([protocol.DONE, json.dumps({"records": [], "errors": error}).encode()])
                wait(lambda: receiver.sessions["bench"].fault)
                assert b"ERROR: 60 bytes that are no JPEG" in sender.send_jpg("bench", JPEG)
                frames(engine)
                engine.send_multipart([protocol.DONE, json.dumps({"records": [prediction("bench")]}).encode()])
                wait(lambda: not receiver.sessions["bench"].fault)
            assert receiver.scheduler.counters["bench"].dropped == {"FrameError": 2}
        assert [line for line in caplog.messages if "no JPEG" in line] == [
            "camera bench: 60 bytes that are no JPEG or PNG"]

    def test_a_wrong_clock_is_noticed_and_does_not_date_the_frames(self, caplog: pytest.LogCaptureFixture) -> None:
        with running() as receiver, worker(receiver, credits=9) as engine, \
                imagezmq.ImageSender(port(receiver)) as sender:
            for k in range(3):
                sender.send_jpg({"camera": "bench", "captured_at": 3.5e9 + k}, JPEG)
                [frame] = frames(engine)
                assert abs(frame.captured_at - k - time.time()) < 30
            clock = receiver.sessions["bench"].clock
            assert clock.skew_s > 1e9
        assert len([line for line in caplog.messages if line == f"camera bench: {clock.notice}"]) == 1

    def test_an_answer_tells_what_the_camera_shows_if_that_is_wanted(self) -> None:
        with running(tell=True) as receiver, worker(receiver) as engine, imagezmq.ImageSender(port(receiver)) as sender:
            sender.send_image("bench", IMAGE)
            frames(engine)
            engine.send_multipart([protocol.DONE, json.dumps({"records": [prediction("bench")]}).encode()])
            wait(lambda: receiver.sessions["bench"].latest)
            assert json.loads(sender.send_image("bench", IMAGE)) == prediction("bench")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
class TestNetGear:
    @pytest.fixture(autouse=True)
    def _quiet(self) -> None:
        logging.getLogger("NetGear").setLevel(logging.CRITICAL)

    @staticmethod
    def connect(address: str, **options: Any) -> Any:
        from vidgear.gears import NetGear

        pattern = options.pop("pattern", 1)
        return NetGear(address="127.0.0.1", port=address.rpartition(":")[2], protocol="tcp", pattern=pattern,
                       receive_mode=False, logging=False, **options)

    @pytest.mark.parametrize(("options", "close_to"), [({}, 4), ({"jpeg_compression": False}, 0)])
    def test_pictures_come_through(self, options: dict[str, Any], close_to: int) -> None:
        with running() as receiver, worker(receiver) as engine:
            gear = self.connect(port(receiver), **options)
            gear.send(IMAGE, message="bench")
            [frame] = frames(engine)
            assert (frame.camera, frame.message.protocol) == ("bench", "netgear")
            assert np.abs(decode(frame.message, Limits()).astype(int) - IMAGE).mean() <= close_to
            assert receiver.sessions["bench"].present
            gear.close()
            wait(lambda: not receiver.sessions["bench"].present)

    def test_what_the_camera_shows_comes_back_in_bidirectional_mode(self) -> None:
        with running() as receiver, worker(receiver) as engine:
            gear = self.connect(port(receiver), bidirectional_mode=True)
            assert gear.send(IMAGE, message="bench") is None
            frames(engine)
            engine.send_multipart([protocol.DONE, json.dumps({"records": [prediction("bench")]}).encode()])
            wait(lambda: receiver.sessions["bench"].latest)
            assert gear.send(IMAGE, message="bench") == prediction("bench")
            gear.close()

    @pytest.mark.parametrize(("pattern", "kind"), [(0, "pair"), (2, "sub")])
    def test_other_patterns_have_ports_of_their_own(self, pattern: int, kind: str) -> None:
        with running(bind=[], **{kind: ["tcp://127.0.0.1:*"]}) as receiver, worker(receiver) as engine:
            gear = self.connect(port(receiver), pattern=pattern)
            try:
                with sending(lambda _: gear.send(IMAGE)):
                    assert frames(engine)[0].camera == "netgear@127.0.0.1"
            finally:
                gear.close()


    @pytest.mark.parametrize(("pattern", "kind"), [(1, "bind"), (2, "sub")])
    def test_senders_without_names_are_a_camera_each(self, pattern: int, kind: str) -> None:
        with running(**{"bind": [], kind: ["tcp://127.0.0.1:*"]}) as receiver:
            gears = [self.connect(port(receiver), pattern=pattern) for _ in range(2)]

            def both() -> bool:
                for gear in gears:
                    gear.send(IMAGE)
                return len(receiver.sessions) == 2

            try:
                wait(both)
                assert set(receiver.sessions) == {"netgear@127.0.0.1", "netgear@127.0.0.1-2"}
            finally:
                for gear in gears:
                    gear.close()


class TestAll:
    def test_all_kinds_of_senders_share_a_port(self) -> None:
        with running() as receiver, worker(receiver, credits=20) as engine:
            gear = TestNetGear.connect(port(receiver))
            with imagezmq.ImageSender(port(receiver)) as zmq_sender, Sender(port(receiver), "own") as sender:
                sender.send(IMAGE, time.time())
                zmq_sender.send_image("image", IMAGE)
                gear.send(IMAGE, message="gear")
                seen: set[str] = set()
                while seen != {"own", "image", "gear"}:
                    seen |= {frame.camera for frame in frames(engine)}
            gear.close()

    @pytest.mark.parametrize("patience", [
        {"staleness_ms": 60_000}, {"staleness_ms": 0.001, "camera": [{"name": "own", "staleness_ms": 60_000}]}])
    def test_nobody_stalls_without_an_engine_and_the_newest_picture_waits(self, patience: dict[str, Any]) -> None:
        with running(**patience) as receiver, Sender(port(receiver), "own") as sender:
            start = time.time()
            for k in range(20):
                sender.send(np.full((8, 8, 3), 10 * k, np.uint8), captured_at=start + k)
            assert sender.unanswered == 0
            with worker(receiver) as engine:
                [frame] = frames(engine)
            assert (frame.captured_at, frame.index, frame.lost) == (start + 19, 19, 19)
            assert receiver.scheduler.counters["own"].dropped == {"overtaken": 19}

    @pytest.mark.parametrize(("parts", "says"), [
        ([b"hello"], b"ERROR: a header that is no JSON"), ([b"{}", b"x"], b"ERROR: a header with nothing in it"),
        ([b"a", b"b", b"c"], b"ERROR: a message of 3 parts"),
        ([b'{"msg": "x", "dtype": "uint8", "shape": [9, 9]}', b"x"], b"ERROR: 1 bytes of pixels"),
        ([b'{"terminate_flag": false, "compression": "zlib"}', b"x"], b'{"error": "NetGear compression \'zlib\''),
    ])
    def test_bad_messages_are_answered_and_counted(self, parts: list[bytes], says: bytes) -> None:
        with running() as receiver, receiver.context.socket(zmq.REQ) as sender:
            sender.linger, sender.rcvtimeo = 0, round(1000 * PATIENCE_S)
            sender.connect(port(receiver))
            sender.send_multipart(parts)
            assert says in sender.recv()
            assert receiver.refused == {"malformed": 1}

    def test_strangers_crowds_and_the_hasty_are_refused(self) -> None:
        cameras = [{"name": "known"}, {"name": "elsewhere", "address": "10.9.8.7"}]
        with running(camera=cameras, unknown=False, max_frames_per_s=5.0) as receiver, \
                imagezmq.ImageSender(port(receiver)) as sender:
            assert sender.send_image("known", IMAGE) == b"OK"
            assert b"a camera called 'stranger'" in sender.send_image("stranger", IMAGE)
            assert b"'elsewhere' at 127.0.0.1" in sender.send_image("elsewhere", IMAGE)
            answers = [sender.send_image("known", IMAGE) for _ in range(10)]
            assert sum(answer == b"OK" for answer in answers) in (4, 5)
            assert b"faster than its quota" in answers[-1]
            assert receiver.scheduler.counters["known"].dropped["quota"] >= 5
        with running(cameras=2) as receiver, imagezmq.ImageSender(port(receiver)) as sender:
            assert [sender.send_image(name, IMAGE) == b"OK" for name in "abcb"] == [True, True, False, True]

    def test_a_camera_that_has_gone_makes_room(self) -> None:
        with running(cameras=1) as receiver, worker(receiver) as engine:
            with Sender(port(receiver), "first") as sender:
                sender.send(IMAGE, time.time())
                frames(engine)
            assert engine.recv_multipart()[0] == protocol.LEAVE
            with Sender(port(receiver), "second") as sender:
                sender.send(IMAGE, time.time())
                assert frames(engine)[0].camera == "second"
            assert list(receiver.sessions) == ["second"]

    def test_a_camera_that_comes_back_is_reported(self) -> None:
        with running() as receiver, worker(receiver, credits=9) as engine:
            for _ in range(2):
                with Sender(port(receiver), "own") as sender:
                    sender.send(IMAGE, time.time())
                    frames(engine)
                assert engine.recv_multipart()[0] == protocol.LEAVE
            [gap] = receiver.records  # type: ignore[attr-defined]
            assert (gap["type"], gap["action"]) == ("gap", "reconnected")
            assert receiver.sessions["own"].reconnects == 1

    def test_a_camera_that_falls_silent_is_told_before_it_has_left(
            self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "gatestream.service")
        monkeypatch.setattr(admission, "SILENT_AFTER_S", 0.2)
        with running() as receiver, Sender(port(receiver), "own") as sender:
            for times in range(1, 4):
                sender.send(IMAGE, time.time())
                wait(lambda: caplog.text.count("camera own sends again") == times - 1)  # noqa: B023 - called in this turn
                wait(lambda: caplog.text.count("camera own has sent nothing for 0.2 s") == times)  # noqa: B023
                session = receiver.sessions["own"]
                wait(lambda: session.silent)  # noqa: B023
                assert session.present
                assert "it has sent nothing for" in session.find_fault(time.monotonic())

    @pytest.mark.parametrize("form", ["gatestream", "imagezmq", "netgear"])
    def test_a_sender_tells_that_it_is_refused(self, form: Any, caplog: pytest.LogCaptureFixture) -> None:
        with running(camera=[{"name": "known"}], unknown=False) as receiver:
            with Sender(port(receiver), "stranger", form) as sender:
                assert [sender.send(IMAGE, time.time()) for _ in range(3)] == [None] * 3
                assert (sender.refused, sender.unanswered) == (3, 0)
            with Sender(port(receiver), "known", form) as sender:
                sender.send(IMAGE, time.time())
                assert sender.refused == 0
        [line] = [line for line in caplog.messages if "refuses a picture of stranger" in line]
        assert "a camera called 'stranger'; wanted one of the configuration" in line

    def test_gatestream_camera_ends_when_nobody_takes_its_first_pictures(
            self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("stream.sender.ALL_REFUSED_S", 0.0)
        with running(camera=[{"name": "known"}], unknown=False) as receiver:
            camera = ["camera", "sim://gestures", "--to", port(receiver), "--name"]
            assert main([*camera, "stranger"]) == 1
            assert receiver.refused["unknown camera"] == 20
            assert main([*camera, "known", "--max-frames", "2"]) == 0
        assert "refused all 20 pictures" in capsys.readouterr().err
        assert main(["camera", "sim://gestures", "--to", "tcp://127.0.0.1:70000"]) == 2
        assert "a port of 65535 at most" in capsys.readouterr().err

    def test_only_its_own_sender_ends_a_camera(self) -> None:
        with running() as receiver, Sender(port(receiver), "own") as sender, \
                receiver.context.socket(zmq.REQ) as stranger:
            stranger.linger, stranger.rcvtimeo = 0, round(1000 * PATIENCE_S)
            stranger.connect(port(receiver))
            sender.send(IMAGE, time.time())
            for name, answer in (("own", b"by another one"), ("nobody", b"")):
                stranger.send_multipart([encode_header(name, end=True), b""])
                assert answer in b"".join(stranger.recv_multipart())
            assert receiver.sessions["own"].present
            assert receiver.refused["not its sender"] == 1
            sender.__exit__()
            wait(lambda: not receiver.sessions["own"].present)

    def test_a_publisher_that_calls_itself_otherwise_ends_its_own_camera(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
            publisher.linger = 0
            address = f"tcp://127.0.0.1:{publisher.bind_to_random_port('tcp://127.0.0.1')}"
            with running(camera=[{"name": "cell", "source": address.replace("tcp", "zmq")}]) as receiver:
                frame = [encode_header("itself", captured_at=1000.0), JPEG]
                with sending(lambda _: publisher.send_multipart(frame)):
                    wait(lambda: receiver.sessions["cell"].present)
                publisher.send_multipart([encode_header("itself", end=True), b""])
                wait(lambda: not receiver.sessions["cell"].present)

    def test_a_message_that_is_too_large_is_answered_and_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        with running(max_message_mb=0.1) as receiver, imagezmq.ImageSender(port(receiver)) as sender:
            assert b"a payload of 300000 bytes" in sender.send_jpg("bench", bytes(300_000))
            assert receiver.refused == {"malformed": 1}
            sender.send_jpg("bench", bytes(300_001))
        assert [line for line in caplog.messages if "refused" in line] == [
            "refused, 127.0.0.1: malformed (a payload of 300000 bytes; wanted 104857 at most)"]

    def test_an_oversized_message_costs_its_sender_the_connection_and_nobody_else(self) -> None:
        with running(max_message_mb=0.1) as receiver, receiver.context.socket(zmq.DEALER) as huge:
            huge.linger = 0
            huge.connect(port(receiver))
            huge.send_multipart([b"", b'{"msg": "x"}', bytes(1_000_000)])
            with imagezmq.ImageSender(port(receiver)) as sender:
                assert sender.send_jpg("bench", JPEG) == b"OK"
            assert list(receiver.sessions) == ["bench"]

    def test_connections_leave_descriptors_for_all_else(self) -> None:
        with running() as receiver, ExitStack() as stack:
            receiver.sockets.most_connections = 3
            senders = []
            for k in range(3):
                senders.append(stack.enter_context(imagezmq.ImageSender(port(receiver))))
                assert senders[k].send_jpg(f"camera {k}", JPEG) == b"OK"
            crowd = [stack.enter_context(receiver.context.socket(zmq.REQ)) for _ in range(20)]
            for socket in crowd:
                socket.linger = 0
                socket.connect(port(receiver))
            wait(lambda: receiver.refused["too many connections"] >= 20)
            assert all(sender.send_jpg(f"camera {k}", JPEG) == b"OK" for k, sender in enumerate(senders))
            for socket in crowd:
                socket.close()
            senders.pop().close()
            assert stack.enter_context(imagezmq.ImageSender(port(receiver))).send_jpg("newcomer", JPEG) == b"OK"

    def test_paced_senders_are_answered_at_their_turn_or_after_a_while(self) -> None:
        with running(pace_ms=1000.0) as receiver, receiver.context.socket(zmq.REQ) as sender:
            sender.linger, sender.rcvtimeo = 0, round(1000 * PATIENCE_S)
            sender.connect(port(receiver))
            sender.send_multipart([b'{"msg": "bench"}', JPEG])
            wait(lambda: len(receiver.scheduler))
            assert not sender.poll(50)
            with worker(receiver) as engine:
                frames(engine)
                assert sender.recv() == b"OK"
        with running(pace_ms=30.0) as receiver, imagezmq.ImageSender(port(receiver)) as zmq_sender:
            assert zmq_sender.send_jpg("bench", JPEG) == b"OK"  # though there is no engine

    def test_a_lost_engine_is_a_gap_for_every_camera_that_is_here(self) -> None:
        with running() as receiver, worker(receiver) as engine, Sender(port(receiver), "own") as sender:
            sender.send(IMAGE, time.time())
            frames(engine)
            receiver.call_soon(receiver.on_worker_lost)
            wait(lambda: receiver.records)  # type: ignore[attr-defined]
            [gap] = receiver.records  # type: ignore[attr-defined]
            assert (gap["type"], gap["camera"], gap["action"]) == ("gap", "own", "engine restarted")
            sender.send(IMAGE, time.time())
            with worker(receiver) as another:
                assert frames(another)[0].camera == "own"

    def test_frames_at_which_the_engine_ended_are_not_sent_again_and_their_camera_is_found(self) -> None:
        def ready(socket: zmq.Socket[bytes]) -> list[tuple[str, int]]:
            """The frames of the warm-up; the first one that is no longer of it is answered."""
            warm, found = [], None
            while found is None:
                kind, *parts = socket.recv_multipart()
                if kind == protocol.WARM:
                    warm += [(frame.camera, frame.index) for frame in protocol.unpack(parts)]
                    socket.send_multipart(protocol.encode(protocol.DONE, {"records": [], "credits": 0}))
                if kind == protocol.FRAMES:
                    [found] = protocol.unpack(parts)  # alone, though both cameras wait
            started.append(found.camera)
            return warm

        started: list[str] = []
        with running() as receiver, Sender(port(receiver), "evil") as evil, Sender(port(receiver), "good") as good:
            both = (evil, good)
            with worker(receiver, credits=9) as engine:
                seen: list[tuple[str, int]] = []
                for sender in (*both, *both):
                    sender.send(IMAGE, time.time())
                    seen += [(frame.camera, frame.index) for frame in frames(engine)]
                for _ in range(2):  # of those, the first two were done
                    engine.send_multipart(protocol.encode(protocol.DONE, {"records": []}))
                wait(lambda: len(receiver.worker.under_way) == 2)
            receiver.call_soon(receiver.on_worker_lost)
            wait(lambda: not receiver.worker.under_way)
            for sender in both:
                sender.send(IMAGE, time.time())
            with worker(receiver, credits=3) as engine:
                assert sorted(ready(engine)) == sorted(seen[:2])
                while started[-1] != "evil":
                    engine.send_multipart(protocol.encode(protocol.DONE, {"records": []}))
                    started += [frame.camera for frame in frames(engine)]
            receiver.call_soon(receiver.on_worker_lost)
            wait(lambda: not receiver.sessions["evil"].present)
            assert receiver.sessions["good"].present
            good.send(IMAGE, time.time())
            with worker(receiver) as engine:
                assert {camera for camera, _ in ready(engine)} == {"good"}
                for _ in range(9):  # somebody kills engines: no camera's fault
                    receiver.call_soon(lambda: receiver.on_worker_lost(killed=True))
            evil.send(IMAGE, time.time())
            assert evil.refused == receiver.refused["ended engines"] == 1
            good.send(IMAGE, time.time())
            assert good.refused == 0
            receiver._alone, receiver.sessions["evil"].refused_until = 0, 0.0
            for sender in both:
                sender.send(IMAGE, time.time())
            with worker(receiver) as engine:
                ready(engine)  # alone again, for it is back

    def test_an_event_that_was_open_when_the_engine_was_lost_is_closed_before_the_gap(self) -> None:
        left, up = (Event("own", "gesture", label, 1.0, 2.0, 0.9, True) for label in ("left", "up"))
        with running() as receiver, worker(receiver) as engine, Sender(port(receiver), "own") as sender:
            sender.send(IMAGE, time.time())
            frames(engine)
            records = [one.as_json() for one in (left, replace(left, open=False), up, replace(up, ended_at=3.0))]
            engine.send_multipart([protocol.DONE, json.dumps({"records": records}).encode()])
            wait(lambda: len(receiver.records) == 4)  # type: ignore[attr-defined]
            for _ in range(2):
                receiver.call_soon(receiver.on_worker_lost)
            wait(lambda: len(receiver.records) == 7)  # type: ignore[attr-defined]
            closed, *gaps = receiver.records[4:]  # type: ignore[attr-defined]
            assert closed == replace(up, ended_at=3.0, open=False).as_json()  # once
            assert [one["action"] for one in gaps] == ["engine restarted"] * 2

    def test_a_camera_that_is_refused_is_a_record_once(self) -> None:
        got: list[Record] = []
        with running(unknown=False) as receiver, imagezmq.ImageSender(port(receiver)) as sender:
            receiver.deliver = got.extend
            for _ in range(3):
                sender.send_jpg("stranger", JPEG)
        [record] = got
        assert isinstance(record, Camera)
        assert (record.camera, record.action) == ("stranger", "refused")
        assert record.why.startswith("unknown camera, from 127.0.0.1: a camera called 'stranger'")

    def test_a_sender_without_a_name_is_a_record_by_its_address(self) -> None:
        got: list[Record] = []
        with running() as receiver, zmq.Context() as context, context.socket(zmq.REQ) as socket:
            receiver.deliver = got.extend
            socket.connect(port(receiver))
            for _ in range(3):
                socket.send(b"hello")
                assert socket.recv().startswith(b"ERROR")
        [record] = got
        assert isinstance(record, Camera)
        assert (record.camera, record.action) == ("127.0.0.1", "refused")
        assert record.why.startswith("malformed")

    def test_cameras_that_join_leave_and_return_are_records(self) -> None:
        got: list[Record] = []
        with running(camera=[{"name": "own", "lost_after_s": 0.2}]) as receiver:
            receiver.deliver = got.extend
            for _ in range(2):
                with Sender(port(receiver), "own") as sender:
                    sender.send(IMAGE, time.time())
                wait(lambda: any(isinstance(one, Camera) and one.action == "left" for one in got[-1:]))
        said = [(one.camera, one.action) for one in got if isinstance(one, Camera)]
        assert said == [("own", action) for action in ("joined", "left", "returned", "left")]

    def test_records_go_on_and_refused_pictures_are_counted(self) -> None:
        with running() as receiver, worker(receiver) as engine, Sender(port(receiver), "own") as sender:
            sender.send(IMAGE, time.time())
            frames(engine)
            done = {"records": [prediction("own")], "errors": [["own", 0, "FrameError", "no picture"]]}
            engine.send_multipart([protocol.DONE, json.dumps(done).encode()])
            wait(lambda: receiver.records)  # type: ignore[attr-defined]
            assert receiver.records == [prediction("own")]  # type: ignore[attr-defined]
            assert receiver.scheduler.counters["own"].dropped == {"FrameError": 1}

    def test_odd_pictures_are_seen_in_the_session(self) -> None:
        with running() as receiver, worker(receiver) as engine, Sender(port(receiver), "own") as sender:
            sender.send(IMAGE, time.time())
            frames(engine)
            engine.send_multipart([protocol.DONE, json.dumps({"records": [], "odd": [["own", "one colour"]]}).encode()])
            wait(lambda: receiver.sessions["own"].odd)
            assert receiver.sessions["own"].odd == ["one colour"]

    def test_a_taken_address_is_an_error(self) -> None:
        from engines.errors import SourceError

        with running() as receiver, pytest.raises(SourceError, match="that is free"), running(bind=[port(receiver)]):
            pass


def test_a_camera_that_shows_one_colour_is_reported_once() -> None:
    model = FakeModel()
    black = Message("imagezmq", "a", cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes(), "jpeg")
    with Recognizer(model, FakeEngine(model)) as recognizer:
        process = Worker(recognizer).process
        odd = [process([PendingFrame("a", black, k, 0, k / 10, 0.0)])["odd"] for k in range(80)]
    assert [line for lines in odd for line in lines] == [
        ("a", "pictures: every picture so far is of one colour (BGR (0, 0, 0))")]


def test_a_publisher_that_falls_silent_is_dialled_anew(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setattr("stream.service.ingress.endpoints.SILENT_AFTER_S", 0.05)
    camera = {"name": "cell", "source": f"zmq://127.0.0.1:{unused_port}"}
    with running(camera=[camera]) as receiver:
        [endpoint] = [endpoint for endpoint in receiver.sockets if endpoint.camera is not None]
        wait(lambda: endpoint.tries >= 2)
        with Sender(f"tcp://127.0.0.1:{unused_port}", "cell", publish=True) as sender:
            def heard() -> bool:
                sender.send(IMAGE, time.time())
                return receiver.sessions["cell"].present and endpoint.tries == 0
            wait(heard)


def test_another_configuration_is_taken_while_cameras_send(unused_ports: list[int]) -> None:
    publishers = {"a": unused_ports[0], "b": unused_ports[1]}
    cameras = {name: {"name": name, "source": f"zmq://127.0.0.1:{port_}"} for name, port_ in publishers.items()}
    with running(camera=[cameras["a"]]) as receiver, worker(receiver, credits=1000) as engine, \
            Sender(f"tcp://127.0.0.1:{publishers['a']}", "a", publish=True) as one, \
            Sender(f"tcp://127.0.0.1:{publishers['b']}", "b", publish=True) as other:
        def here(name: str) -> bool:
            for sender in (one, other):
                sender.send(IMAGE, time.time())
            return name in receiver.sessions and receiver.sessions[name].present

        wait(lambda: here("a"))
        config = Config.model_validate({"receive": {"unknown": False}, "camera": [cameras["b"], {"name": "c"}]})
        receiver.call_soon(lambda: receiver.configure(config))
        wait(lambda: here("b"))
        wait(lambda: not receiver.sessions["a"].present)
        assert not here("a")
        kinds = []
        while engine.poll(100):
            kinds.append(engine.recv_multipart()[:2])
        assert [protocol.LEAVE, json.dumps({"camera": "a"}).encode()] in kinds
        assert [[one["name"] for one in json.loads(said)] for kind, said in kinds
                if kind == protocol.CAMERAS] == [["b", "c"]]
        with imagezmq.ImageSender(port(receiver)) as sender:
            assert b"a camera called 'a'" in sender.send_jpg("a", JPEG)
            assert sender.send_jpg("c", JPEG) == b"OK"


def test_an_engine_that_comes_late_is_warmed_up_with_what_was_sent_last() -> None:
    with running(max_frames_per_s=1e4) as receiver, Sender(port(receiver), "own") as sender, \
            Sender(port(receiver), "other") as other:
        start = time.time()
        for k in range(5):
            sender.send(np.full((8, 8, 3), 10 * k, np.uint8), captured_at=start + k)
        other.send(IMAGE, start + 7)
        with receiver.context.socket(zmq.DEALER) as engine:
            engine.linger, engine.rcvtimeo = 0, round(1000 * PATIENCE_S)
            engine.connect(f"inproc://link-{id(receiver)}")
            engine.send_multipart([protocol.READY, json.dumps({"engine": "none", "credits": 1}).encode()])
            said = []
            while not said or said[-1][0] != protocol.FRAMES:
                said.append(engine.recv_multipart())
        assert said[0][0] == protocol.CAMERAS
        warm = [[(frame.camera, frame.captured_at) for frame in protocol.unpack(parts[1:])]
                for parts in said if parts[0] == protocol.WARM]
        assert warm == [[("own", start + k)] for k in range(4)]  # the newest one waits for its turn
        fresh = {frame.camera: frame.captured_at for frame in protocol.unpack(said[-1][1:])}
        assert fresh == {"own": start + 4, "other": start + 7}


def test_random_messages_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    good = [[b'{"msg": "evil"}', JPEG], [b'{"terminate_flag": false, "compression": {}}', JPEG],
            [b'{"gatestream": 1, "camera": "evil", "encoding": "jpeg"}', JPEG]]
    with running(max_frames_per_s=1e6) as receiver, receiver.context.socket(zmq.DEALER) as evil, \
            Sender(port(receiver), "own") as sender:
        evil.linger, evil.sndhwm, evil.rcvtimeo = 0, 10, 0
        evil.connect(port(receiver))
        for k in range(2000):
            parts = [bytearray(part) for part in good[k % 3]]
            for part in parts:
                at = int(rng.integers(len(part)))
                part[at:at + int(rng.integers(6))] = rng.bytes(int(rng.integers(6)))
            extra = [b""] * int(rng.integers(3)) + [bytes(part) for part in parts[:int(rng.integers(3))]]
            evil.send_multipart(extra or [b""])
            with suppress(zmq.Again):
                while True:
                    evil.recv_multipart()
            if k % 100 == 0:
                sender.send(IMAGE, time.time())
        assert sender.unanswered == 0
        assert receiver.scheduler.counters["own"].received == 20


def test_the_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(before[0], MOST_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
