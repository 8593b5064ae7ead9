"""Continuous recording: what cameras send is found again by its time, as it was; its room is bounded; a crash costs
little, and what others put into the folder stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from stream.service.config import ClipsConfig
from stream.sinks import continuous, segments
from stream.sinks.continuous import ContinuousRecorder
from stream.sinks.segments import SegmentWriter, VideoSettings, delete_oldest, find_segments
from stream.wire.frames import PendingFrame
from stream.wire.messages import Limits, Message

NOON = 1_795_953_600.0  # 2026-11-29T12:00:00Z
RATE = 10.0


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An hour before UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1")
        time.tzset()
        patch.setattr(continuous, "STOPS_WITHIN_S", 30.0)
        patch.setattr(continuous, "CHECK_S", 0.01)
        yield
    time.tzset()


def picture(shade: int, size_hw: tuple[int, int] = (48, 65)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((*size_hw, 3), shade, np.uint8)


def jpeg(shade: int, size_hw: tuple[int, int] = (48, 65)) -> bytes:
    return cv2.imencode(".jpg", picture(shade, size_hw))[1].tobytes()


def raw(camera: str, shade: int) -> Message:
    return Message("gatestream", camera, picture(shade).tobytes(), "raw", (48, 65, 3))


class Bench:
    """A recorder, and cameras whose pictures are of another shade each; the steady clock is the cameras' own."""

    def __init__(self, folder: Path, most_bytes: int = 10**8, **settings: Any) -> None:
        self.now, self.counts = NOON, Counter[str]()
        self.folder = folder / "clips"
        config = ClipsConfig(folder=self.folder, continuous=True, **settings)
        self.recorder = ContinuousRecorder(VideoSettings(**dict(config)), Limits(), most_bytes,
                                           self.counts, lambda: self.now, lambda: self.now)

    def send(self, at: float, message: Message, index: int = 0) -> None:
        self.recorder.on_frame(PendingFrame(message.name or "", message, index, 0, at, at))

    def minute(self, camera: str, start: float = NOON, seconds: float = 3.0, form: Any = None) -> None:
        for k in range(round(seconds * RATE)):
            message = form(camera, k) if form else Message("gatestream", camera, jpeg(k))
            self.send(start + k / RATE, message, k)

    def close(self) -> list[str]:
        """The files there are then."""
        self.recorder.close()
        assert not self.recorder._thread.is_alive()
        return sorted(path.name for path in self.folder.iterdir())


def wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def shades(path: Path) -> list[tuple[float, float]]:
    with av.open(path) as video:
        return [(float(frame.pts * frame.time_base), float(frame.to_ndarray(format="bgr24").mean()))
                for frame in video.decode(video=0)]


@pytest.mark.parametrize(("form", "codec"), [(None, "mjpeg"), (raw, "h264")])
def test_all_that_comes_is_there_at_its_time(form: Any, codec: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, segment_s=2.0)
    bench.minute("cell-3", form=form)
    assert bench.close() == ["cell-3_2026-11-29_13-00-00.000+0100.mkv", "cell-3_2026-11-29_13-00-02.000+0100.mkv"]
    assert bench.counts == {"segments written": 2}
    first, second = find_segments(bench.folder, 0, 2e9)
    assert (first.camera, first.started_at, second.started_at) == ("cell-3", NOON, NOON + 2)
    assert first.ended_at == pytest.approx(NOON + 2, abs=0.11)
    with av.open(first.path) as video:
        assert video.streams.video[0].codec_context.name == codec
        assert video.metadata["creation_time"].startswith("2026-11-29T12:00:00")
    seen = shades(first.path)
    np.testing.assert_allclose([at for at, _ in seen], np.arange(20) / RATE, atol=0.002)
    np.testing.assert_allclose([shade for _, shade in seen], np.arange(20), atol=6)
    assert len(shades(second.path)) == 10


