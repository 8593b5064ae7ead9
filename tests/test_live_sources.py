"""Live cameras: the mailbox, reconnection, patience, and a real stream over HTTP that breaks off."""

from __future__ import annotations

import itertools
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import videos
from fakes import FakeCapture

from engines.errors import SourceError
from stream.frame import Frame, Gap, Image
from stream.sources import open_source
from stream.sources.base import Policy
from stream.sources.live_clock import BELIEVED_S, LiveClock
from stream.sources.mailbox import Mailbox
from stream.sources.network import open_network
from stream.sources.reader import Capture, LiveSource, Timeouts, Timing, connect_within
from stream.sources.webcam import Webcam

PICTURE: Image = np.full((8, 8, 3), 99, np.uint8)
PATIENCE = Timeouts(open_s=1.0, give_up_s=60.0, first_pause_s=1.0, longest_pause_s=8.0)
LIMIT_S = 10.0  # how long a test waits for what should come at once


def frame(index: int, lost: int = 0) -> Frame:
    return Frame(PICTURE, index / 10, index, "0", lost)


def pictures(count: int) -> list[Any]:
    return [(PICTURE, 0.0)] * count


class FakeTime:
    """Sleeping moves both clocks, and nothing else does."""

    def __init__(self) -> None:
        self.steady_s = 0.0
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.steady_s += seconds
        self.slept_s.append(seconds)

    def timing(self, chance: float = 1.0) -> Timing:
        return Timing(lambda: 1000 + self.steady_s, lambda: self.steady_s, self.sleep, lambda: chance)


def live(captures: list[Capture | None], policy: Policy = "every", timing: Timing | None = None) -> LiveSource:
    """A source that connects to `captures` one after the other, and then to nothing any more."""
    waiting = iter(captures)
    return LiveSource(lambda: next(waiting, None), "camera", "cam", PATIENCE, policy, timing or FakeTime().timing())


# -- the mailbox ------------------------------------------------------------------------------------------------------

def test_with_newest_the_latest_frame_takes_over_what_it_replaces() -> None:
    mailbox = Mailbox(1, newest=True)
    gap = Gap("0", 1.0, 0.5, "reconnected")
    mailbox.put(frame(0), (gap,))
    mailbox.put(frame(1))
    mailbox.put(frame(4, lost=2))
    assert mailbox.take(0, lambda: 0.0) == (frame(4, lost=4), (gap,))


def test_with_every_the_writer_waits_for_room() -> None:
    mailbox = Mailbox(2, newest=False)
    writer = threading.Thread(target=lambda: [mailbox.put(frame(index)) for index in range(50)], daemon=True)
    writer.start()
    posts = [mailbox.take(LIMIT_S, lambda: 0.0) for _ in range(50)]
    writer.join(LIMIT_S)
    assert not writer.is_alive()
    assert [post[0] for post in posts if post] == [frame(index) for index in range(50)]


def test_a_writer_waiting_for_room_ends_when_the_mailbox_is_closed() -> None:
    mailbox = Mailbox(1, newest=False)
    mailbox.put(frame(0))
    writer = threading.Thread(target=mailbox.put, args=(frame(1),), daemon=True)
    writer.start()
    mailbox.close()
    writer.join(LIMIT_S)
    assert not writer.is_alive()
    assert mailbox.take(LIMIT_S, lambda: 0.0) is None


def test_what_the_reader_died_of_comes_after_the_frames_it_left() -> None:
    mailbox = Mailbox(4, newest=False)
    mailbox.put(frame(0))
    mailbox.close(RuntimeError("driver"))
    assert mailbox.take(0, lambda: 0.0) == (frame(0), ())
    with pytest.raises(RuntimeError, match="driver"):
        mailbox.take(0, lambda: 0.0)


def test_patience_ends() -> None:
    now_s = itertools.count()
    with pytest.raises(TimeoutError):
        Mailbox(1, newest=True).take(1.0, lambda: float(next(now_s)))


# -- cameras ----------------------------------------------------------------------------------------------------------

def test_a_camera_that_drops_is_reconnected_and_the_hole_told() -> None:
    time = FakeTime()
    first, second = FakeCapture(pictures(3)), FakeCapture(pictures(2))
    with live([first, None, None, second], timing=time.timing()) as source:
        items = list(itertools.islice(source.frames(), 6))
    assert [type(item) for item in items] == [Frame, Frame, Frame, Gap, Frame, Frame]
    assert [item.index for item in items if isinstance(item, Frame)] == [0, 1, 2, 3, 4]
    gap = items[3]
    assert isinstance(gap, Gap)
    assert gap == Gap("cam", pytest.approx(1007.0), pytest.approx(7.0, abs=0.01), "reconnected")
    assert first.released


