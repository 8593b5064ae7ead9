"""The live service as a whole: real engine, real senders, crashes. What was published is in the log, once."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zmq

import engines
from engines.synthetic import Simulation
from stream.frame import Image
from stream.sender import Sender
from stream.sinks.log import read_events, read_runs
from stream.sinks.segments import find_segments
from stream.wire.messages import encode_header

PATIENCE_S = 60.0  # on a busy machine, the first time builds an engine
RATE = 15.0
KILLS = int(os.environ.get("GATESTREAM_KILLS", "3"))


def wait(condition: Callable[[], Any], of: subprocess.Popen[bytes] | None = None) -> Any:
    """What it gives once that is true; fails after PATIENCE_S, or when the process has ended."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        assert of is None or of.poll() is None, "the service has ended"
        time.sleep(0.02)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def gestures() -> list[Image]:
    """Twenty seconds in which a rendered hand draws at least three gestures."""
    room = Simulation(3, (96, 128), RATE, idle_s=(1.5, 2.5))
    return [room.frame(k) for k in range(round(20 * RATE))]


class Service:
    """A `gatestream serve` of its own. before, after: lines of its configuration at the top, at the end."""

    def __init__(self, folder: Path, before: str = "", after: str = "", **receive: Any) -> None:
        self.log, self.folder = folder / "events.db", folder
        self.cameras, self.results, self.health = (free_port() for _ in range(3))
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in receive.items())
        self.config = folder / "service.toml"
        self.config.write_text(f"""{before}
[receive]
bind = ["tcp://127.0.0.1:{self.cameras}"]
{lines}
[results]
log = "{self.log}"
publish = ["tcp://127.0.0.1:{self.results}"]
[health]
bind = "127.0.0.1:{self.health}"
{after}""")
        self.start()

    def start(self) -> None:
        with (self.folder / "errors.txt").open("ab") as errors:
            self.process = subprocess.Popen([sys.executable, "-m", "stream", "serve", str(self.config)], stderr=errors)

    def ready(self) -> dict[str, Any]:
        """Its health, once it is well."""
        return dict(wait(lambda: (state := self.state()) and state["healthy"] and state, self.process))

    def state(self) -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/health", timeout=2) as answer:
                return dict(json.load(answer))
        except OSError:
            return None

    def says(self, text: str) -> bool:
        """Whether its notices hold this."""
        return text in (self.folder / "errors.txt").read_text()

    def reload(self, change: Callable[[str], str]) -> None:
        """Changes its configuration while it runs."""
        self.config.write_text(change(self.config.read_text()))
        self.process.send_signal(signal.SIGHUP)

    def sender(self, camera: str) -> Sender:
        return Sender(f"tcp://127.0.0.1:{self.cameras}", camera)

    @contextmanager
    def subscriber(self) -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, context.socket(zmq.SUB) as sub:
            sub.linger = 0
            sub.subscribe(b"")
            sub.connect(f"tcp://127.0.0.1:{self.results}")
            yield sub

    def end(self, how: int = signal.SIGTERM) -> float:
        """Ends it; the seconds that took."""
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(PATIENCE_S)
        return time.monotonic() - began


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, pace_ms=1000, staleness_ms=60_000, max_frames_per_s=10_000)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def play(sender: Sender, images: list[Image], start_at: float) -> None:
    for k, image in enumerate(images):
        sender.send(image, start_at + k / RATE)


def published(sub: zmq.Socket[bytes]) -> list[dict[str, Any]]:
    """Everything that has been published so far."""
    said = []
    while sub.poll(300):
        topic, body = sub.recv_multipart()
        one = json.loads(body)
        assert topic.decode() == f"{one['camera']}/{one['type']}"
        said.append(one)
    return said


def test_cameras_are_recognised_logged_and_published(service: Service, gestures: list[Image]) -> None:
    with service.subscriber() as sub, service.sender("desk") as sender:
        service.ready()
        time_s = time.time()
        play(sender, gestures, time_s)
        assert sender.unanswered == 0
        answer = sender.send(gestures[-1], time_s + len(gestures) / RATE)
        assert answer is not None
        assert (answer["type"], answer["camera"]) == ("prediction", "desk")
        said = published(sub)
    closed = [one for one in said if one["type"] == "event" and not one["open"]]
    assert len(closed) >= 2
    assert len({one["id"] for one in closed}) == len(closed)
    assert {one["type"] for one in said} == {"camera", "prediction", "event"}
    health = service.state()
    assert health is not None
    assert health["cameras"]["desk"]["received"] == len(gestures) + 1
    assert health["results"]["prediction"] == health["cameras"]["desk"]["predictions"] > 100
    with urllib.request.urlopen(f"http://127.0.0.1:{service.health}/metrics", timeout=2) as page:
        metrics = page.read().decode()
    for line in ('gatestream_camera_received_total{camera="desk"}',
                 'gatestream_latency_seconds_bucket{le="0.1",part="total"}',
                 'gatestream_engine_info{engine="gesture, openvino f32",model="gesture"} 1.0',
                 'gatestream_results_total{type="prediction"}'):
        assert line in metrics
    assert service.end() < 5
    assert service.process.returncode == 0
    logged = [(event.label, round(event.started_at, 3)) for _, _, event in read_events(service.log)]
    assert logged[:len(closed)] == [(one["label"], round(one["started_at"], 3)) for one in closed]