def test_jpegs_are_stored_as_they_came(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.minute("cell-3")
    [name] = bench.close()
    with av.open(bench.folder / name) as video:
        packets = [bytes(packet) for packet in video.demux(video=0) if packet.size]
    assert packets == [jpeg(k) for k in range(30)]


@pytest.mark.parametrize(("since", "until", "camera", "found"), [
    (0.5, 0.6, None, [("cell 3", 0), ("cell-3", 0)]), (1.5, 1.6, "cell-3", []), (-9, 99, "cell 3", [("cell 3", 0)]),
    (50, 200, None, [("../../etc", 150), ("cell-3", 100)]), (-9, -1, None, []), (0, 200, "../../etc", [
        ("../../etc", 150)]), (0, 200, "../../ETC", []),
])
def test_a_time_is_found(since: float, until: float, camera: str | None, found: list[tuple[str, float]],
                         tmp_path: Path) -> None:
    bench = Bench(tmp_path, segment_s=30.0)
    for name, start in (("cell 3", 0), ("cell-3", 0), ("cell-3", 100), ("../../etc", 150)):
        bench.minute(name, NOON + start, 1.0)
    assert len(bench.close()) == 4
    (bench.folder / "cell-3_2026-11-29_13-00-00.500+0100.mkv").write_bytes(b"")
    got = find_segments(bench.folder, NOON + since, NOON + until, camera)
    assert [(each.camera, each.started_at - NOON) for each in got] == found


def test_raw_pictures_and_jpegs_in_turns_are_one_video(tmp_path: Path) -> None:
    """As the service's own cameras send them: raw ones for the engine, JPEGs of those between."""
    bench = Bench(tmp_path, segment_s=3.0)
    bench.minute("cell-3", seconds=9.0,
                 form=lambda camera, k: Message("gatestream", camera, jpeg(k)) if k % 3 else raw(camera, k))
    assert len(bench.close()) == 3
    seen = [one for each in find_segments(bench.folder, 0, 2e9) for one in shades(each.path)]
    np.testing.assert_allclose([shade for _, shade in seen], np.arange(90), atol=6)


def test_pictures_of_changing_sizes_make_no_flood_of_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path, keep_mb=0.001)
    bench.minute("cell-3", seconds=5.0, form=lambda camera, k: Message("gatestream", camera, jpeg(k, (48, 48 + k % 2))))
    wait(lambda: bench.counts["segments written"] >= 4)
    bench.now += 1
    wait(lambda: len(list(bench.folder.glob("*.mkv"))) <= 1)  # the oldest go
    assert len(bench.close()) <= 2
    assert 4 <= bench.counts["segments written"] <= 6
    assert bench.counts["segment frames left out"] >= 20


@pytest.mark.parametrize("change", ["size", "form", "time", "silence"])
def test_a_segment_ends_where_it_has_to(change: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, segment_s=60.0)
    bench.minute("cell-3")
    if change == "silence":
        wait(lambda: bench.recorder._bytes_done == bench.recorder._bytes_put)
        bench.now += 100
        wait(lambda: bench.counts["segments written"])
        assert len(bench.close()) == 1
        return
    message = {"size": Message("gatestream", "cell-3", jpeg(9, (64, 64))), "form": raw("cell-3", 9),
               "time": Message("gatestream", "cell-3", jpeg(9))}[change]
    bench.send(NOON - 100 if change == "time" else NOON + 3, message)
    bench.send(NOON + 3.1, Message("gatestream", "cell-3", b"\xff\xd8 no picture"))
    assert len(bench.close()) == 2


