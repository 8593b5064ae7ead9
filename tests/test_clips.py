"""Videos of events: what came before and after them is there, at the times it was taken; old ones go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from stream.frame import ENGINE_RESTARTED, Event, Gap
from stream.service.config import ClipsConfig
from stream.sinks import clips
from stream.sinks.clips import ClipRecorder
from stream.sinks.log import clip_name
from stream.sinks.segments import VideoSettings
from stream.wire.frames import PendingFrame, RecentFrames
from stream.wire.messages import Limits, Message

RATE = 10.0


def jpeg(shade: int) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 65, 3), shade, np.uint8))[1].tobytes()  # an odd width


class Bench:
    """A recorder and a camera that sends ten pictures a second, each of another shade."""

    def __init__(self, folder: Path, most_bytes: int = 10**9, **settings: Any) -> None:
        self.now, self.recent = 0.0, RecentFrames(5.0)
        self.folder = folder / "clips"
        self.recorder = ClipRecorder(VideoSettings(**dict(ClipsConfig(folder=self.folder, **settings))), self._call,
                                     self.recent, Limits(), most_bytes, lambda: self.now, lambda: self.now + 1e9)

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
        said = Event("cell/3", "gesture", "left", started_at, ended_at, 1.0, open, id=f"19ac0ffee00-1-{number}")
        self.recorder.write(None, [said])
        return clip_name(f"19ac0ffee00-1-{number}", said.camera, said.label)

    def finished(self) -> dict[str, int]:
        clips.STOPS_WITHIN_S, before = 20.0, clips.STOPS_WITHIN_S
        self.recorder.close()
        clips.STOPS_WITHIN_S = before
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
    assert name == "19ac0ffee00-1-1_cell-3_left.mp4"
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
    (30, 1000, ["19ac0ffee00-3_x.mp4", "19ac0ffee00-1-1_cell-3_left.mp4", "19ac0ffee00-2_x.mp4"]),
    (1, 1000, ["19ac0ffee00-3_x.mp4", "19ac0ffee00-1-1_cell-3_left.mp4"]),
    (30, 0.02, ["19ac0ffee00-1-1_cell-3_left.mp4"]),
])
def test_old_ones_go_and_nothing_else(keep_days: float, keep_mb: float, left: list[str], tmp_path: Path) -> None:
    bench = Bench(tmp_path, before_s=0.0, after_s=0.0, keep_days=keep_days, keep_mb=keep_mb)
    for name, days in (("19ac0ffee00-2_x.mp4", 2), ("19ac0ffee00-3_x.mp4", 0.5), ("holiday.mp4", 500),
                       ("2024-05-01_holiday.mp4", 500)):
        (bench.folder / name).write_bytes(bytes(19_000))
        os.utime(bench.folder / name, (1e9 - 86_400 * days,) * 2)
    bench.send(1.0)
    bench.event(0.0, 0.9)
    bench.send(5.0)
    bench.finished()
    assert (bench.folder / "holiday.mp4").exists()
    assert (bench.folder / "2024-05-01_holiday.mp4").exists()
    ours = {path.name for path in bench.folder.glob("19ac0ffee00*.mp4")}
    assert ours == set(left)


def test_pictures_above_the_budget_are_thinned_evenly_and_counted(tmp_path: Path,
                                                                  caplog: pytest.LogCaptureFixture) -> None:
    """Two events that stay open, of pictures as large as raw ones: memory stays bounded, the whole time is shown."""
    def large(k: int) -> bytes:
        return jpeg(20 + k % 200) + bytes(100_000)

    bench = Bench(tmp_path, most_bytes=4_000_000, before_s=1.0, after_s=0.0, most_s=60.0)
    bench.event(0.0, 0.0, open=True)
    bench.send(20.0, payload=large)
    kept = [clip.bytes for clip in bench.recorder._open.values()]
    assert sum(kept) == bench.recorder._bytes <= 4_000_000
    name = bench.event(0.0, 19.9)
    bench.send(22.0)
    counts = bench.finished()
    assert counts["written"] == 1
    assert counts["frames left out"] >= 150
    times = [at for at, _ in pictures(bench.folder / name)]
    assert len(times) >= 15
    assert times[0] == 0
    assert times[-1] > 19
    assert caplog.text.count("videos get fewer of them") == 1


def test_an_event_that_closes_as_the_engine_dies_has_its_video_and_parts_of_a_killed_process_go(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "19ac0ffee00-1-9_a_left.mp4.part").write_bytes(b"half")
    (tmp_path / "clips" / "holiday.mp4.part").write_bytes(b"not ours")
    bench = Bench(tmp_path, before_s=1.0, after_s=0.0)
    bench.event(0.5, 0.5, open=True)
    bench.send(2.0)
    name = bench.event(0.5, 1.0)
    bench.recorder.write(None, [Gap("cell/3", 2.0, 0.1, ENGINE_RESTARTED)])
    bench.send(6.0)
    assert bench.finished() == {"written": 1}
    assert sorted(path.name for path in bench.folder.iterdir()) == [name, "holiday.mp4.part"]


def test_what_is_kept_is_bounded_in_seconds_and_bytes() -> None:
    recent = RecentFrames(2.0, most_bytes=1000)
    for k in range(100):
        recent.add(PendingFrame("ab"[k % 2], Message("gatestream", "a", bytes(10)), k, 0, k / 10, k / 10))
    assert [frame.index for frame in recent.of("a")] == list(range(80, 100, 2))
    recent.forget("a")
    assert recent.of("a") == []
    recent.add(PendingFrame("c", Message("gatestream", "c", bytes(990)), 0, 0, 10.0, 10.0))
    assert [frame.index for frame in recent.of("b")] == [99]


KILLED = """
import os, sys
import numpy as np
from pathlib import Path
from stream.sinks.video import write_video

def images():
    for k in range(30):
        yield k / 10, np.full((48, 64, 3), 8 * k, np.uint8)
    os._exit(0)

write_video(Path(sys.argv[1]), images())
"""


def test_what_a_writer_that_was_killed_left_goes_at_the_next_start(tmp_path: Path) -> None:
    folder, name = tmp_path / "clips", clip_name("19ac0ffee00-1-9", "cell/3", "left")
    folder.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(folder / name)], check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert [path.name for path in folder.iterdir()] == [f"{name}.part"]
    Bench(tmp_path).finished()
    assert list(folder.iterdir()) == []
