"""Cameras that a service opens itself: their pictures come as they were decoded, and only those that are wanted."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq
from fakes import FakeSource

from stream.frame import Frame, Image
from stream.sender import Sender, send_frames
from stream.service.config import Config
from stream.service.ingress.receiver import Receiver
from stream.wire.frames import PendingFrame
from stream.wire.messages import Limits, decode

RATE = 30.0
CONFIG = {"camera": [{"name": "own", "source": "sim://gestures", "colour": "RGB"}],
          "receive": {"bind": ["tcp://127.0.0.1:*"], "staleness_ms": 60_000}}


def pictures(count: int) -> list[Image]:
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), (64, 48)) for _ in range(count)]


def receive(sent: list[Image], times: list[float], **config: object) -> tuple[list[PendingFrame], list[PendingFrame]]:
    """What the engine gets of a source's frames, and what is kept to be shown."""
    kept: list[PendingFrame] = []
    wanted: list[PendingFrame] = []
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        receiver = Receiver(Config.model_validate(CONFIG | config), lambda records: None, context)
        receiver.open(f"ipc://{folder}/worker", f"ipc://{folder}/own")

        def on_frame(frame: PendingFrame) -> None:
            kept.append(frame)
            wanted.extend(receiver.scheduler.take(8, 0.0, lambda _: 1e9))

        receiver.on_frame = on_frame
        receiver.scheduler.set_clock(7.5, 1.0)
        with Sender(f"ipc://{folder}/own", "own", lossless=True) as sender:
            frames = [Frame(picture, at, k, "own") for k, (picture, at) in enumerate(zip(sent, times, strict=True))]
            thread = threading.Thread(target=send_frames, args=(FakeSource(frames, live=False), sender))
            thread.start()
            while thread.is_alive():
                receiver._poll_once(0.01)
            sender._patience_s = 0.0  # nobody answers its end any more
        receiver._close(0)
    return wanted, kept


def test_pixels_are_as_they_were_decoded_and_come_at_the_clocks_rate() -> None:
    """As `run` sees them, whatever the camera's setting of colours; what is kept for show and videos is a JPEG."""
    sent = pictures(31)
    wanted, kept = receive(sent, [1000 + k / RATE for k in range(31)])
    numbers = [round(RATE * (frame.captured_at - wanted[0].captured_at)) for frame in wanted]
    assert numbers == list(range(0, 31, 4))
    assert len(kept) == len(wanted)
    for number, frame, small in zip(numbers, wanted, kept, strict=True):
        assert np.array_equal(decode(frame.message, Limits(), "RGB"), sent[number])
        assert small.message.encoding == "jpeg"
        shown = decode(small.message, Limits())
        assert 0 < np.abs(shown.astype(int) - sent[number]).mean() < 3


def test_for_videos_of_events_jpegs_of_the_frames_between_come_too(tmp_path: Path) -> None:
    wanted, kept = receive(pictures(31), [1000 + k / RATE for k in range(31)],
                           clips={"folder": str(tmp_path)}, results={"log": str(tmp_path / "log.db")})
    assert [round(RATE * (frame.captured_at - wanted[0].captured_at)) for frame in wanted] == list(range(0, 31, 4))
    assert {frame.message.encoding for frame in wanted} == {"raw"}
    assert [round(RATE * (frame.captured_at - kept[0].captured_at)) for frame in kept] == list(range(31))
    assert {frame.message.encoding for frame in kept} == {"jpeg"}


def test_a_source_whose_time_runs_back_is_not_held_up() -> None:
    times = [100.0, 100.05, 100.14, 3.0, 3.05, 3.14]
    wanted, _ = receive(pictures(6), times)
    assert [round(frame.captured_at - wanted[0].captured_at, 2) for frame in wanted] == [0.0, 0.14, -97.0, -96.86]


@pytest.mark.parametrize(("most_mb", "encoding"), [(1.0, "raw"), (0.008, "jpeg")])
def test_pictures_larger_than_a_message_may_be_come_as_jpegs(most_mb: float, encoding: str) -> None:
    wanted, _ = receive([np.full((48, 64, 3), 90, np.uint8)] * 3, [0.0, 0.2, 0.4],
                        receive={**CONFIG["receive"], "max_message_mb": most_mb})  # type: ignore[dict-item]
    assert {frame.message.encoding for frame in wanted[-2:]} == {encoding}