def test_broken_pictures_cost_themselves_and_nobody_hears_the_decoder(service: Service, gestures: list[Image]) -> None:
    jpeg = cv2.imencode(".jpg", gestures[0])[1].tobytes()
    with service.sender("desk") as sender, zmq.Context() as context, context.socket(zmq.REQ) as bad:
        service.ready()
        bad.linger = 0
        bad.connect(f"tcp://127.0.0.1:{service.cameras}")
        for k in range(20):
            at = len(jpeg) - 300 - 10 * k
            body = jpeg[:at] if k % 2 else jpeg[:at] + b"\xff\xd9" * 20 + jpeg[at + 40:]
            bad.send_multipart([encode_header("bad", captured_at=1000.0 + k), body])
            assert bad.poll(1000 * PATIENCE_S)
            bad.recv()
            sender.send(gestures[k], 1000.0 + k / RATE)
        state = service.ready()
    assert state["cameras"]["desk"]["dropped"] == {}
    assert state["engine_restarts"] == 0
    service.end()
    errors = (service.folder / "errors.txt").read_text().splitlines()
    assert all(line.startswith("gatestream: ") for line in errors), errors


def test_the_engines_process_may_be_killed(service: Service, gestures: list[Image]) -> None:
    with service.subscriber() as sub, service.sender("desk") as sender:
        service.ready()
        play(sender, gestures[:60], time.time())
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        wait(lambda: (state := service.state()) is None or state["engine_restarts"] == 1)
        sender.send(gestures[60], time.time())  # answered while there is no engine
        service.ready()
        play(sender, gestures, time.time() + 10)
        assert sender.unanswered == 0
        said = published(sub)
    assert [one["camera"] for one in said if one["type"] == "gap" and one["action"] == "engine restarted"] == ["desk"]
    after = said[next(i for i, one in enumerate(said) if one["type"] == "gap"):]
    assert any(one["type"] == "event" and not one["open"] for one in after)


def test_nothing_published_is_lost_when_the_service_is_killed(service: Service, gestures: list[Image]) -> None:
    rng, restarts_s = np.random.default_rng(0), []
    said: list[dict[str, Any]] = []
    with service.subscriber() as sub, service.sender("desk") as sender:
        for k in range(KILLS):
            service.ready()
            play(sender, gestures[:int(rng.integers(40, len(gestures)))], time.time() + 100 * k)
            service.end(signal.SIGKILL)
            said += published(sub)
            began = time.monotonic()
            service.start()
            service.ready()
            restarts_s.append(time.monotonic() - began)
        said += published(sub)
    print(f"{KILLS} kills, {len(said)} results published; restarts took up to {max(restarts_s):.1f} s")
    service.end()
    logged = {(event.label, round(event.started_at, 3), round(event.ended_at, 3))
              for _, _, event in read_events(service.log)}
    closed = [one for one in said if one["type"] == "event" and not one["open"]]
    assert closed
    by_id = {one["id"]: (one["label"], round(one["started_at"], 3), round(one["ended_at"], 3)) for one in closed}
    assert set(by_id.values()) <= logged
    assert len(set(by_id.values())) == len(by_id)
    assert len(read_runs(service.log)) == 1 + KILLS


def test_a_clock_that_jumps_an_hour_and_pictures_that_stand_still(service: Service, gestures: list[Image]) -> None:
    time_s = time.time() - 45.0  # all is sent faster than it was taken
    with service.subscriber() as sub, service.sender("desk") as sender:
        service.ready()
        parts = []
        for jump_s in (0.0, 3600.0, -3600.0):
            play(sender, gestures, time_s + jump_s)
            parts.append(published(sub))
        play(sender, [gestures[-1]] * 60, time_s)
        play(sender, gestures, time_s + 60 / RATE)
        assert sender.unanswered == 0
        parts.append(published(sub))
    health = service.state()
    assert health is not None
    assert [one for part in parts for one in part if one["type"] == "gap"] == []  # its streams go on
    for part in parts:
        assert sum(one["type"] == "event" and not one["open"] for one in part) >= 2
        assert all(abs(one["captured_at"] - time.time()) < 120 for one in part if one["type"] == "prediction")
    [odd] = [line for line in health["cameras"]["desk"]["odd"] if "clock" in line]
    assert "its clock is +35" in odd
    assert abs(health["cameras"]["desk"]["clock_skew_seconds"]) < 120


