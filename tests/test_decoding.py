"""What goes in is what was filmed: files of other people's cameras, read live and for training."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import videos
from av.stream import Disposition
from fakes import FakeEngine, FakeModel, FakeSink
from videos import COUNT, INTERLACED, RATE, SIZE_HW, difference, number, still, write

from engines.datasets import Media, Segment
from engines.datasets.check import inspect_recording
from engines.datasets.decode import decode_segment
from engines.decoding import video
from engines.decoding.images import read_image
from engines.decoding.paths import is_image, is_video, natural_key, normalise_label, printable, similar_labels
from engines.decoding.picture import PictureConverter
from engines.decoding.sanity import PictureMonitor
from engines.decoding.video import VideoReader
from engines.errors import DatasetError, FrameError, SourceError, UsageError
from engines.model.preprocess import fit
from stream.frame import Frame
from stream.recognizer import Recognizer
from stream.runner import record, run
from stream.sources import open_path, open_source
from stream.sources.base import Policy, Source
from stream.sources.network import StreamCapture
from stream.sources.reader import LiveSource, Timeouts
from stream.sources.replay import Replay, is_recording
from stream.teaching.support_videos import find_videos

LOSSY = 6.0  # grey levels, what coding and deinterlacing may change on average


def interlaced(stream: Any) -> None:
    stream.codec_context.flags |= INTERLACED


def turned(matrix: tuple[int, int, int, int]) -> Callable[[Any], None]:
    a, b, c, d = (65536 * one for one in matrix)
    return lambda stream: stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])


def stored(matrix: tuple[int, int, int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """The picture that a player turns into the upright one by this matrix: each pixel (x, y) goes to (ax+cy, bx+dy)."""
    a, b, c, d = matrix

    def unturn(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2] if a else image.shape[1::-1]
        y, x = np.mgrid[:height, :width]
        shown_x, shown_y = a * x + c * y, b * x + d * y
        return image[shown_y - shown_y.min(), shown_x - shown_x.min()]
    return unturn


def frames_of(source: Source) -> list[Frame]:
    with source:
        return [item for item in source.frames() if isinstance(item, Frame)]


def assert_as_filmed(path: Path, rate: float = RATE, count: int = COUNT, lossy: float = LOSSY,
                     size_hw: tuple[int, int] = SIZE_HW) -> Source:
    """Every frame once, upright, at its time; and the same pictures for training."""
    source = open_path(path)
    frames = frames_of(source)
    assert [number(frame.image_bgr) for frame in frames] == list(range(count))
    assert max(difference(frame.image_bgr, k) for k, frame in enumerate(frames)) < lossy
    assert {frame.image_bgr.shape[:2] for frame in frames} == {size_hw}
    assert [frame.captured_at for frame in frames] == pytest.approx([k / rate for k in range(count)], abs=2e-3)
    assert (source.lost, source.info.size_hw) == (0, size_hw)
    trained = decode_segment(Segment("a", Media(path)), rate, SIZE_HW)
    assert np.array_equal(trained, np.stack([fit(frame.image_bgr, SIZE_HW, SIZE_HW) for frame in frames]))
    return source


@pytest.mark.parametrize(("name", "options"), [
    ("i.mp4", {"codec": "libx264", "options": {"x264-params": "tff=1"}}),
    ("i.mkv", {"codec": "libx264", "options": {"x264-params": "bff=1"}}),
    ("i.ts", {"codec": "libx264", "options": {"x264-params": "tff=1"}}),
    ("i.mpg", {"codec": "mpeg2video", "options": {"b": "4M"}}),
    ("i.avi", {"codec": "mpeg4", "options": {"b": "4M"}})])
def test_interlaced_video_is_of_whole_lines(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    assert_as_filmed(write(tmp_path / name, setup=interlaced, **options))


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)]
                         + [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_every_turn_and_mirror_image_of_the_display_matrix(tmp_path: Path, matrix: tuple[int, int, int, int],
                                                           suffix: str) -> None:
    upright = (64, 64)  # so that a turned picture is stored in as many pixels
    path = write(tmp_path / f"turned{suffix}", setup=turned(matrix), shape=stored(matrix), size_hw=upright)
    frames = frames_of(open_path(path))
    assert [number(frame.image_bgr) for frame in frames] == list(range(COUNT))
    assert max(difference(frame.image_bgr, k) for k, frame in enumerate(frames)) < LOSSY


def test_telecined_film_is_of_whole_lines(tmp_path: Path) -> None:
    def telecined(image: np.ndarray) -> np.ndarray:
        """Of four pictures five: the third and the fourth are of the lines of two."""
        k = next(shown)
        upper, lower = (videos.picture(k // 5 * 4 + order[k % 5]) for order in ((0, 1, 1, 2, 3), (0, 1, 2, 3, 3)))
        return np.stack([upper[::2], lower[1::2]], 1).reshape(image.shape)

    shown = itertools.count()
    path = write(tmp_path / "film.mpg", codec="mpeg2video", options={"b": "6M"}, setup=interlaced, shape=telecined)
    numbers = [number(frame.image_bgr) for frame in frames_of(open_path(path))]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(24))


@pytest.mark.parametrize("pixels", ["yuv411p", "yuva420p", "gbrp16le", "yuv444p10le", "bgr0"])
def test_unusual_pixels(tmp_path: Path, pixels: str) -> None:
    assert_as_filmed(write(tmp_path / "a.mkv", codec="ffv1", pixels=pixels))


@pytest.mark.parametrize("bytes_kept", [0.6, 0.75])  # of the second FFmpeg opens what is left as if it were whole
def test_a_fragmented_file_is_read_up_to_where_it_is_cut(tmp_path: Path, bytes_kept: float) -> None:
    path = write(tmp_path / "a.mp4", options={"g": "5"}, container_options={
        "movflags": "frag_keyframe+empty_moov+default_base_moof"})
    path.write_bytes(path.read_bytes()[:round(bytes_kept * path.stat().st_size)])
    source = open_path(path)
    frames = frames_of(source)
    assert [number(frame.image_bgr) for frame in frames] == list(range(len(frames)))
    assert 5 <= len(frames) < COUNT
    assert source.notes == [f"{path} is cut off: what is before the cut is read"][:1 if bytes_kept == 0.6 else 0]
    assert inspect_recording(Media(path)).notes == tuple(source.notes)
    later = decode_segment(Segment("a", Media(path), 0.12), RATE, SIZE_HW)
    assert [number(image) for image in later] == list(range(3, len(frames)))


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.mp4"])
def test_a_file_cut_at_the_start_begins_with_its_first_whole_picture(tmp_path: Path, name: str) -> None:
    """Of an open group of pictures those before the first keyframe cannot be decoded."""
    path = write(tmp_path / "whole.ts", options={"bf": "3", "x264-params": "open-gop=1:keyint=10:min-keyint=10"})
    with av.open(str(path)) as whole, av.open(str(tmp_path / name), "w") as cut:
        stream, keyframes = cut.add_stream_from_template(whole.streams.video[0]), 0
        for packet in whole.demux(video=0):
            keyframes += packet.is_keyframe
            if packet.dts is not None and keyframes > 1:
                packet.stream = stream
                cut.mux(packet)
    frames = frames_of(open_path(tmp_path / name))
    assert [number(frame.image_bgr) for frame in frames] == list(range(10, COUNT))
    assert [frame.captured_at for frame in frames] == pytest.approx([k / RATE for k in range(COUNT - 10)], abs=2e-3)
    assert inspect_recording(Media(tmp_path / name)).fault == ""


def test_times_that_begin_anew_in_the_middle_lead_nowhere(tmp_path: Path) -> None:
    one, other = write(tmp_path / "1.ts", count=500), write(tmp_path / "2.ts", container_options={
        "mpegts_start_pid": "300"})
    path = tmp_path / "both.ts"
    path.write_bytes(one.read_bytes() + other.read_bytes())
    assert len(frames_of(open_path(path))) == 500
    found = inspect_recording(Media(path))
    assert (found.fault, found.seconds) == ("", pytest.approx(20.0))


def test_a_stream_that_appears_later_disturbs_nothing(tmp_path: Path) -> None:
    class Container:
        """Stumbles over a packet of an unknown stream as PyAV does."""

        def __init__(self, container: Any) -> None:
            self._container, self._stumbles = container, 3

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def demux(self, stream: Any) -> Any:
            for packet in self._container.demux(stream):
                yield packet
                self._stumbles -= 1
                if self._stumbles >= 0:
                    raise IndexError("list index out of range")

    reader: Any = VideoReader(write(tmp_path / "a.mp4"))
    reader._container = Container(reader._container)
    reader._seek(0.0)
    assert [number(frame.picture()) for frame in reader.frames()] == list(range(COUNT))


def test_a_stream_that_changes_its_codec_or_name_says_what_is_lost(tmp_path: Path) -> None:
    one, other = write(tmp_path / "1.ts"), write(tmp_path / "2.ts", codec="mpeg2video", options={"b": "4M"})
    path = tmp_path / "both.ts"
    path.write_bytes(one.read_bytes() + other.read_bytes())
    source = open_path(path)
    numbers = [number(frame.image_bgr) for frame in frames_of(source)]
    assert numbers == sorted({*numbers} - {-1})
    assert source.lost > 20
    assert inspect_recording(Media(path)).fault == "damaged"


@pytest.mark.parametrize(("name", "before"), [
    ("cover.mp4", partial(still, size_hw=(320, 320), count=1, disposition=Disposition.attached_pic)),
    ("cover.mkv", partial(still, size_hw=(320, 320), count=1)),
    ("preview.mkv", partial(still, size_hw=(32, 48), count=2)),
    ("preview.mov", partial(still, size_hw=(640, 480), count=2))])
def test_the_video_is_read_and_no_cover_or_preview(tmp_path: Path, name: str, before: Any) -> None:
    assert_as_filmed(write(tmp_path / name, before=before))


@pytest.mark.parametrize(("aspect", "shown_hw"), [
    (Fraction(1, 2), (128, 96)), (Fraction(2, 1), (64, 192)), (Fraction(4, 3), (64, 128)),
    (Fraction(100, 99), (64, 96)), (Fraction(1, 90), (64, 96))], ids=str)
def test_pixels_are_square(tmp_path: Path, aspect: Fraction, shown_hw: tuple[int, int]) -> None:
    def widen(stream: Any) -> None:
        stream.sample_aspect_ratio = aspect
    assert_as_filmed(write(tmp_path / "wide.mp4", setup=widen), size_hw=shown_hw, lossy=12.0)


@pytest.mark.parametrize(("name", "options"), [
    ("a.mp4", {}), ("a.mkv", {"codec": "libsvtav1", "options": {"crf": "20"}}), ("b.mp4", {"codec": "libx265"}),
    ("a.webm", {"codec": "libvpx-vp9", "options": {"b": "4M"}}),
    ("a.mov", {"codec": "prores", "pixels": "yuv422p10le"}),
    ("b.mkv", {"codec": "ffv1"}), ("c.mp4", {"pixels": "yuv422p10le"}), ("d.mp4", {"pixels": "yuvj420p"}),
    ("a.gif", {"codec": "gif", "pixels": "rgb8"}), ("a.apng", {"codec": "apng", "pixels": "rgb24"}),
    ("a.MTS", {"container": "mpegts"}), ("a.wmv", {"codec": "wmv2", "options": {"b": "4M"}, "container": "asf"}),
    ("a.flv", {"codec": "flv", "options": {"b": "4M"}}), ("a.ogv", {"codec": "libtheora", "options": {"b": "4M"}}),
    ("a.mxf", {"codec": "mpeg2video", "options": {"b": "4M"}}), ("a.m4v", {"container": "mp4"})])
def test_codecs_and_containers(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    try:
        path = write(tmp_path / name, **options)
    except ValueError as error:  # an encoder that this build of FFmpeg lacks
        pytest.skip(str(error))
    assert is_video(path)
    assert_as_filmed(path, lossy=20.0 if "gif" in name else 8.0)


@pytest.mark.parametrize("options", [{"bf": "3"}, {"bf": "0", "g": "1"}, {"bf": "2", "x264-params": "open-gop=1"}])
@pytest.mark.parametrize("offset", [0, 90, -3])
def test_times_count_from_the_first_frame(tmp_path: Path, options: dict[str, str], offset: int) -> None:
    assert_as_filmed(write(tmp_path / "a.mkv", options=options, times=[k + offset for k in range(COUNT)]))


def test_a_clock_that_jumps_costs_one_step_and_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "jump.mkv", times=[k if k < 15 else k + 5000 * RATE for k in range(COUNT)])
    source = open_path(path)
    frames = frames_of(source)
    assert [number(frame.image_bgr) for frame in frames] == list(range(COUNT))
    assert frames[-1].captured_at < 1.3
    assert len(decode_segment(Segment("a", Media(path)), RATE, SIZE_HW)) < 1.3 * RATE
    (line,) = source.notes
    assert "jump by 5000 s" in line
    assert line in inspect_recording(Media(path), deep=True).notes
    path = write(tmp_path / "jump.mp4", times=[k if k < 15 else k + 5000 * RATE for k in range(COUNT)])
    assert "30 frames, 1 s of them, in 5001 s" in inspect_recording(Media(path)).notes[0]


def test_a_stream_without_times_says_what_is_assumed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h264")
    source = open_path(path)
    assert len(frames_of(source)) == COUNT
    assert source.notes == [f"{path.absolute()} states no times: 25 frames/s are assumed"]
    source = open_path(path, fps=10)
    assert frames_of(source)[-1].captured_at == pytest.approx((COUNT - 1) / 10)


def test_the_size_may_change_in_the_middle(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{k}.ts", size_hw=size_hw) for k, size_hw in enumerate(((64, 96), (96, 128))))
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames = frames_of(open_path(path))
    assert [number(frame.image_bgr) for frame in frames] == [*range(COUNT)] * 2
    assert [frame.image_bgr.shape[:2] for frame in frames] == [(64, 96)] * COUNT + [(96, 128)] * COUNT


@pytest.mark.parametrize("name", ["with:colon.mp4", "50%.mp4", "new\nline.mp4", "[2024] (1).mp4", "-x.mp4", "über.mp4",
                                  "ü?*#.mp4", "esc\x1b[31m.mp4", os.fsdecode(b"byte\xff.mp4"), " .mp4", "1"])
def test_any_file_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    shutil.copy(write(tmp_path / "plain.mp4"), path)
    source = assert_as_filmed(path)
    assert source.info.camera.isprintable()
    source.info.camera.encode()
    monkeypatch.chdir(tmp_path)
    if name != "1":  # as a source that a user types it is a webcam
        assert len(frames_of(open_source(name))) == COUNT


def test_a_disk_that_fails_is_named_whoever_reads_for_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.FileIO):
        failed = False

        def read(self, size: int | None = -1, /) -> bytes:
            if self.failed:
                raise OSError(5, "Input/output error")
            return super().read(size)  # type: ignore[return-value]

    path = write(tmp_path / os.fsdecode(b"byte\xff.avi"), codec="rawvideo")  # of which much is left to read
    monkeypatch.setattr(video, "open", lambda path, mode: Failing(path, mode), raising=False)
    source = open_path(path)
    monkeypatch.setattr(Failing, "failed", True)
    with pytest.raises(SourceError, match=r"byte\\xff\.avi breaks off \(Input/output error\)"):
        list(source.frames())


@pytest.mark.parametrize("name", ["1", "[2024]", "with:colon", os.fsdecode(b"byte\xff")])
def test_any_folder_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for k in range(12):
        assert cv2.imwrite(str(tmp_path / "a.png"), videos.picture(k))
        shutil.move(tmp_path / "a.png", tmp_path / name / f"{k}_320x240.png")
    frames = frames_of(open_path(tmp_path / name))
    assert [number(frame.image_bgr) for frame in frames] == list(range(12))
    if name != "1":
        assert len(frames_of(open_source(str(tmp_path / name / "*.png")))) == 12
    trained = decode_segment(Segment("a", Media(tmp_path / name, 30.0, None)), 30.0, SIZE_HW)
    assert [number(image) for image in trained] == list(range(12))


@pytest.mark.parametrize(("name", "data", "word"), [
    ("letter.txt", b"hello\n" * 2000, "text"), ("a.mp4", b"\0" * 5000, "no video"),
    ("page.html", b"<html>" * 99, "no video"),
    ("sound.wav", b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\x08\0\0"
     + b"\0" * 2048, "no video")])
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, data: bytes, word: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=word):
        open_path(tmp_path / name)
    with pytest.raises(DatasetError):
        decode_segment(Segment("a", Media(tmp_path / name)), 5.0, SIZE_HW)


@pytest.mark.parametrize(("flags", "length", "animated"), [(2, 30, True), (0, 30, False), (2, 20, False)])
def test_an_animation_of_which_one_picture_is_read_is_said(tmp_path: Path, flags: int, length: int,
                                                           animated: bool) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes((b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes([flags]) + bytes(30))[:length])
    assert [("animation" in note) for note in open_path(path).notes] == [True] * animated
    png = tmp_path / "a.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(29) + (b"acTL" if animated else b"IDAT"))
    assert [("animation" in note) for note in open_path(png).notes] == [True] * animated


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name, words in (("pipe.mp4", "is no file"), ("link.mp4", "does not exist"), ("folder.mp4", "is no file")):
        with pytest.raises(DatasetError, match=words):
            decode_segment(Segment("a", Media(tmp_path / name)), RATE, SIZE_HW)
        with pytest.raises(UsageError):
            open_path(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FrameError, match="is no file"):
        read_image(tmp_path / "pipe.png")
    assert not is_recording(tmp_path / "pipe.mp4")
    (tmp_path / "data" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "data" / "a" / "pipe.mp4")
    assert [video.path.name for video in find_videos(tmp_path / "data", "none")] == ["pipe.mp4"]
    with pytest.raises(UsageError, match="a link, whose target is not there"):
        open_source(str(tmp_path / "link.mp4"))


class TestOnDemand:
    """Every frame is decoded; a picture is made of those that somebody looks at."""

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """The frames that are converted from now on."""
        made: list[object] = []
        convert = PictureConverter.convert
        monkeypatch.setattr(PictureConverter, "convert", lambda self, frame: made.append(frame) or convert(self, frame))
        return made

    @staticmethod
    def opened(path: Path, policy: Policy) -> Source:
        """The file, or the same as a stream of a camera."""
        if policy != "every":
            return open_path(path)
        return LiveSource(lambda: None, "a", "a", Timeouts(1.0, 60.0), policy, None,
                          StreamCapture(VideoReader(path, live=True)))

    @pytest.mark.parametrize("policy", ["auto", "every"])
    def test_a_picture_is_made_once_and_when_it_is_looked_at(self, tmp_path: Path, made: list[object],
                                                             policy: Policy) -> None:
        with self.opened(write(tmp_path / "a.mp4"), policy) as source:
            frames = list(itertools.islice(source.frames(), 20))
            assert len(made) == 1  # the first, by which it is known that the file is a video
            wanted = [frame for frame in frames[::4] if isinstance(frame, Frame)]
            for frame in (*wanted, *wanted):
                assert number(frame.image_bgr) == frame.index
                assert replace(frame, lost=3).image_bgr is frame.image_bgr
        assert len(made) == 5

    def test_a_run_makes_those_of_the_models_clock(self, tmp_path: Path, made: list[object]) -> None:
        model = FakeModel(frame_rate=5.0)
        summary = run(open_path(write(tmp_path / "a.mp4")), Recognizer(model, FakeEngine(model)), [FakeSink()])
        assert (summary.frames, summary.predictions, len(made)) == (COUNT, 6, 6)

    @pytest.mark.parametrize("broken", [{5}, {6}, {5, 6, 10}])
    def test_a_picture_that_cannot_be_made_costs_its_frame(self, tmp_path: Path, broken: set[int],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
        convert = PictureConverter.convert

        def fail(self: PictureConverter, frame: Any) -> np.ndarray:
            if round(frame.time * RATE) in broken:
                raise FrameError("a frame", "another", "wait")
            return convert(self, frame)

        monkeypatch.setattr(PictureConverter, "convert", fail)
        model = FakeModel(frame_rate=5.0)
        path, recognizer = write(tmp_path / "a.mkv"), Recognizer(model, FakeEngine(model))
        wanted = [k for k in (0, 5, 10, 15, 20, 25) if k in broken]  # by the clock; then the next frame is
        summary = run(open_path(path), recognizer)
        assert (summary.frames, summary.predictions, summary.dropped) == (
            COUNT, 6, len(wanted) + ({5, 6} <= broken))
        assert record(open_path(path), tmp_path / "a.frames") == (COUNT - len(broken), len(broken))
        replayed = [item for item in Replay(tmp_path / "a.frames").frames() if isinstance(item, Frame)]
        assert [frame.index for frame in replayed] == [k for k in range(COUNT) if k not in broken]
        assert sum(frame.lost for frame in replayed) == len(broken)


class TestNames:
    @pytest.mark.parametrize(("name", "wanted"), [
        ("a.mp4", True), ("a.MTS", True), ("a.wmv", True), ("a.m4v", True), ("._a.mp4", False), ("a.txt", False)])
    def test_one_table_of_endings(self, name: str, wanted: bool) -> None:
        assert is_video(Path(name)) == wanted
        assert not is_image(Path(name))

    def test_one_order(self) -> None:
        names = ["10_320x240.jpg", "2_320x240.jpg", "1_640x480.jpg", "b.jpg", "a.jpg"]
        assert sorted(names, key=natural_key) == ["1_640x480.jpg", "2_320x240.jpg", "10_320x240.jpg", "a.jpg", "b.jpg"]

    @pytest.mark.parametrize(("name", "wanted"), [
        ("u\u0308ber", "über"), (" wave  hand ", "wave hand"), ("esc\x1b[31m", "esc\\x1b[31m"),
        (os.fsdecode(b"a\xff"), "a\\xff")])
    def test_labels_in_one_form(self, name: str, wanted: str) -> None:
        assert normalise_label(name) == wanted
        assert printable(wanted) == wanted

    def test_labels_that_are_alike(self) -> None:
        assert similar_labels(["Wave", "wave", "pick up", "pick_up", "pour"]) == [
            ["Wave", "wave"], ["pick up", "pick_up"]]


class TestSanity:
    @staticmethod
    def lines(pictures: list[np.ndarray], step_s: float, rate: float | None = None, stated_s: float = 0.0) -> list[str]:
        monitor = PictureMonitor("a.mp4", rate, stated_s)
        return [line for k, image in enumerate(pictures) for line in monitor.add(k * step_s, image)] + monitor.finish()

    def test_what_a_camera_films_needs_no_line(self) -> None:
        assert self.lines([videos.picture(k % 32) for k in range(200)], 0.04, 25.0, 8.0) == []

    @pytest.mark.parametrize(("pictures", "step_s", "rate", "stated_s", "words"), [
        ([np.zeros((8, 8, 3), np.uint8)] * 93, 0.04, 25.0, 3.7, "of one colour"),
        ([videos.picture(0)] * 90, 1.0, None, 0.0, "has not changed for 60 s"),
        ([videos.picture(0)] * 20, 0.1, None, 0.0, "has not changed for 2 s"),
        ([videos.picture(0)], 1.0, None, 60.0, "one picture in a video that states 60.0 s"),
        ([videos.picture(k % 32) for k in range(100)], 0.1, 30.0, 0.0, "10 frames a second come, where 30 are stated")])
    def test_one_line_for_what_is_odd(self, pictures: list[np.ndarray], step_s: float, rate: float | None,
                                      stated_s: float, words: str) -> None:
        (line,) = self.lines(pictures, step_s, rate, stated_s)
        assert line.startswith("a.mp4: ")
        assert words in line

    def test_of_pictures_that_nobody_made_nothing_is_said(self) -> None:
        monitor = PictureMonitor("a.mp4", 25.0, 80.0)
        for k in range(2000):
            assert monitor.add(k / 25, None if k else videos.picture(0)) == []
        assert monitor.finish() == []

    def test_hours_with_seconds_of_picture(self) -> None:
        monitor = PictureMonitor("a.mp4")
        for k in range(40):
            monitor.add(k * 0.1 + (300 if k > 20 else 0), videos.picture(k % 32))
        (line,) = monitor.finish()
        assert "300.1 of its 303.9 s are without a picture" in line
