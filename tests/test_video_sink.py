"""The overlay, and the annotated video: it lasts as long as what it shows, and is whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from records import disk_of, event, frame, grey

from engines.errors import SinkError
from stream.frame import HeadScores, Prediction, Record
from stream.sinks.overlay import OverlayState, draw, label_colour
from stream.sinks.video import MAX_HOLD_S, MAX_SIDE, RESERVE_BYTES, AnnotatedVideo

# ---- overlay ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size_hw", [(1, 1), (59, 80), (60, 80), (120, 160), (480, 640), (854, 480), (64, 1920),
                                     (1080, 1920)])
def test_overlay_fits_any_size_and_leaves_the_image_alone(size_hw: tuple[int, int]) -> None:
    image = grey(*size_hw)
    state = OverlayState()
    long = HeadScores((("a label that is much too long for any bar", 0.5),), (("a label that is much too long", 2.0),))
    state.update([Prediction("0", 1, 2.0, False, {"verb": long, "noun": long}, (0.0, float(1), 0.5) * 20, {}, 5, 5),
                  event("a label that is much too long for any banner", open=True), event("up")], frame(2.0))
    drawn = draw(image, state)
    assert drawn.shape == image.shape
    assert (image == 128).all()
    assert (drawn != 128).any() == (size_hw[0] >= 60 and size_hw[1] >= 80)


def test_overlay_shows_bars_by_score_and_the_open_event_in_the_labels_colour() -> None:
    def pixels(score: float, *records: Record) -> int:
        state = OverlayState(background="background")
        scores = HeadScores((("left", score),), (("left", score),))
        state.update([Prediction("0", 1, 2.0, True, {"gesture": scores}, (), {}, 0, 0), *records], frame(2.0))
        colour = np.array(label_colour("left")[::-1])
        return int((draw(grey(480, 640), state) == colour).all(axis=2).sum())

    none, half, full, opened = pixels(0.0), pixels(0.5), pixels(1.0), pixels(1.0, event(open=True))
    assert none == 0
    assert half == pytest.approx(full / 2, rel=0.05)
    assert opened > full
    assert pixels(1.0, event(open=True), event()) < opened  # it has ended: no banner, only a dot in the list


def test_state_counts_times_from_the_first_frame() -> None:
    state = OverlayState()
    state.update([], frame(1_700_000_000.0))
    state.update([event(start=1_700_000_061.26)], frame(1_700_000_100.0))
    assert state.shown_time(state.closed[0].started_at) == "1:01.3"
    assert state.shown_time(state.captured_at) == "1:40.0"


# ---- annotated video -------------------------------------------------------------------------------------------

def read_back(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    reader = cv2.VideoCapture(str(path))
    assert reader.isOpened()
    images: list[NDArray[np.uint8]] = []
    while True:
        found, image = reader.read()
        if not found:
            break
        images.append(np.asarray(image, dtype=np.uint8))
    rate = float(reader.get(cv2.CAP_PROP_FPS))
    reader.release()
    return images, rate


def jittered(rate: float) -> list[float]:
    late = np.random.default_rng(0).uniform(-0.4, 0.4, 60)
    return [(index + float(late[index])) / rate for index in range(60)]


TIMINGS: dict[str, tuple[list[float], float | None, float]] = {
    # capture times, the source's stated rate, the rate of the video
    "constant": ([i / 25 for i in range(50)], 25.0, 25.0),
    "ntsc": ([i * 1001 / 30000 for i in range(90)], 30000 / 1001, 29.97),
    "live clock": ([1_700_000_000 + i / 30 for i in range(60)], 30.0, 30.0),
    "jitter": (jittered(30), 30.0, 30.0),
    "slower than stated": ([i / 7 for i in range(14)], 30.0, 30.0),
    "faster than stated": ([i / 100 for i in range(200)], 30.0, 30.0),
    "variable": ([0, 0.1, 0.15, 0.9, 1.0, 3.2, 3.21, 3.22], 30.0, 30.0),
    "no rate": ([i / 15 for i in range(30)], None, 30.0),
    "zero rate": ([i / 15 for i in range(30)], 0.0, 30.0),
    "absurd rate": ([i / 15 for i in range(30)], 90_000.0, 30.0),
    "not a rate": ([i / 15 for i in range(30)], float("nan"), 30.0),
    "one frame": ([7.0], 30.0, 30.0),
}


@pytest.mark.parametrize("case", TIMINGS)
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_the_video_lasts_as_long_as_the_capture(tmp_path: Path, case: str, suffix: str) -> None:
    times, stated, rate = TIMINGS[case]
    path = tmp_path / f"out{suffix}"
    with AnnotatedVideo(path, stated) as video:
        for captured_at in times:
            video.write(frame(captured_at), [])
            video.write(None, [])
    images, header = read_back(path)
    assert header == pytest.approx(rate, abs=1e-3)
    assert len(images) / rate == pytest.approx(times[-1] - times[0] + 1 / rate, abs=1 / rate)
    assert sorted(tmp_path.iterdir()) == [path]


def test_each_image_is_shown_from_its_capture_until_the_next(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "out.avi", 10.0) as video:
        for captured_at, value in ((0.0, 40), (0.5, 120), (0.52, 250), (0.8, 200)):
            video.write(frame(captured_at, grey(value=value)), [])
    images, _ = read_back(tmp_path / "out.avi")
    assert [round(float(image[40:80].mean()) / 40) for image in images] == [1] * 5 + [3] * 3 + [5]


@pytest.mark.parametrize(("times", "seconds"), [([0, 0.1, 86_400, 86_400.1], MAX_HOLD_S + 0.2),
                                                ([50, 50.1, 3, 3.1], 0.3)])
def test_long_pauses_are_cut_and_time_running_backwards_goes_on(tmp_path: Path, times: list[float],
                                                               seconds: float) -> None:
    with AnnotatedVideo(tmp_path / "out.avi", 10.0) as video:
        for captured_at in times:
            video.write(frame(captured_at), [])
    images, rate = read_back(tmp_path / "out.avi")
    assert len(images) / rate == pytest.approx(seconds + 1 / rate, abs=1 / rate)


@pytest.mark.parametrize(("first_hw", "wanted_hw"), [
    ((120, 160), (120, 160)), ((121, 161), (120, 160)), ((1, 1), (16, 16)), ((6000, 8000), (1440, MAX_SIDE)),
    ((4000, 1000), (MAX_SIDE, 480))])
def test_the_first_image_sets_an_even_bounded_size(tmp_path: Path, first_hw: tuple[int, int],
                                                   wanted_hw: tuple[int, int]) -> None:
    with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
        for index, size_hw in enumerate((first_hw, (50, 300), (300, 51))):
            video.write(frame(index / 10, grey(*size_hw, value=200)), [])
    images, _ = read_back(tmp_path / "out.mp4")
    assert [image.shape[:2] for image in images] == [wanted_hw] * 3


def test_an_image_of_another_shape_is_fitted_in_with_black_borders(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "out.avi", 10.0) as video:
        video.write(frame(0.0, grey(50, 50, 200)), [])
        video.write(frame(0.1, grey(50, 100, 200)), [])
    second = read_back(tmp_path / "out.avi")[0][1].astype(int)
    assert second[:10].max() < 30
    assert second[-10:].max() < 30
    assert abs(second[17:33] - 200).max() < 30


def test_no_frame_no_video_and_an_older_video_is_kept_until_the_new_one_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"older")
    AnnotatedVideo(path).close()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]
    with AnnotatedVideo(path) as video:
        video.write(frame(0.0), [])
        assert path.read_bytes() == b"older"
    assert len(read_back(path)[0]) == 1


def test_the_video_is_finished_when_the_run_is_interrupted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
            video.write(frame(0.0), [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(read_back(tmp_path / "out.mp4")[0]) == 1


def test_a_kind_of_video_we_cannot_write_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"out\.gif.*\.mp4"):
        AnnotatedVideo(tmp_path / "out.gif")


def test_a_disk_that_fills_up_leaves_a_video_that_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
        video.write(frame(0.0), [])
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=RESERVE_BYTES - 1))
        with pytest.raises(SinkError, match="MB free"):
            video.write(frame(0.1), [])
    assert len(read_back(tmp_path / "out.mp4")[0]) == 1


def test_a_video_that_could_not_be_written_is_never_taken_for_a_good_one(tmp_path: Path,
                                                                         capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)

    def write() -> None:
        with AnnotatedVideo(tmp_path / "out.mp4", 10.0) as video:
            for index in range(20):
                video.write(frame(index / 10, noise), [])

    with disk_of(5_000), pytest.raises(SinkError, match="failed: File too large"):
        write()
    assert not (tmp_path / "out.mp4").exists()
    capfd.readouterr()  # what the codecs say about it