def test_what_is_too_much_is_thinned_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    """A disk that hangs: what waits stays below its bound, and shows the whole time once it goes on."""
    goes_on, payload = threading.Event(), len(jpeg(0))
    monkeypatch.setattr(SegmentWriter, "write", lambda *given, write=SegmentWriter.write: (
        goes_on.wait(30), write(*given)))
    bench = Bench(tmp_path, most_bytes=40 * payload)
    bench.minute("cell-3", seconds=20.0)
    assert 35 * payload <= bench.recorder._bytes_put - bench.recorder._bytes_done <= 41 * payload
    goes_on.set()
    [name] = bench.close()
    times = [at for at, _ in shades(bench.folder / name)]
    assert len(times) + bench.counts["segment frames left out"] == 200
    assert set(np.diff(times).round(1)) == {0.1, 0.2, 0.4}
    assert caplog.text.count("it gets fewer pictures") == 1


def test_a_full_disk_costs_the_recording_alone_and_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setattr(segments, "FREE_BYTES", 10**18)
    bench.minute("cell-3")
    wait(lambda: bench.counts["segment frames left out"] == 29)
    assert "to record" in (bench.recorder.fault or "")
    assert bench.counts["segments failed"] == 1  # not at every frame
    monkeypatch.setattr(segments, "FREE_BYTES", 0)
    bench.now += continuous.RETRY_S
    bench.minute("cell-3", NOON + 10)
    assert len(bench.close()) == 1
    assert bench.recorder.fault is None


def test_the_oldest_go_and_nothing_else(tmp_path: Path) -> None:
    for name, days in (("cell-3_2026-11-27_13-00-00.000+0100.mkv", 2), ("cell-3_2026-11-29_11-00-00.000+0100.mkv", 0.1),
                       ("19ac0ffee00-1-7_cell-3_left.mp4", 0.2), ("19ac0ffee00-9_cell-3_left.mp4", 3)):
        (tmp_path / name).write_bytes(bytes(19_000))
        os.utime(tmp_path / name, (NOON - 86_400 * days,) * 2)
    others = ["holiday.mkv", "2024-05-01_holiday.mp4", "cell-3_2026-11-27.mkv", "cafe-1_party.mp4", "notes.txt",
              "cell-3_2026-11-27_13-00-00.mkv", "cell-3_2026-11-26_13-00-00.000+0100.mkv.part"]
    for name in others:
        (tmp_path / name).write_bytes(bytes(19_000))
        os.utime(tmp_path / name, (NOON - 86_400 * 900,) * 2)
    (tmp_path / "cell-3_2026-11-20_13-00-00.000+0100.mkv").mkdir()  # a folder is nobody's segment

    def ours() -> list[str]:
        assert all((tmp_path / name).exists() for name in others)
        return sorted(path.name[:12] for path in tmp_path.iterdir() if path.name not in others and path.is_file())

    delete_oldest(tmp_path, 2.5, 1000, NOON)
    assert ours() == ["19ac0ffee00-", "cell-3_2026-", "cell-3_2026-"]
    delete_oldest(tmp_path, 2.5, 0.04, NOON)  # two of them
    assert ours() == ["19ac0ffee00-", "cell-3_2026-"]
    delete_oldest(tmp_path, 0.15, 1000, NOON)
    assert ours() == ["cell-3_2026-"]


KILLED = """
import os, sys
from pathlib import Path
import cv2, numpy as np
from stream.sinks.segments import SegmentWriter

picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
writer = SegmentWriter(Path(sys.argv[1]), "cell-3", 1_795_953_600.0, (48, 64), sys.argv[2] == "jpeg")
for k in range(200):
    writer.write(writer.started_at + k / 10, jpeg if writer.jpeg else picture)
os._exit(9)
"""


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_a_crash_costs_the_last_moments_of_a_segment(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "cell-4_2026-11-29_13-00-00.000+0100.mkv.part").touch()  # nothing in it yet
    (folder / "holiday.mkv.part").touch()
    subprocess.run([sys.executable, "-c", KILLED, str(folder), form], check=False, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert Bench(tmp_path).close() == ["cell-3_2026-11-29_13-00-00.000+0100.mkv", "holiday.mkv.part"]
    [found] = find_segments(folder, NOON, NOON + 1)
    assert (found.camera, found.started_at) == ("cell-3", NOON)
    assert len(shades(found.path)) >= 170
