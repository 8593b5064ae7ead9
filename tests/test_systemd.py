"""What systemd is told, over the socket on which it listens: ready, reloading, alive, stopping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stream.service.systemd import Systemd

if sys.platform != "linux":
    pytest.skip("systemd is of Linux", allow_module_level=True)

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0  # on a busy machine, the first time builds an engine


@pytest.fixture(params=["socket", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end."""
    address = str(tmp_path / "notify") if request.param == "socket" else f"@gatestream-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1))
        listening.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield listening


def heard(manager: socket.socket) -> list[str]:
    manager.setblocking(False)
    said = list[str]()
    try:
        while True:
            said.append(manager.recv(1000).decode())
    except BlockingIOError:
        return said


def test_a_services_life_is_told(manager: socket.socket) -> None:
    now, asked = 100.0, list[Callable[[], None]]()
    with Systemd(lambda: now) as systemd:
        assert {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}.isdisjoint(os.environ)  # of processes it starts
        table: list[tuple[float, bool, bool, bool, list[str]]] = [  # time, ready, reloads, answers, what is told
            (100.0, False, False, True, ["WATCHDOG=1"]), (100.1, False, True, True, []),
            (109.9, False, False, True, []), (110.0, True, False, True, ["READY=1", "WATCHDOG=1"]),
            (110.1, True, True, True, ["RELOADING=1\nMONOTONIC_USEC=110100000"]),
            (111.0, True, False, True, ["READY=1"]),
            (111.1, False, False, True, []),  # the engine starts again
            (120.0, True, False, False, ["WATCHDOG=1"]),
            (131.0, True, False, False, []), (200.0, True, False, True, []),  # the receiver hangs
            (200.1, True, False, True, ["WATCHDOG=1"])]
        for at, ready, reloads, answers, told in table:
            now = at
            systemd.poll(ready, reloads, asked.append)
            assert heard(manager) == told, at
            if answers:
                for answer in asked:
                    answer()
                asked.clear()
    assert heard(manager) == ["STOPPING=1"]


@pytest.mark.parametrize(("name", "value"), [("NOTIFY_SOCKET", None), ("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", None)])
def test_who_is_not_asked_for_it_tells_nothing(name: str, value: str | None, manager: socket.socket,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with Systemd() as systemd:
        systemd.poll(True, False, lambda answer: None)
    assert heard(manager) == ([] if name == "NOTIFY_SOCKET" else ["READY=1", "STOPPING=1"])


def test_a_manager_that_is_gone_is_no_fault(manager: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    manager.close()
    with Systemd() as systemd:
        systemd.poll(True, False, lambda answer: None)
    assert "systemd cannot be told READY=1" in caplog.text


@pytest.mark.parametrize("manager", ["socket"], indirect=True)
def test_serve_tells(manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config := tmp_path / "s.toml").write_text(
        '[receive]\nbind = ["tcp://127.0.0.1:0"]\n[health]\nbind = "127.0.0.1:0"\n')
    monkeypatch.delenv("WATCHDOG_PID")
    with subprocess.Popen([sys.executable, "-m", "stream", "serve", str(config)], cwd=ROOT,
                          env={**os.environ, "WATCHDOG_USEC": "300000"}, stderr=subprocess.DEVNULL) as process:
        def told() -> bytes:
            return next(state for state in iter(lambda: manager.recv(1000), b"") if state != b"WATCHDOG=1")

        try:
            assert manager.recv(1000) == b"WATCHDOG=1"
            assert told() == b"READY=1"
            process.send_signal(signal.SIGHUP)
            assert told().startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert told() == b"READY=1"
            assert manager.recv(1000) == b"WATCHDOG=1"
            process.terminate()
            assert told() == b"STOPPING=1"
        finally:
            process.terminate()
        assert process.wait(PATIENCE_S) == 0