def test_cameras_that_are_opened_and_videos_of_their_events(tmp_path: Path) -> None:
    after = f"""
[[camera]]
name = "room"
source = "sim://gestures?seed=3&seconds=8"
[[camera]]
name = "none"
source = "97"
[clips]
folder = "{tmp_path / 'clips'}"
continuous = true
segment_s = 3
"""
    service = Service(tmp_path, after=after, staleness_ms=60_000)
    try:
        state = wait(lambda: (state := service.state()) and state["clips"].get("written") and state, service.process)
        assert state["cameras"]["room"]["received"] > 30
        wait(lambda: service.says("camera room: end of its recording"))
        assert service.says("camera none: webcam 97: cannot be opened")
        with service.sender("room") as stranger:  # its name is taken
            stranger.send(np.zeros((8, 8, 3), np.uint8), time.time())
        assert wait(service.state)["refused"]["not its source"] >= 1
    finally:
        service.end()
    first = read_events(service.log)[0].event
    [video] = [path for path in (tmp_path / "clips").glob("*.mp4") if path.stem.endswith(f"-1_room_{first.label}")]
    opened = cv2.VideoCapture(str(video))
    assert opened.get(cv2.CAP_PROP_FRAME_COUNT) >= 10
    segments = find_segments(tmp_path / "clips", first.started_at, math.inf)
    assert {each.camera for each in segments} == {"room"}
    assert all(after.started_at - before.ended_at < 1 for before, after in pairwise(segments))
    assert segments[-1].ended_at - first.started_at > 3


def test_a_configuration_is_read_again_and_a_model_has_to_pass_the_gate(tmp_path: Path, gestures: list[Image]) -> None:
    from engines.model.file import save

    room, recording = Simulation(5, (96, 128), RATE, idle_s=(1.5, 2.5)), tmp_path / "recording"
    recording.mkdir()
    for k in range(round(12 * RATE)):
        cv2.imwrite(str(recording / f"{k:04d}.jpg"), room.frame(k))
    bundled = engines.load("gesture")
    weights = {name: value.numpy() for name, value in bundled.network.state_dict().items()}
    models = tmp_path / "models"
    models.mkdir()
    save(models / "same.safetensors", bundled.contract, weights)
    save(models / "worse.safetensors", bundled.contract,
         {name: value * 0 if name.startswith("heads") else value for name, value in weights.items()})
    save(tmp_path / "elsewhere.safetensors", bundled.contract, weights)
    patient = '[[camera]]\nname = "desk"\nlost_after_s = 600\n'  # it sends nothing while a model is made ready
    service = Service(tmp_path, before=f'models = ["{models}"]', after=f'[gate]\nrecording = "{recording}"\n{patient}',
                      pace_ms=1000, staleness_ms=60_000, max_frames_per_s=10_000)
    try:
        with service.subscriber() as sub, service.sender("desk") as sender:
            service.ready()
            service.reload(lambda text: "model = 3\n" + text)
            wait(lambda: service.says("service.toml:1: model: "))
            service.reload(lambda text: text.replace("model = 3", f'model = "{tmp_path / "elsewhere.safetensors"}"'))
            wait(lambda: service.says("in the folders that `models` named at the start"))
            service.reload(lambda text: text.replace(str(tmp_path / "elsewhere"), str(models / "worse"), 1))
            time_s = time.time()
            wait(lambda: service.says("the new one's process ended with"), service.process)
            assert service.says("a model that finds 0 of")
            service.reload(lambda text: text.replace("worse", "same", 1))
            play(sender, gestures, time_s)
            wait(lambda: service.says("model gesture is live"), service.process)
            sender.send(gestures[-1], time_s + len(gestures) / RATE)
            assert sender.unanswered == 0
            said = published(sub)
        assert [one for one in said if one["type"] == "gap"] == []  # nobody noticed
        assert len([one for one in said if one["type"] == "event" and not one["open"]]) >= 2
        health = service.state()
        assert health is not None
        assert health["engine_restarts"] == 0
        service.reload(lambda text: text + '[[camera]]\nname = "late"\nsource = "sim://gestures?seconds=2"\n')
        wait(lambda: (state := service.state()) and state["cameras"].get("late", {}).get("received"), service.process)
    finally:
        assert service.end() < 10
    assert service.process.returncode == 0