@pytest.mark.parametrize(("chance", "pauses_s"), [(1.0, [1, 2, 4, 8, 8, 8, 1]), (0.0, [0.5, 1, 2, 4, 4, 4, 0.5])])
def test_pauses_double_up_to_the_longest_and_start_small_after_a_frame(chance: float, pauses_s: list[float]) -> None:
    time = FakeTime()
    tried_at_s: list[float] = []
    captures: Iterator[Capture | None] = iter(
        [FakeCapture([]), None, None, None, None, None, FakeCapture(pictures(1)), FakeCapture(pictures(1))])

    def connect() -> Capture | None:
        tried_at_s.append(time.steady_s)
        return next(captures, None)

    with LiveSource(connect, "camera", "cam", PATIENCE, "every", time.timing(chance)) as source:
        assert len(list(itertools.islice(source.frames(), 4))) == 4
    assert np.diff(tried_at_s)[:7] == pytest.approx(pauses_s)
    assert max(time.slept_s) <= 0.1 + 1e-9  # so that close is noticed


def test_a_camera_that_opens_but_gives_nothing_is_asked_less_and_less_often() -> None:
    time = FakeTime()
    captures: list[Capture | None] = [FakeCapture([]) for _ in range(4)]
    with live([*captures, FakeCapture(pictures(1))], timing=time.timing()) as source:
        next(source.frames())
    assert sum(time.slept_s) >= 1 + 2 + 4 + 8 - 1e-6


def test_a_camera_that_does_not_come_back_is_an_error() -> None:
    source = live([FakeCapture(pictures(2))])
    frames = source.frames()
    assert [next(frames).camera for _ in range(2)] == ["cam", "cam"]
    with pytest.raises(SourceError, match="camera: no frame for 60 s"):
        next(frames)


def test_a_camera_that_hangs_is_an_error_too() -> None:
    hold, looks = threading.Event(), itertools.count()

    class Hanging(FakeCapture):
        def grab(self) -> float | None:
            hold.wait(LIMIT_S)
            return None

    def steady() -> float:
        look = next(looks)
        if look == 1:  # patience is over by then; the reader may go, so that the test need not wait for it
            hold.set()
        return look * (PATIENCE.give_up_s + 1)

    source = live([Hanging([])], timing=Timing(steady=steady))
    with pytest.raises(SourceError, match="no frame for 60 s"):
        next(source.frames())


def test_what_kills_the_reader_reaches_who_waits() -> None:
    capture = FakeCapture([*pictures(2), RuntimeError("driver is gone")])
    frames = live([capture]).frames()
    assert [next(frames).camera for _ in range(2)] == ["cam", "cam"]
    with pytest.raises(RuntimeError, match="driver is gone"):
        next(frames)
    assert capture.released


def test_pictures_that_cannot_be_used_are_counted() -> None:
    script = [(PICTURE, 0.0), (None, 0.0), (np.zeros((8, 8, 2), np.uint8), 0.0), (PICTURE, 0.0)]
    with live([FakeCapture(script)]) as source:
        frames = list(itertools.islice(source.frames(), 2))
        assert [(item.index, item.lost) for item in frames if isinstance(item, Frame)] == [(0, 0), (3, 2)]
        assert source.lost == 2


@pytest.mark.parametrize("policy", ["auto", "newest"])
def test_newest_frame_wins_and_the_overwritten_are_counted(policy: Policy) -> None:
    drained = threading.Event()
    captures: Iterator[Capture] = iter([FakeCapture(pictures(10))])

    def connect() -> Capture | None:
        capture = next(captures, None)
        if capture is None:
            drained.set()
        return capture

    with LiveSource(connect, "camera", "cam", PATIENCE, policy, FakeTime().timing()) as source:
        frames = source.frames()
        taken = [next(frames)]
        assert drained.wait(LIMIT_S)
        if taken[0].index < 9:
            taken.append(next(frames))
    assert taken[-1].index == 9
    assert [item.index + 1 for item in taken] == list(itertools.accumulate(item.lost + 1 for item in taken))
    assert source.lost == 10 - len(taken)


def test_every_gives_all_frames_however_late_they_are_taken() -> None:
    with live([FakeCapture(pictures(300))]) as source:
        frames = list(itertools.islice(source.frames(), 300))
    assert [item.index for item in frames if isinstance(item, Frame)] == list(range(300))
    assert source.lost == 0


