"""Videos of events: what came before and after them is there, at the times it was taken; old ones go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from stream.service.config import ClipsConfig
from stream.service.egress.clips import ClipRecorder
from stream.service.frames import PendingFrame, RecentFrames
from stream.sinks.log import clip_name
from stream.wire import Limits, Message

RATE = 10.0


def jpeg(shade: int) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 65, 3), shade, np.uint8))[1].tobytes()  # an odd width


class Bench:
    """A recorder and a camera that sends ten pictures a second, each of another shade."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.now, self.recent = 0.0, RecentFrames(5.0)
        self.folder = folder / "clips"
        self.recorder = ClipRecorder(ClipsConfig(folder=self.folder, **settings), self._call, self.recent, Limits(),
                                 lambda: self.now, lambda: self.now + 1e9)

    def _call(self, what: Callable[[], None]) -> None:
        what()

    def send(self, until: float, camera: str = "cell/3", payload: Callable[[int], bytes] = jpeg) -> None:
        while self.now < until - 1e-6:
            k = round(self.now * RATE)
            frame = PendingFrame(camera, Message("gatestream", camera, payload(k)), k, 0, self.now, self.now)
            self.recent.add(frame)
            self.recorder.on_frame(frame)
            self.now = (k + 1) / RATE
            self.recorder.flush()

    def event(self, started_at: float, ended_at: float, open: bool = False, number: int = 1) -> str:
        said = {"type": "event", "camera": "cell/3", "head": "gesture", "label": "left", "started_at": started_at,
                "ended_at": ended_at, "score": 1.0, "open": open, "id": f"abc-{number}"}
        self.recorder.write([said])
        return clip_name(said["id"], said["camera"], said["label"])

    def finished(self) -> dict[str, int]:
        self.recorder.close(10.0)
        assert not self.recorder._thread.is_alive()
        return dict(self.recorder.counts)


def pictures(path: Path) -> list[tuple[float, float]]:
    """Time and shade of each picture."""
    with av.open(path) as video:
        assert video.streams.video[0].codec.name == "h264"
        return [(float(frame.pts * frame.time_base), float(frame.to_ndarray(format="bgr24").mean()))
                for frame in video.decode(video=0)]


def test_what_came_before_and_after_is_in_it_at_its_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, before_s=1.0, after_s=0.5)
    bench.send(4.0)
    bench.event(3.0, 4.0, open=True)
    bench.send(12.0)  # longer than what is kept of cameras without events
    name = bench.event(3.0, 11.8)
    assert not bench.folder.joinpath(name).exists()
    bench.send(13.0)
    assert bench.finished() == {"written": 1}
    assert name == "abc-1_cell-3_left.mp4"
    seen = pictures(bench.folder / name)
    np.testing.assert_allclose([at for at, _ in seen], np.arange(len(seen)) / RATE, atol=0.002)
    assert len(seen) == round((12.3 - 2.0) * RATE) + 1
    np.testing.assert_allclose([shade for _, shade in seen], 20 + np.arange(len(seen)), atol=5)


def test_a_camera_that_goes_has_its_video_all_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path, before_s=1.0, after_s=5.0)
    bench.send(4.0)
    name = bench.event(2.0, 3.0)  # never reported as open
    bench.now += 9.0
    bench.recorder.flush()
    assert bench.finished() == {"written": 1}
    assert len(pictures(bench.folder / name)) == 30


def test_pictures_that_are_broken_or_absent_cost_no_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, before_s=1.0, after_s=0.0)
    bench.send(4.0, payload=lambda k: jpeg(k) if k % 2 else b"broken")
    name = bench.event(2.0, 3.0)
    bench.send(4.1)
    bench.now += 100
    bench.event(90.0, 91.0, number=2)  # delivered again after a restart: its pictures are gone
    bench.now += 9
    bench.recorder.flush()
    bench.finished()
    assert [path.name for path in bench.folder.glob("*")] == [Path(name).name]
    assert len(pictures(bench.folder / name)) == 10


def test_the_longest_is_cut(tmp_path: Path) -> None:
    bench = Bench(tmp_path, before_s=0.0, after_s=0.0, most_s=2.0)
    bench.event(0.0, 0.0, open=True)
    bench.send(4.0)
    name = bench.event(0.0, 3.9)
    bench.send(9.0)
    bench.finished()
    assert len(pictures(bench.folder / name)) == 20


@pytest.mark.parametrize(("keep_days", "keep_mb", "left"), [
    (30, 1000, ["abc-3_x.mp4", "abc-1_cell-3_left.mp4", "abc-2_x.mp4"]),
    (1, 1000, ["abc-3_x.mp4", "abc-1_cell-3_left.mp4"]), (30, 0.02, ["abc-1_cell-3_left.mp4"]),
])
def test_old_ones_go_and_nothing_else(keep_days: float, keep_mb: float, left: list[str], tmp_path: Path) -> None:
    bench = Bench(tmp_path, before_s=0.0, after_s=0.0, keep_days=keep_days, keep_mb=keep_mb)
    for name, days in (("abc-2_x.mp4", 2), ("abc-3_x.mp4", 0.5), ("holiday.mp4", 500)):
        (bench.folder / name).write_bytes(bytes(19_000))
        os.utime(bench.folder / name, (1e9 - 86_400 * days,) * 2)
    bench.send(1.0)
    bench.event(0.0, 0.9)
    bench.send(5.0)
    bench.finished()
    assert (bench.folder / "holiday.mp4").exists()
    ours = {path.name for path in bench.folder.glob("abc*.mp4")}
    assert ours == set(left)


def test_what_is_kept_is_bounded_in_seconds_and_bytes() -> None:
    recent = RecentFrames(2.0, most_bytes=1000)
    for k in range(100):
        recent.add(PendingFrame("ab"[k % 2], Message("gatestream", "a", bytes(10)), k, 0, k / 10, k / 10))
    assert [frame.index for frame in recent.of("a")] == list(range(80, 100, 2))
    recent.forget("a")
    assert recent.of("a") == []
    recent.add(PendingFrame("c", Message("gatestream", "c", bytes(990)), 0, 0, 10.0, 10.0))
    assert [frame.index for frame in recent.of("b")] == [99]