def test_notices_may_be_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from stream.notices import FORMAT, log_to_stderr

    monkeypatch.setenv(FORMAT, "json")
    with log_to_stderr():
        logging.getLogger("gatestream.service").warning("camera %s: %s", "a", 'it said "no"\nand left')
    said = json.loads(capsys.readouterr().err)
    assert {key: said[key] for key in ("level", "logger", "message")} == {
        "level": "warning", "logger": "gatestream.service", "message": 'camera a: it said "no"\nand left'}


def test_a_wrong_configuration_is_reported_by_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from stream.commands.cli import main

    config = tmp_path / "cameras.toml"
    config.write_text('model = "gesture"\n\n[receive]\nstaleness_ms = -1\n\n[[camera]]\nname = "a"\ncolor = "RGB"\n')
    assert main(["serve", str(config), "--check"]) == 2
    said = capfd.readouterr().err
    assert "cameras.toml:4: receive.staleness_ms" in said
    assert "cameras.toml:8: camera.1.color: no such key" in said
    config.write_text("model = gesture\n")
    assert main(["serve", str(config), "--check"]) == 2
    assert "cameras.toml:1: Invalid value" in capfd.readouterr().err
    config.write_text("")
    assert main(["serve", str(config), "--check"]) == 0


@pytest.mark.parametrize(("text", "line", "says"), [
    ('[[camera]]\nname = "a"\n[[camera]]\nname = "a"\n', 1, "two cameras called 'a'"),
    ('[[camera]]\nname = ""\n', 2, "a printable name"), ('[[camera]]\nsource = "0"\n', 1, "camera.1.name: missing"),
    ('[[camera]]\nname = "a"\nsource = "rtsp://"\n', 3, "an address with a host"),
    ('[[camera]]\nname = "a"\nsource = "nothing.mp4"\n', 3, "no such file"),
    ('[[camera]]\nname = "a"\nsource = "zmq://cell"\n', 3, "zmq://host:port"),
    ('[clips]\nfolder = "x"\n', 1, "clips without results.log"),
    ('[gate]\nrecording = "nothing.mp4"\n', 2, "a recording that is there"),
    ('[[camera]]\nname = "a"\ncrop = [0.5, 0, 0.6, 1]\n', 3, "a part of the picture"),
    ('[receive]\nbind = ["5555"]\n', 2, "receive.bind.1"), ("[results]\nlogs = 1\n", 2, "no such key"),
    ('[receive]\nbind = ["tcp://0.0.0.0:70000"]\n', 2, "a port of 65535 at most"),
    ('[receive]\nsub = ["tcp://*:65536"]\n', 2, "a port of 65535 at most"),
    ('[results]\npublish = ["tcp://*:99999"]\n', 2, "a port of 65535 at most"),
    ('[results]\nwebhook = "http://host:70000/x"\n', 2, "an address with a host"),
    ('[health]\nbind = "127.0.0.1:70000"\n', 2, "a port of 65535 at most"),
    ('[[camera]]\nname = "a"\nsource = "zmq://cell:70000"\n', 3, "zmq://host:port"),
    ('[[camera]]\nname = "a"\nsource = "rtsp://cell:70000/x"\n', 3, "an address with a host"),
    ("[receive]\ncameras = 0\n", 2, "greater than or equal to 1"), ("[health]\nbind = 9000\n", 2, "health.bind"),
])
def test_mistakes_in_a_configuration(text: str, line: int, says: str) -> None:
    from engines.errors import UsageError
    from stream.service.config import parse_config

    with pytest.raises(UsageError) as caught:
        parse_config(text, "x.toml")
    assert f"x.toml:{line}: " in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(("text", "exposed"), [
    ("", []), ('[receive]\nbind = ["tcp://127.0.0.1:5555", "tcp://[::1]:5555", "ipc:///tmp/x"]\n', []),
    ('[receive]\nbind = ["tcp://0.0.0.0:5555"]\nsub = ["tcp://*:5556"]\n', ["tcp://0.0.0.0:5555", "tcp://*:5556"]),
    ('[receive]\nbind = ["tcp://0.0.0.0:5555"]\ncurve = true\n', []),
    ('[receive]\nbind = ["tcp://0.0.0.0:5555"]\naddresses = ["10.0.0.3"]\n', []),
    ('[results]\npublish = ["tcp://*:5556", "tcp://localhost:5557"]\n', ["tcp://*:5556"]),
])
def test_what_anybody_may_do_is_told(text: str, exposed: list[str], tmp_path: Path,
                                     capfd: pytest.CaptureFixture[str]) -> None:
    from stream.commands.cli import main

    config = tmp_path / "cameras.toml"
    config.write_text(text)
    assert main(["serve", str(config), "--check"]) == 0
    told = capfd.readouterr().err.splitlines()
    assert [line.split()[4] for line in told if "anybody who reaches" in line] == exposed
