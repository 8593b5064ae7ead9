"""Files, folders and what a user may type. Live cameras are in test_live_sources.py."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import FakeReader
from hypothesis import given
from hypothesis import strategies as st

from engines.decoding.paths import natural_key
from engines.decoding.times import FALLBACK_RATE, StreamTime
from engines.errors import GatestreamError, SourceError, UsageError
from stream.frame import Frame, Image
from stream.sources import Source, open_source
from stream.sources.address import mask_secrets
from stream.sources.images import ImageFiles
from stream.sources.paced import PacedSource
from stream.sources.video import VideoFile

MAKERS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}


def numbered(index: int) -> Image:
    """A grey picture that tells its number: the left half how many eights, the right half the rest. Up to 63."""
    picture = np.empty((48, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = 20 + 30 * (index // 8), 20 + 30 * (index % 8)
    return picture


def number_of(image_bgr: Image) -> int:
    eights, rest = (round((float(half.mean()) - 20) / 30) for half in (image_bgr[:, :32], image_bgr[:, 32:]))
    return 8 * eights + rest


def write_video(path: Path, count: int = 60, fps: float = 30.0, noise: bool = False) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*MAKERS[path.suffix]), fps, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {path.suffix}")
    rng = np.random.default_rng(0)
    for index in range(count):
        picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) if noise else numbered(index)
        writer.write(picture)
    writer.release()
    return path


def damage(path: Path) -> Path:
    """Overwrites a part of the middle with noise."""
    data = bytearray(path.read_bytes())
    start, stop = int(0.4 * len(data)), int(0.55 * len(data))
    data[start:stop] = np.random.default_rng(0).integers(0, 256, stop - start, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def frames_of(source: Source) -> list[Frame]:
    with source:
        items = list(source.frames())
    frames = [item for item in items if isinstance(item, Frame)]
    assert len(frames) == len(items)
    check_laws(frames, source)
    return frames


def check_laws(frames: list[Frame], source: Source) -> None:
    """What holds for every source: rising times, numbers that leave room for the lost, counts that agree."""
    number, lost = -1, 0
    for frame, later in zip(frames, [*frames[1:], None], strict=True):
        assert frame.index == number + 1 + frame.lost
        assert frame.camera == source.info.camera
        assert frame.image_bgr.dtype == np.uint8
        assert frame.image_bgr.ndim == 3
        assert later is None or later.captured_at > frame.captured_at
        number, lost = frame.index, lost + frame.lost
    assert source.lost >= lost


@pytest.mark.parametrize("suffix", MAKERS)
@pytest.mark.parametrize("fps", [30.0, 12.5])
def test_every_frame_of_a_video_is_given_at_its_time(tmp_path: Path, suffix: str, fps: float) -> None:
    source = open_source(str(write_video(tmp_path / f"clip{suffix}", fps=fps)))
    assert (source.info.camera, source.info.live, source.info.size_hw) == (f"clip{suffix}", False, (48, 64))
    assert source.info.fps == pytest.approx(fps)
    frames = frames_of(source)
    assert [number_of(frame.image_bgr) for frame in frames] == list(range(60))
    assert [frame.captured_at for frame in frames] == pytest.approx([index / fps for index in range(60)], abs=1e-3)
    assert source.lost == 0


def test_the_rate_can_be_given_instead(tmp_path: Path) -> None:
    frames = frames_of(open_source(str(write_video(tmp_path / "clip.mp4")), fps=10))
    assert [frame.captured_at for frame in frames] == pytest.approx([index / 10 for index in range(60)])


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_video_that_breaks_off_is_used_up_to_there(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}", noise=True)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    frames = frames_of(open_source(str(path)))
    assert 10 <= len(frames) <= 40
    assert [frame.captured_at for frame in frames] == pytest.approx([index / 30 for index in range(len(frames))],
                                                                    abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_around_a_damaged_middle_are_used_and_the_lost_counted(tmp_path: Path, suffix: str) -> None:
    source = open_source(str(damage(write_video(tmp_path / f"clip{suffix}", noise=True))))
    frames = frames_of(source)
    assert source.lost >= 3
    assert len(frames) + source.lost == 60
    assert frames[-1].captured_at == pytest.approx(59 / 30, abs=1e-3)


def test_decoders_do_not_chatter_about_damage(tmp_path: Path) -> None:
    """In a process of its own: FFmpeg asks how much to say only once, and other tests have woken it by now."""
    paths = [damage(write_video(tmp_path / f"clip{suffix}", noise=True)) for suffix in MAKERS]
    paths.append(tmp_path / "text.mp4")
    paths[-1].write_text("this is a letter, not a film\n" * 40)
    code = ("import sys\nfrom engines.errors import SourceError\nfrom stream.sources import open_source\n"
            "for spec in [*sys.argv[1:], '987']:\n"
            "    try:\n        print(sum(1 for _ in open_source(spec).frames()) > 20)\n"
            "    except SourceError:\n        print('SourceError')\n")
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * len(MAKERS) + ["SourceError"] * 2
    assert done.stderr == ""


@pytest.mark.parametrize(("name", "data", "word"), [
    ("empty.mp4", b"", "the file is empty"),
    ("text.mp4", b"this is a letter, not a film\n" * 40, "no video"),
    ("clip", b"\0" * 5000, "no video"),
])
def test_a_file_that_is_no_video_gives_one_clear_error(tmp_path: Path, name: str, data: bytes, word: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError) as error:
        open_source(str(path))
    assert word in error.value.got
    assert name in error.value.got


def test_an_mp4_cut_before_its_index_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(SourceError, match="cut off"):
        open_source(str(path))


def test_a_video_without_one_readable_picture_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="not one picture"):
        open_source(str(path))


def test_pictures_that_cannot_be_decoded_are_counted_once() -> None:
    script = [(None if 20 <= index < 25 else numbered(index), index / 30) for index in range(40)]
    source = VideoFile("clip.mp4", reader=FakeReader(script, rate=30))
    frames = frames_of(source)
    assert [frame.index for frame in frames if frame.lost] == [25]
    assert source.lost == 5
    assert len(frames) == 35


def test_failed_grabs_in_the_middle_are_passed_over() -> None:
    script: list[Any] = [(numbered(index), index / 30) for index in range(20)]
    script[10:14] = [None] * 4
    source = VideoFile("clip.mp4", reader=FakeReader(script, rate=30))
    assert [number_of(frame.image_bgr) for frame in frames_of(source)] == [*range(10), *range(14, 20)]
    assert source.lost == 4


def test_close_ends_the_stream_and_may_be_called_twice(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "clip.mp4")))
    frames = source.frames()
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []
    assert list(source.frames()) == []


def test_a_source_closed_before_its_first_frame_gives_its_file_back() -> None:
    reader = FakeReader([(numbered(0), 0.0)])
    VideoFile("clip.mp4", reader=reader).close()
    assert reader.closed


STEP = 1 / FALLBACK_RATE
NAN = math.nan
EVEN = [index * 0.04 for index in range(10)]


@pytest.mark.parametrize(("fps", "raw_s", "wanted_s"), [
    (25.0, [5.0, 5.04, 5.08], [0, 0.04, 0.08]),
    (25.0, [0.0, 0.1, 0.13, 0.9], [0, 0.1, 0.13, 0.9]),
    (25.0, [0.0, 0.0, 0.0], [0, 0.04, 0.08]),
    (None, [0.0, 0.0, 0.0], [0, STEP, 2 * STEP]),
    (None, [NAN, NAN, NAN], [0, STEP, 2 * STEP]),
    (None, [NAN, 0.5, 0.54], [0, STEP, STEP + 0.04]),
    (None, [index / 1000 for index in range(4)], [0, STEP, 2 * STEP, 3 * STEP]),
    (25.0, [0.04, 0.08, 0.12, 0.0, 0.2], [0, 0.04, 0.08, 0.12, 0.16]),
    (25.0, [0.0, 0.04, 1e7, 0.12], [0, 0.04, 0.08, 0.12]),
    (25.0, [9.0, 9.04, 0.0, 0.05, 0.1], [0, 0.04, 0.08, 0.13, 0.18]),
    (25.0, [0.0, 0.04, math.inf, 0.12], [0, 0.04, 0.08, 0.12]),
    (25.0, [9.0, 9.04, 0.0, 0.05, 1e7, 0.15], [0, 0.04, 0.08, 0.13, 0.17, 0.23]),
], ids=["offset", "variable rate", "stuck", "stuck, no rate", "missing", "missing at first", "1000 per second",
        "one stamp missing", "one absurd", "timeline began anew", "infinite", "one absurd after a new beginning"])
def test_times_from_timestamps_of_any_quality(fps: float | None, raw_s: list[float], wanted_s: list[float]) -> None:
    time = StreamTime(fps)
    assert [time.next(stamp_s)[0] for stamp_s in raw_s] == pytest.approx(wanted_s)


@pytest.mark.parametrize(("raw_s", "missing"), [
    ([*EVEN, 0.60, 0.64], [0] * 10 + [5, 0]),
    ([*EVEN, 0.401, 0.44], [0] * 12),
    ([0, 0.1, 0.13, 0.4, 0.45, 0.9, 1.5, 1.51, 2.2], [0] * 9),
    ([0, 0.04, 1.0], [0, 0, 0]),
], ids=["hole", "jitter", "variable rate", "too early to tell"])
def test_a_hole_is_a_loss_only_where_frames_came_evenly(raw_s: list[float], missing: list[int]) -> None:
    time = StreamTime(25.0)
    assert [time.next(stamp_s)[1] for stamp_s in raw_s] == missing


@given(raw_s=st.lists(st.floats(), min_size=1, max_size=60), fps=st.sampled_from([None, 25.0]))
def test_whatever_the_timestamps_times_are_finite_and_rise(raw_s: list[float], fps: float | None) -> None:
    time = StreamTime(fps)
    times_s = [time.next(stamp_s)[0] for stamp_s in raw_s]
    assert times_s[0] == 0
    assert all(math.isfinite(time_s) for time_s in times_s)
    assert all(later > earlier for earlier, later in pairwise(times_s))


@pytest.mark.parametrize(("rate", "wanted_fps"), [(0, None), (1000, 30.0), (30, 30.0)])
def test_an_absurd_rate_in_the_header_does_no_harm(tmp_path: Path, rate: int, wanted_fps: float | None) -> None:
    path = write_video(tmp_path / "clip.avi")
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 20  # dwScale, dwRate
    data[at:at + 8] = (1).to_bytes(4, "little") + rate.to_bytes(4, "little")
    at = data.index(b"avih") + 8  # dwMicroSecPerFrame
    data[at:at + 4] = (1_000_000 // rate if rate else 0).to_bytes(4, "little")
    path.write_bytes(data)
    frames = frames_of(open_source(str(path)))
    assert len(frames) == 60
    if wanted_fps is not None:
        assert [frame.captured_at for frame in frames] == pytest.approx([index / wanted_fps for index in range(60)])


def test_a_rotated_video_is_upright(shared: Path) -> None:
    source = open_source(str(shared / "data/clips/decord_rot_90.mov"))
    frames = frames_of(source)
    assert source.info.size_hw == (568, 320)
    assert [frame.image_bgr.shape for frame in frames] == [(568, 320, 3)] * 3


@pytest.mark.parametrize(("name", "count", "fps"), [
    ("decord_flipping_a_pancake.mkv", 310, 30), ("gulpio_test.mp4", 140, 30), ("gulpio_test.webm", 140, 30),
    ("mmaction2_test.avi", 164, 25), ("torchcodec_h265_video.mp4", 10, 10), ("lavila_ego4d_012_014.mp4", 60, 30),
])
def test_real_files(shared: Path, name: str, count: int, fps: float) -> None:
    source = open_source(str(shared / "data/clips" / name))
    frames = frames_of(source)
    assert len(frames) == count
    assert source.lost == 0
    assert frames[-1].captured_at == pytest.approx((count - 1) / fps, abs=2e-3)


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), numbered(index))


NAMES = ["img1.png", "img2.png", "img10.png", "img11.png"]


@pytest.mark.parametrize("pattern", ["", "*.png", "img*"])
@pytest.mark.parametrize(("fps", "step_s"), [(None, 1 / 30), (5.0, 0.2)])
def test_a_folder_or_glob_is_a_stream_in_natural_order(tmp_path: Path, pattern: str, fps: float | None,
                                                       step_s: float) -> None:
    write_images(tmp_path / "walk", NAMES)
    (tmp_path / "walk/notes.txt").write_text("not an image")
    (tmp_path / "walk/._img1.png").write_bytes(b"left by a file manager")
    source = open_source(str(tmp_path / "walk" / pattern), fps=fps)
    assert (source.info.camera, source.info.live, source.info.frames) == ("walk", False, 4)
    frames = frames_of(source)
    assert [number_of(frame.image_bgr) for frame in frames] == [0, 1, 2, 3]
    assert [frame.captured_at for frame in frames] == pytest.approx([index * step_s for index in range(4)])


def test_an_unreadable_image_among_many_is_passed_over_and_counted(tmp_path: Path,
                                                                   capfd: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, NAMES)
    (tmp_path / "img2.png").write_bytes((tmp_path / "img2.png").read_bytes()[:40])
    (tmp_path / "img12.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    frames = frames_of(source)
    assert [(frame.index, frame.lost) for frame in frames] == [(0, 0), (2, 1), (3, 0)]
    assert [frame.captured_at for frame in frames] == pytest.approx([0, 2 / 30, 3 / 30])
    assert source.lost == 2
    assert capfd.readouterr() == ("", "")


def test_sizes_may_differ_in_a_folder(tmp_path: Path) -> None:
    for index, side in enumerate((1, 480, 33)):
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((side, side + 1, 3), np.uint8))
    assert [frame.image_bgr.shape for frame in frames_of(open_source(str(tmp_path)))] == [
        (1, 2, 3), (480, 481, 3), (33, 34, 3)]


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(SourceError, match="4 images, none readable"):
        frames_of(open_source(str(tmp_path)))


def test_one_image_is_a_stream_of_one(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES[:1])
    assert len(frames_of(open_source(str(tmp_path / NAMES[0])))) == 1


def test_a_folder_of_images_ends_when_closed(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    with open_source(str(tmp_path)) as source:
        frames = source.frames()
        next(frames)
        source.close()
        assert list(frames) == []


def test_real_folder(shared: Path) -> None:
    assert len(frames_of(open_source(str(shared / "data/clips/mmaction2_imgs")))) == 10


@pytest.mark.parametrize(("names", "wanted"), [
    (["b", "a10", "a9", "a"], ["a", "a9", "a10", "b"]),
    (["2.png", "10.png", "1.png"], ["1.png", "2.png", "10.png"]),
    (["x007", "x10", "x08"], ["x007", "x08", "x10"]),
])
def test_natural_order(names: list[str], wanted: list[str]) -> None:
    assert [str(path) for path in sorted(map(Path, names), key=natural_key)] == wanted


class Hands:
    """A clock that moves only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.1
        self.now_s += seconds


