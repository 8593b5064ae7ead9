"""The engine's process is ended when it hangs, and for nothing else: not for silence, nor for a long build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_service import PATIENCE_S, wait

from stream.service import service as service_module
from stream.service.config import Config, PromotionConfig
from stream.service.service import Service
from stream.service.worker import processes as processes_module
from stream.service.worker.processes import ChildProcess, end_processes, start_process
from stream.service.worker.protocol import BatchSizer

SILENT_FOR_S = 2.5


@pytest.mark.parametrize(("done", "at", "waiting_s"), [
    ([], 3.0, 2.0),                     # since the oldest was sent
    ([(2.5, True)], 3.0, 0.5),          # since the one before it was done
    ([(2.5, False)], 3.0, 0.5),         # or what else was before it
    ([(2.5, True), (2.75, True)], 9.0, 0.0)])
def test_a_batch_waits_from_when_it_has_the_engine(done: list[tuple[float, bool]], at: float, waiting_s: float) -> None:
    sizer = BatchSizer()
    assert sizer.waiting_s(100.0) == 0
    for sent_at in (1.0, 2.0):
        sizer.on_sent(sent_at, 4)
    for now, batch in done:
        sizer.on_done(now, batch)
    assert sizer.waiting_s(at) == waiting_s
    sizer.reset()
    assert sizer.waiting_s(at) == 0


def supervise(service: Service, until: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < end, "it never came"
        service.supervise()
        time.sleep(0.01)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    """Without any camera; silence counts sooner than it does for users."""
    monkeypatch.setattr(service_module, "SILENT_FOR_S", SILENT_FOR_S)
    config = Config.model_validate({"receive": {"bind": ["tcp://127.0.0.1:*"]}, "health": {"bind": "127.0.0.1:0"},
                                    "results": {"log": str(tmp_path / "events.db")}})
    with Service(config) as made:
        supervise(made, lambda: made.state()["healthy"])
        yield made


def test_a_service_without_cameras_keeps_its_engine(service: Service) -> None:
    worker = service.receiver.worker
    pid, since = worker.pid, time.monotonic()
    supervise(service, lambda: worker.alive_at[pid] > since + 2 * SILENT_FOR_S)
    assert worker.last_at < since  # nothing but signs of life came
    state = service.state()
    assert (state["engine_restarts"], worker.pid, state["healthy"]) == (0, pid, True)


def test_one_that_gives_no_sign_of_life_is_replaced(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    pid = service.receiver.worker.pid
    os.kill(pid, signal.SIGSTOP)
    supervise(service, lambda: service.state()["engine_restarts"] == 1)
    assert "hangs" in caplog.text
    supervise(service, lambda: service.state()["healthy"])
    assert service.receiver.worker.pid != pid


def test_a_service_that_was_held_up_itself_blames_nobody(service: Service, monkeypatch: pytest.MonkeyPatch,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    worker, ahead_s = service.receiver.worker, 1000.0
    steady = time.monotonic
    monkeypatch.setattr(service_module.time, "monotonic", lambda: steady() + ahead_s)
    service.supervise()
    assert service.state()["engine_restarts"] == 0
    worker.batch.on_sent(steady(), 1)  # as if it were under way since before
    restarts, stalls = [], []
    for _ in range(4):
        service.supervise()
        restarts.append(service.state()["engine_restarts"])
        stalls.append("one batch of frames for" in service.state()["faults"].get("engine", ""))
        ahead_s += service_module.HANGS_AFTER_S / 3
        worker.alive_at[worker.pid] = time.monotonic()
    assert restarts == [0, 0, 0, 1]  # by then it has had its time
    assert stalls == [False, True, True, False]
    assert caplog.text.count("the engine has had one batch of frames for 3 s") == 1


def test_recovery_does_not_play_the_recording_for_promotions_again(service: Service, monkeypatch: pytest.MonkeyPatch
                                                                   ) -> None:
    requests: list[dict[str, Any]] = []

    def start(module: str, request: dict[str, Any]) -> Any:
        requests.append(request)
        return start_process(module, request)

    monkeypatch.setattr(service_module, "start_process", start)
    service.config = service.config.model_copy(update={"gate": PromotionConfig.model_construct(recording=Path("gone"))})
    service.receiver.worker.events = [{"type": "event", "camera": "gate", "head": "gesture", "label": "left",
                                       "started_at": 0.0, "ended_at": 1.0, "score": 0.9, "open": False}]
    os.kill(service.receiver.worker.pid, signal.SIGKILL)
    supervise(service, lambda: service.state()["engine_restarts"] == 1)
    supervise(service, lambda: service.state()["healthy"])
    assert [(one["known"], one["promotion"]) for one in requests] == [(service.receiver.worker.events, None)]
    assert len(service.receiver.worker.events) == 1


def test_a_recording_for_promotions_that_is_gone_costs_the_next_promotion_only(tmp_path: Path) -> None:
    recording = tmp_path / "gate.png"
    cv2.imwrite(str(recording), np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "s.toml").write_text('[receive]\nbind = ["tcp://127.0.0.1:*"]\n[health]\nbind = "127.0.0.1:0"\n')
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "stream", "serve", str(tmp_path / "s.toml"), "--gate",
                                    str(recording)], stderr=said)
    try:
        wait(lambda: "the engine is ready" in (tmp_path / "said").read_text(), process)
        recording.unlink()
        process.send_signal(signal.SIGHUP)
        wait(lambda: "the configuration was read again" in (tmp_path / "said").read_text(), process)
    finally:
        process.terminate()
    assert process.wait(PATIENCE_S) == 0


def test_a_model_whose_copy_was_cleaned_away_comes_back(service: Service) -> None:
    copy = service._models.default.path
    assert copy is not None
    wanted = copy.read_bytes()
    copy.unlink()
    os.kill(service.receiver.worker.pid, signal.SIGKILL)
    supervise(service, lambda: service.state()["engine_restarts"] == 1)
    supervise(service, lambda: service.state()["healthy"])
    assert copy.read_bytes() == wanted


@pytest.mark.parametrize("module", ["zmq", "numpy", "json"])
def test_files_of_the_current_folder_are_no_libraries(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / f"{module}.py").write_text("raise SystemExit('taken over')")
    process = start_process("stream.service.ingress.camera_process", {
        "source": str(tmp_path / "none.mp4"), "to": f"ipc://{tmp_path}/nobody", "name": "a"})
    assert process.wait(PATIENCE_S) == 2  # its source is not there
    assert "taken over" not in capfd.readouterr().err


class Held(subprocess.Popen[bytes]):
    """As one whose driver does not let it go. `clock` goes on while it is waited for."""

    def __init__(self, clock: list[float]) -> None:
        self.pid, self.returncode, self._clock, self.waits = 4321, None, clock, True

    def poll(self) -> None:
        return None

    def kill(self) -> None:
        pass

    def terminate(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is not None, "waited for without a limit"
        self._clock[0] += timeout
        raise subprocess.TimeoutExpired("held", timeout)

    def __del__(self, *_: object) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(processes_module.time, "monotonic", lambda: now[0])
    return now


def test_processes_that_cannot_be_ended_are_left_alone(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    end_processes([None, *(Held(clock) for _ in range(200))], 0.5, terminate=True)
    assert clock[0] - 1000 == 0.5 + processes_module.KILLED_WITHIN_S  # for all together
    assert caplog.text.count("4321") == 200


def test_the_loop_that_supervises_waits_for_no_process(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds one that hangs, another one takes its place after the pause."""
    ended: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(processes_module, "end_processes", ended.extend)  # in a thread of its own
    child = ChildProcess("held", (2.0, 3.0), lambda: Held(clock), lambda: clock[0])
    assert child.supervise(lambda: None) is None
    first = child.process
    assert child.supervise(lambda: "no frame") == -signal.SIGKILL
    assert (clock[0], child.hung) == (1000.0, "no frame")
    child.restart()
    assert child.supervise(lambda: None) is None
    assert child.process is None
    clock[0] += 2.0
    assert child.supervise(lambda: None) is None
    assert child.process not in (None, first)
    assert (child.hung, child.restarts) == (None, 1)
    until = time.perf_counter() + PATIENCE_S
    while ended != [first]:
        assert time.perf_counter() < until