def endless(stop: Callable[[], None]) -> FakeCapture:
    """Gives three frames, calls `stop`, and then fails for ever."""
    def script() -> Iterator[Any]:
        yield from pictures(3)
        stop()
    return FakeCapture(script())


def test_close_from_another_thread_ends_the_stream() -> None:
    sources: list[LiveSource] = []
    capture = endless(lambda: threading.Thread(target=sources[0].close).start())
    sources.append(live([capture], timing=Timing()))
    assert len(list(sources[0].frames())) <= 3
    assert capture.released


def test_close_from_a_signal_handler_ends_the_stream() -> None:
    capture = endless(lambda: signal.raise_signal(signal.SIGTERM))
    source = live([capture], timing=Timing())
    before = signal.signal(signal.SIGTERM, lambda number, where: source.close())
    try:
        assert len(list(source.frames())) <= 3
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capture.released


def test_a_source_closed_before_its_first_frame_gives_its_camera_back() -> None:
    capture = FakeCapture(pictures(1))
    source = live([capture])
    source.close()
    assert capture.released
    assert list(source.frames()) == []


# -- opening ----------------------------------------------------------------------------------------------------------

def test_no_such_webcam(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match="webcam 987: cannot be opened"):
        open_source("987")
    assert capfd.readouterr() == ("", "")


def test_a_webcam_is_live_and_named_by_its_number() -> None:
    source = Webcam(3, connect=lambda: FakeCapture(pictures(1), fps=30.0), timing=FakeTime().timing())
    assert (source.info.camera, source.info.live, source.info.fps) == ("3", True, 30.0)
    source.close()


def test_opening_takes_no_longer_than_its_limit() -> None:
    hold = threading.Event()

    def connect() -> Capture | None:
        hold.wait(LIMIT_S)
        return None

    with pytest.raises(SourceError, match=r"no answer within 0\.05 s"):
        connect_within(0.05, connect, "camera")
    hold.set()


def test_what_opening_raises_reaches_the_caller() -> None:
    def connect() -> Capture | None:
        raise RuntimeError("driver")
    with pytest.raises(RuntimeError, match="driver"):
        connect_within(LIMIT_S, connect, "camera")