@pytest.mark.parametrize(("work_s", "wanted"), [
    (0.0, list(range(10))),
    (0.05, list(range(10))),
    (0.36, [0, 3, 7, 9]),
])
def test_a_file_played_at_its_own_pace_skips_what_is_late(tmp_path: Path, work_s: float, wanted: list[int]) -> None:
    write_images(tmp_path, [f"{index}.png" for index in range(10)])
    hands = Hands()
    source = PacedSource(ImageFiles(list(tmp_path.iterdir()), "walk", fps=10), hands.now, hands.sleep)
    frames = []
    for frame in source.frames():
        assert isinstance(frame, Frame)
        assert hands.now_s >= 100 + frame.captured_at - 1e-9
        frames.append(frame)
        hands.now_s += work_s
    assert [frame.index for frame in frames] == wanted
    check_laws(frames, source)
    assert source.lost == 10 - len(wanted)


def test_newest_on_a_file_is_paced_and_every_is_not(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    assert isinstance(open_source(str(tmp_path), policy="newest"), PacedSource)
    assert isinstance(open_source(str(tmp_path), policy="every"), ImageFiles)


def missing_folder(folder: Path) -> str:
    return str(folder / "none/clip.mp4")


@pytest.mark.parametrize(("spec", "words"), [
    (lambda folder: str(folder / "clop.mp4"), ["no such file", "did you mean clip.mp4"]),
    (lambda folder: str(folder / "CLIP.MP4"), ["no such file", "did you mean clip.mp4"]),
    (lambda folder: str(folder / "zzz"), ["no such file"]),
    (missing_folder, ["there is no folder", "none"]),
    (lambda folder: str(folder), ["a folder without images"]),
    (lambda folder: str(folder / "*.png"), ["no image has such a name"]),
    (lambda folder: str(folder / "*.mp4"), ["no image has such a name"]),
    (lambda folder: "/dev/null", ["neither a file nor a folder"]),
    (lambda folder: "", ["without a name"]),
    (lambda folder: "-1", ["no such file"]),
    (lambda folder: "ftp://bob:geheim@host/clip", ["ftp://", "rtsp://"]),
    (lambda folder: "zmq://host", ["zmq://host:port"]),
    (lambda folder: "zmq://host:99999", ["zmq://host:port"]),
    (lambda folder: "zmq://host:5555?color=red", ["?camera=NAME"]),
    (lambda folder: "rtsp://", ["an address with a host"]),
    (lambda folder: "http://host:99999/x", ["an address with a host"]),
])
def test_what_cannot_be_is_wrong_use(tmp_path: Path, spec: Callable[[Path], str], words: list[str]) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(UsageError) as error:
        open_source(spec(tmp_path))
    assert error.value.exit_code == 2
    for word in words:
        assert word in str(error.value)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": math.nan}, {"fps": 1e6}, {"policy": "some"}])
@pytest.mark.parametrize("spec", ["0", "clip.mp4"])
def test_wrong_options_are_wrong_use(spec: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        open_source(spec, **options)


@pytest.mark.parametrize("spec", ["0", "rtsp://host/x", "http://host/x"])
def test_a_live_camera_sets_its_own_rate(spec: str) -> None:
    with pytest.raises(UsageError, match="leave it out"):
        open_source(spec, fps=10)


@pytest.mark.parametrize("url", [
    "rtsp://bob:geheim@host:554/live", "rtsp://bob:geh/eim?@host:554/live", "http://host:554/live?token=geheim",
    "rtsp://host:554/live?user=bob&password=geheim", "rtsp://geheim@host:554/live",
])
def test_addresses_are_shown_without_secrets(url: str) -> None:
    shown = mask_secrets(url)
    assert shown.endswith("://host:554/live")
    assert shown.startswith(url.partition(":")[0])


@pytest.mark.parametrize("path", ["/user=bob&password=geheim&channel=1.sdp", "/ch1;token=geheim"])
def test_secrets_in_paths_are_masked(path: str) -> None:
    shown = mask_secrets("rtsp://host" + path)
    assert "geheim" not in shown
    assert "***" in shown


def test_errors_name_no_password() -> None:
    with pytest.raises(GatestreamError) as error:
        open_source("rtsp://bob:geheim@127.0.0.1:1/live")
    assert "geheim" not in str(error.value)
    assert "127.0.0.1:1/live" in str(error.value)


def test_naming_a_source_loads_no_other_kind() -> None:
    code = ("import sys; import stream.sources; "
            "print(sorted(set(sys.modules) & {'cv2', 'torch', 'stream.sources.reader', 'stream.sources.video'}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
