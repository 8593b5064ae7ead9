"""Cameras that the service opens itself: started, started again with growing pauses, ended when they fall silent."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zmq
from fakes import FakeSource

from engines.errors import SourceError
from stream.frame import Frame, Image
from stream.sender import send_frames
from stream.service.config import CameraConfig, Config
from stream.service.ingress import camera_process
from stream.service.ingress.admission import CameraSession
from stream.service.ingress.camera_process import OPENS_AGAIN_S, open_patiently, show_life
from stream.service.ingress.camera_supervisor import SILENT_AFTER_S, CameraSupervisor
from stream.service.ingress.receiver import Receiver
from stream.service.worker import processes
from stream.service.worker.processes import BACK_OFF_S, LASTING_S
from stream.sinks import mqtt, sink_thread
from stream.sources.reader import Timeouts


class FakeProcess:
    """Lives until it is ended, or has an exit code."""

    def __init__(self, request: dict[str, str]) -> None:
        self.request, self.pid, self.code, self.terminated = request, 4321, None, False
        self.code: int | None

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is not None, "waited for without a limit"
        if self.code is None:
            raise subprocess.TimeoutExpired("camera", timeout)
        return self.code

    def kill(self) -> None:
        self.code = -9

    def terminate(self) -> None:
        self.code, self.terminated = 0, True


class Bench:
    """A supervisor with a clock of their own; every process they started."""

    def __init__(self, *cameras: dict[str, Any]) -> None:
        self.now, self.processes, self.kind = 1000.0, [], FakeProcess
        self.processes: list[FakeProcess]
        self.supervisor = CameraSupervisor("ipc://here", lambda: self.now, self._start)  # type: ignore[arg-type]
        self.configure(*cameras)

    def _start(self, request: dict[str, str]) -> FakeProcess:
        self.processes.append(self.kind(request))
        return self.processes[-1]

    def configure(self, *cameras: dict[str, Any]) -> None:
        self.supervisor.configure(Config.model_validate({"camera": cameras}).camera)

    def after(self, seconds: float, **sessions: CameraSession) -> int:
        """Processes started so far, when time has gone on and everyone is looked at."""
        self.now += seconds
        self.supervisor.supervise(sessions)
        return len(self.processes)


def seen(last_at: float, changed_at: float) -> CameraSession:
    """A camera whose last frame came, and whose picture last changed, at these times."""
    return CameraSession("a", CameraConfig(name="a"), True, last_at=last_at, changed_at=changed_at)


@pytest.fixture(autouse=True)
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.random, "random", lambda: 1.0)


RTSP = {"name": "a", "source": "rtsp://cell/1"}


def test_each_source_has_a_process_but_publishers_and_those_who_dial() -> None:
    bench = Bench(RTSP, {"name": "b", "source": "0"}, {"name": "c"}, {"name": "d", "source": "zmq://cell:5555"})
    assert bench.after(0) == 2
    assert bench.processes[0].request == {"source": "rtsp://cell/1", "to": "ipc://here", "name": "a"}
    bench.configure({"name": "b", "source": "0"}, {"name": "e", "source": "1"})
    assert bench.processes[0].terminated
    assert not bench.processes[1].terminated
    assert bench.after(0) == 3
    bench.supervisor.close()
    assert all(process.terminated for process in bench.processes)


def test_one_that_fails_is_tried_again_with_growing_pauses() -> None:
    bench = Bench(RTSP)
    assert bench.after(0) == 1
    for k, pause_s in enumerate((*BACK_OFF_S["camera"], BACK_OFF_S["camera"][-1])):
        bench.processes[-1].code = 1
        bench.after(0)
        assert bench.after(0.9 * pause_s) == k + 1
        assert bench.after(0.2 * pause_s) == k + 2
    bench.after(LASTING_S + 1, a=seen(bench.now + LASTING_S, bench.now + LASTING_S))
    bench.processes[-1].code = 1
    started = bench.after(0)
    assert bench.after(1.1 * BACK_OFF_S["camera"][0]) == started + 1  # it lasted: the row begins anew


def test_a_recording_is_played_once() -> None:
    bench = Bench({"name": "a", "source": "sim://gestures?seconds=1"})
    assert bench.after(0) == 1
    bench.processes[0].code = 0
    assert bench.after(0) == 1
    assert bench.after(1000) == 1


@pytest.mark.parametrize(("source", "quiet_s", "same_s", "again"), [
    ("rtsp://cell/1", SILENT_AFTER_S + 1, 0, True), ("rtsp://cell/1", 1, SILENT_AFTER_S + 1, True),
    ("rtsp://cell/1", 1, 2, False), ("sim://gestures", 1, SILENT_AFTER_S + 1, False),
    ("sim://gestures", SILENT_AFTER_S + 1, 0, True),
])
def test_one_that_is_silent_or_frozen_is_opened_anew(source: str, quiet_s: float, same_s: float, again: bool) -> None:
    bench = Bench({"name": "a", "source": source})
    bench.after(0)
    bench.after(1, a=seen(bench.now, bench.now))
    bench.now += 100
    bench.after(0, a=seen(bench.now - quiet_s, bench.now - same_s))
    assert (bench.processes[0].code == -9) is again
    assert bench.after(2, a=seen(bench.now, bench.now)) == 1 + again


@pytest.mark.parametrize(("alive_s", "ended"), [(SILENT_AFTER_S - 1, False), (SILENT_AFTER_S + 1, True)])
def test_one_that_lives_may_wait_long_for_its_camera(alive_s: float, ended: bool) -> None:
    bench, away = Bench(RTSP), seen(0.0, 0.0)
    bench.after(0)
    away.alive_at = bench.now + 1000 - alive_s
    assert bench.after(1000, a=away) == 1
    assert (bench.processes[0].code == -9) is ended


def test_a_source_that_is_away_is_tried_again_in_the_same_process(monkeypatch: pytest.MonkeyPatch,
                                                                  caplog: pytest.LogCaptureFixture) -> None:
    away, source, pauses_s = SourceError("no answer", "an answer", "wait"), FakeSource([]), list[float]()
    answers = iter([*[away] * 9, source])

    def open_source(*_: object, **__: object) -> FakeSource:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(camera_process, "open_source", open_source)
    monkeypatch.setattr(camera_process.time, "sleep", pauses_s.append)
    assert open_patiently("rtsp://cell/1", "a") is source
    assert pauses_s == [1.0, 2.0, *[5.0] * 7]
    assert caplog.text.count("no answer") == 1


def test_a_driver_that_holds_a_thread_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    threading.Thread(target=held.wait, name="opening webcam 0", daemon=True).start()

    def open_source(*_: object, **__: object) -> FakeSource:
        raise SourceError("no answer within 10 s", "a camera", "plug it in")

    monkeypatch.setattr(camera_process, "open_source", open_source)
    with pytest.raises(SourceError):
        open_patiently("0", "a")
    held.set()


def test_a_process_shows_that_it_lives_before_it_has_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_process, "ALIVE_EVERY_S", 0.01)
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        receiver = Receiver(Config.model_validate({"camera": [RTSP], "receive": {"bind": ["tcp://127.0.0.1:*"]}}),
                            lambda records: None, context)
        receiver.open(f"ipc://{folder}/worker", f"ipc://{folder}/own")
        thread = threading.Thread(target=show_life, args=(f"ipc://{folder}/own", "a", ended))
        thread.start()
        latest_at = [receiver.sessions["a"].alive_at]
        until = time.monotonic() + 20
        while len(latest_at) < 3:
            assert time.monotonic() < until, "no sign of life came"
            receiver._poll_once(0.01)
            if receiver.sessions["a"].alive_at > latest_at[-1]:
                latest_at.append(receiver.sessions["a"].alive_at)
        assert not receiver.sessions["a"].present
        assert not receiver.refused
        ended.set()
        thread.join(20)
        receiver._close(0)


@pytest.mark.parametrize("longest_s", [
    OPENS_AGAIN_S[-1], Timeouts(1.0, 1.0).longest_pause_s, sink_thread.BACK_OFF_S[-1], mqtt.BACK_OFF_S[1]])
def test_whoever_is_well_again_is_soon_back(longest_s: float) -> None:
    """Within 10 s, as opening it takes a while, too."""
    assert longest_s <= 5.0


class Held(FakeProcess):
    """As one whose driver does not let it go; `waited`: threads that waited for any."""

    waited: ClassVar[list[threading.Thread]] = []

    def kill(self) -> None:
        pass

    terminate = kill

    def wait(self, timeout: float | None = None) -> int:
        self.waited.append(threading.current_thread())
        return super().wait(timeout)


def test_cameras_that_cannot_be_ended_do_not_hold_up_the_supervisor() -> None:
    Held.waited.clear()
    bench = Bench()
    bench.kind = Held
    bench.configure(*({"name": f"{k}", "source": "rtsp://cell/1"} for k in range(256)))
    assert bench.after(0) == 256
    bench.after(SILENT_AFTER_S + 1)
    assert threading.current_thread() not in Held.waited
    assert bench.after(2) == 512


class Sent:
    """What a sender was given to send."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def send(self, image_bgr: Image, captured_at: float, pixels: bool = True) -> None:
        self.at.append(captured_at)


@pytest.mark.parametrize("began", [0.0, 3.5, 1.7e9])
@pytest.mark.parametrize("live", [False, True])
def test_what_is_no_live_camera_begins_now(began: float, live: bool) -> None:
    frames = [Frame(np.zeros((8, 8, 3), np.uint8), began + k / 10, k, "a") for k in range(3)]
    source, sent, before = FakeSource(frames, live), Sent(), time.time()
    send_frames(source, sent)  # type: ignore[arg-type]
    first = sent.at[0]
    assert (first == began) if live else (before <= first <= time.time())
    np.testing.assert_allclose(np.array(sent.at) - first, [0, 0.1, 0.2], atol=1e-4)


STARTER = """
import time
from stream.service.worker.processes import start_process
start_process("stream.service.ingress.camera_process", {"source": "zmq://127.0.0.1:9", "to": "tcp://127.0.0.1:9",
                                                        "name": "stalled"})
print("started", flush=True)
time.sleep(60)
"""


def test_a_stalled_camera_ends_with_a_service_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
                          bufsize=0) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == b"started\n"
        service.kill()
        assert select.select([service.stdout], [], [], 20)[0], "it lives on"  # both have it open
        assert service.stdout.read() == b""