def test_a_process_that_cannot_be_started_is_tried_again(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """As where no file descriptor or no memory is left."""
    outcomes = [OSError(24, "Too many open files"), Held(clock)]

    def start() -> subprocess.Popen[bytes]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    child = ChildProcess("camera a", (2.0,), start, lambda: clock[0])
    for seconds, starts in ((0.0, 1), (0.9, 1), (1.2, 2)):
        clock[0] += seconds
        assert child.supervise(lambda: None) is None
        assert 2 - len(outcomes) == starts
    assert "camera a cannot be started: [Errno 24] Too many open files" in caplog.text
    assert child.restarts == 1


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import time; time.sleep(60)"])
def test_one_that_never_reads_its_request_holds_up_nobody(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                          ) -> None:
    (tmp_path / "deaf.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start_process("deaf", {"events": "x" * 10_000_000})  # more than a pipe holds
    if "sleep" in code:
        assert process.poll() is None
        process.kill()
    assert process.wait(PATIENCE_S) == (-signal.SIGKILL if "sleep" in code else 3)


@pytest.mark.parametrize("ready", [False, True])
def test_an_engine_that_is_still_built_is_not_waited_for_at_the_end(ready: bool, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def end(processes: Iterable[subprocess.Popen[bytes] | None], within_s: float = 0.0) -> None:
        for process in filter(None, processes):
            waited.append(within_s)
            process.kill()
            process.wait()

    monkeypatch.setattr(service_module, "end_processes", end)
    monkeypatch.setattr(service_module, "start_process", lambda *_: subprocess.Popen([sys.executable, "-c", "input()"],
                                                                                     stdin=subprocess.PIPE))
    config = Config.model_validate({"receive": {"bind": ["tcp://127.0.0.1:0"]}, "health": {"bind": "127.0.0.1:0"}})
    with Service(config) as service:
        if ready:
            service.receiver.worker.last_at = time.monotonic() + 1
        process = service._engine.process
    assert process is not None
    process.communicate()
    assert [within_s > 0 for within_s in waited] == [ready]