@pytest.mark.parametrize("url", ["rtsp://127.0.0.1:1/live", "rtsps://127.0.0.1:1/live", "http://127.0.0.1:1/live"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(SourceError, match="cannot be opened") as error:
        open_source(url)
    assert url in error.value.got


# -- over HTTP --------------------------------------------------------------------------------------------------------

@contextmanager
def served(handler: Any) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(LIMIT_S)


class MjpegCamera(BaseHTTPRequestHandler):
    """Sends eight pictures and hangs up. Brighter each time it is connected to."""

    connections = 0

    def do_GET(self) -> None:
        cls = type(self)
        cls.connections += 1
        picture = np.full((48, 64, 3), 40 * cls.connections, np.uint8)
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        self.end_headers()
        head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
        for _ in range(8):
            self.wfile.write(head + jpeg + b"\r\n")

    def log_message(self, *parts: Any) -> None:
        pass


def test_an_http_camera_that_hangs_up_is_reconnected() -> None:
    class Camera(MjpegCamera):
        pass

    with served(Camera) as address:
        source = open_network(address + "/live?token=geheim", policy="every", timing=FakeTime().timing())
        assert (source.info.camera, source.info.live, source.info.size_hw) == (address + "/live", True, (48, 64))
        items: list[Frame | Gap] = []
        for item in source.frames():
            items.append(item)
            if sum(isinstance(known, Gap) for known in items) == 2:
                break
        source.close()
    gaps = [item for item in items if isinstance(item, Gap)]
    frames = [item for item in items if isinstance(item, Frame)]
    assert [gap.action for gap in gaps] == ["reconnected"] * 2
    assert len(frames) >= 10
    assert [item.index for item in frames] == list(range(len(frames)))
    assert {round(float(item.image_bgr.mean()) / 40) for item in frames} == {1, 2}
    assert Camera.connections >= 3


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *parts: Any) -> None:
        pass


def test_a_video_over_http_is_a_file_and_ends(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30.0, (64, 48))
    for _ in range(20):
        writer.write(np.full((48, 64, 3), 99, np.uint8))
    writer.release()
    with served(partial(QuietFiles, directory=str(tmp_path))) as address, open_source(address + "/clip.avi") as source:
        assert (source.info.camera, source.info.live) == (address + "/clip.avi", False)
        frames = list(source.frames())
    assert len(frames) == 20
    last = frames[-1]
    assert isinstance(last, Frame)
    assert last.captured_at == pytest.approx(19 / 30)


def test_a_page_that_is_no_stream_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>not a camera</p>")
    with served(partial(QuietFiles, directory=str(tmp_path))) as address:
        for name in ("/page.html", "/none"):
            with pytest.raises(SourceError, match="cannot be opened"):
                open_source(address + name)


class Answers(BaseHTTPRequestHandler):
    """/401 and the like answer with that number; /image with one, each brighter; /secret only to bob."""

    def do_GET(self) -> None:
        path, cls = self.path.partition("?")[0][1:], type(self)
        cls.requests = getattr(cls, "requests", 0) + 1
        if path == "secret" and self.headers.get("Authorization") != "Basic Ym9iOnBhI3NzQA==":
            path = "401"
        if path.isdecimal():
            self.send_response(int(path))
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        picture = np.full((48, 64, 3), min(20 * cls.requests, 255), np.uint8)
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        self.wfile.write(cv2.imencode(".jpg", picture)[1].tobytes())

    def log_message(self, *parts: Any) -> None:
        pass


@pytest.mark.parametrize(("path", "words"), [
    ("/401", "refuses the user or the password (401)"), ("/403", "(403)"), ("/404", "no such path (404)"),
    ("/500", "answers with an error"), ("/503", "answers with an error")])
def test_causes_are_told_apart(path: str, words: str) -> None:
    with served(Answers) as address, pytest.raises(SourceError) as error:
        open_source(address + path)
    assert words in error.value.got
    assert "plugged" not in str(error.value)


@pytest.mark.parametrize(("url", "words"), [
    ("http://no-such-host.invalid/x", "no host of the name no-such-host.invalid"),
    ("rtsp://no-such-host.invalid/x", "no host of the name no-such-host.invalid"),
    ("http://127.0.0.1:1/x", "connection refused"), ("rtsp://127.0.0.1:1/x", "connection refused")])
def test_hosts_that_are_not_there(url: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        open_source(url)


def test_a_page_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>not a camera</p>")
    with served(partial(QuietFiles, directory=str(tmp_path))) as address, \
            pytest.raises(SourceError, match="answers with text/html, which is no video or image"):
        open_source(address + "/page.html")


def test_an_address_that_gives_one_image_is_asked_again() -> None:
    class Camera(Answers):
        pass

    with served(Camera) as address, open_source(address + "/image", policy="every") as source:
        assert source.info.live
        assert "single images" in source.notes[0]
        greys = [round(float(item.image_bgr.mean())) for item in itertools.islice(source.frames(), 4)
                 if isinstance(item, Frame)]
    assert len(greys) == 4
    assert greys == sorted(set(greys))


@pytest.mark.parametrize("user", ["bob:pa#ss@@", "bob:pa%23ss%40@"])
def test_a_password_may_hold_any_character(user: str) -> None:
    with served(Answers) as address:
        source = open_source(address.replace("http://", f"HTTP://{user}") + "/secret?channel=2&token=x", policy="every")
        with source:
            assert source.info.camera == address + "/secret?channel=2"
            assert isinstance(next(source.frames()), Frame)


def test_a_program_ends_well_while_a_driver_waits_for_a_frame() -> None:
    class Slow(MjpegCamera):
        def do_GET(self) -> None:
            with suppress(OSError):
                super().do_GET()
                leave.wait(LIMIT_S)

    leave = threading.Event()
    code = ("import sys, threading, cv2\nfrom stream.commands.start import leave_drivers\n"
            "camera, inside = cv2.VideoCapture(sys.argv[1]), threading.Event()\n"
            "def read():\n    while camera.grab():\n        inside.set()\n"
            "threading.Thread(target=read, name='reader of it', daemon=True).start()\n"
            "inside.wait()\nprint('done', end='')\nsys.exit(leave_drivers(3))\n")
    with served(Slow) as address:
        done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=LIMIT_S)
        leave.set()
    assert (done.returncode, done.stdout, done.stderr) == (3, "done", "")


# -- times ------------------------------------------------------------------------------------------------------------

def placed(stated_s: list[float], came_s: list[float], paced: bool = False) -> list[float]:
    """Steady times of frames that state these times and come at those."""
    coming = iter([0.0, *came_s])  # the clock looks once when it begins
    clock = LiveClock(lambda: 1e9, lambda: next(coming))
    clock.restart(25.0)
    return [clock.place(stamp_s, paced) for stamp_s in stated_s]


STEADY = [k / 25 for k in range(250)]


@pytest.mark.parametrize("delays_s", [
    [0.05] * 250, [0.05 + 0.03 * (k % 5) for k in range(250)],
    [0.05 + (0.96 - 0.04 * (k - 100) if 100 <= k < 125 else 0) for k in range(250)]],
    ids=["none", "jitter", "held up for a second"])
def test_what_the_network_delays_moves_no_frame(delays_s: list[float]) -> None:
    times_s = placed([77 + stamp_s for stamp_s in STEADY], [stamp_s + delay_s for stamp_s, delay_s in
                                                            zip(STEADY, delays_s, strict=True)])
    assert [time_s - times_s[0] for time_s in times_s] == pytest.approx(STEADY, abs=0.012)


@pytest.mark.parametrize("speed", [0.9997, 1.0003])
def test_a_camera_whose_clock_runs_wrong_is_followed(speed: float) -> None:
    hours_s = [k * 1.0 for k in range(4 * 3600)]
    times_s = placed([speed * stamp_s for stamp_s in hours_s], hours_s)
    assert times_s == pytest.approx(hours_s, abs=0.05)


@pytest.mark.parametrize("stated_s", [
    [0.5 * stamp_s for stamp_s in STEADY], [3 * stamp_s for stamp_s in STEADY], [math.nan] * 250, [0.0] * 250,
    [stamp_s if k < 100 else stamp_s - 4 for k, stamp_s in enumerate(STEADY)],
    [stamp_s if k < 100 else stamp_s + 4e4 for k, stamp_s in enumerate(STEADY)]],
    ids=["half as fast", "three times as fast", "none", "stuck", "running back", "jumping ahead"])
def test_times_that_are_wrong_lead_nowhere(stated_s: list[float]) -> None:
    times_s = placed(stated_s, STEADY)
    assert all(later > earlier for earlier, later in itertools.pairwise(times_s))
    assert max(abs(time_s - came_s) for time_s, came_s in zip(times_s, STEADY, strict=True)) < BELIEVED_S + 0.1


def test_segments_that_come_at_once_are_played_at_their_own_times() -> None:
    came_s = [10 + 2 * (k // 50) for k in range(250)]  # two seconds of film every two seconds, in one piece
    times_s = placed([500 + stamp_s for stamp_s in STEADY], [float(one) for one in came_s], paced=True)
    assert times_s == pytest.approx([10 + stamp_s for stamp_s in STEADY])


def test_a_paced_stream_that_stood_still_goes_on_from_there() -> None:
    came_s = [10 + 2 * (k // 50) + (30 if k >= 100 else 0) for k in range(250)]
    times_s = placed(STEADY, [float(one) for one in came_s], paced=True)
    assert times_s == pytest.approx([10 + stamp_s + (30 if k >= 100 else 0) for k, stamp_s in enumerate(STEADY)])


def test_a_burst_is_given_at_its_own_times() -> None:
    time, grabbed_s = FakeTime(), []

    def burst() -> Iterator[tuple[Image, float]]:
        for k in range(50):
            grabbed_s.append(time.steady_s)
            yield PICTURE, 500 + k / 25

    capture = FakeCapture(burst(), fps=25.0, paced=True)
    with live([capture], timing=time.timing()) as source:
        items = list(itertools.islice(source.frames(), 50))
    assert [item.captured_at for item in items if isinstance(item, Frame)] == pytest.approx(
        [1000 + k / 25 for k in range(50)])
    assert grabbed_s[1:] == pytest.approx([k / 25 for k in range(49)])  # no frame is read before the last one is due


def test_hls_is_played_at_its_own_pace(tmp_path: Path) -> None:
    videos.write(tmp_path / "live.m3u8", container="hls")
    playlist = tmp_path / "live.m3u8"
    playlist.write_text(playlist.read_text().replace("#EXT-X-ENDLIST", ""))  # as one that goes on
    with served(partial(QuietFiles, directory=str(tmp_path))) as address:
        source = open_source(address + "/live.m3u8", policy="every")
        assert source.info.live
        with source:
            frames = list(itertools.islice(source.frames(), 20))  # a decoder holds the last ones back
    times_s = [item.captured_at for item in frames if isinstance(item, Frame)]
    assert [videos.number(item.image_bgr) for item in frames if isinstance(item, Frame)] == list(range(20))
    assert [time_s - times_s[0] for time_s in times_s] == pytest.approx([k / 25 for k in range(20)], abs=2e-3)
