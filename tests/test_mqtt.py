"""Results over MQTT with a real broker: what is needed arrives, also what was written while the broker was away."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import engines
from engines.errors import SinkError, UsageError
from stream.frame import Camera, Event, Gap, Prediction
from stream.service.config import parse_config
from stream.service.egress.open_sinks import open_sinks
from stream.sinks.base import plain_name
from stream.sinks.mqtt import MqttSink, _ascii

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
PATIENCE_S = 20.0
pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="needs the MQTT broker mosquitto, which is not installed")


def wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


@contextmanager
def broker(port: int, folder: Path) -> Iterator[None]:
    """A broker of its own, which lets in `us` with the password `secret`."""
    users, config = folder / "users", folder / "mosquitto.conf"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(users), "us", "secret"], check=True, capture_output=True)
    users.chmod(0o644)
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {users}\nuser root\n")
    assert MOSQUITTO is not None
    process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


class Listener:
    """What a subscriber to everything has heard: the latest of each topic, and all in order."""

    def __init__(self, port: int) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.heard: list[tuple[str, str]] = []
        self.subscribed = False
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.username_pw_set("us", "secret")
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self.raw: dict[str, bytes] = {}
        self._client.on_message = lambda _, __, message: self._hear(message.topic, message.payload)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def _hear(self, topic: str, payload: bytes) -> None:
        self.raw[topic] = payload
        self.heard.append((topic, payload.decode(errors="replace")))

    @property
    def latest(self) -> dict[str, str]:
        return dict(self.heard)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def event(label: str, open: bool, camera: str = "cell 3") -> Event:
    return Event(camera, "gesture", label, 1.0, 2.0, 0.9, open)


def settings(port: int, folder: Path) -> dict[str, Any]:
    password = folder / "password"
    password.write_text("secret\n")
    return {"host": "127.0.0.1", "port": port, "username": "us", "password_file": password}


def test_events_become_a_sensor(tmp_path: Path, unused_port: int) -> None:
    with broker(unused_port, tmp_path):
        listener = Listener(unused_port)
        wait(lambda: listener.subscribed)
        sink = MqttSink(**settings(unused_port, tmp_path))
        wait(lambda: listener.latest.get("gatestream/status") == "online")
        wait(lambda: sink.fault is None)
        sink.write(None, [Camera("cell 3", 1.0, "joined"), event("left", open=True), Gap("cell 3", 1.0, 2.0, "reset")])
        wait(lambda: any(topic.endswith("/gap") for topic in listener.latest))
        name = next(topic.split("/")[1] for topic in listener.latest if topic.endswith("/gap"))
        wait(lambda: listener.latest.get(f"gatestream/{name}/now/gesture") == "left")
        assert listener.latest[f"gatestream/{name}/status"] == "online"
        sink.write(None, [event("left", open=False)])
        wait(lambda: listener.latest[f"gatestream/{name}/now/gesture"] == "idle")
        assert json.loads(listener.latest[f"gatestream/{name}/event"]) == event("left", open=False).as_json()
        sensor = json.loads(listener.latest[f"homeassistant/sensor/gatestream_{name}_gesture/config"])
        assert sensor["state_topic"] == f"gatestream/{name}/now/gesture"
        assert sensor["availability"] == [{"topic": "gatestream/status"}, {"topic": f"gatestream/{name}/status"}]
        assert sensor["device"]["name"] == "cell 3"
        sink.write(None, [event("up", open=True), Camera("cell 3", 1.0, "left")])
        wait(lambda: listener.latest[f"gatestream/{name}/status"] == "offline")
        sink.close()
        wait(lambda: listener.latest["gatestream/status"] == "offline")
        wait(lambda: listener.latest[f"gatestream/{name}/now/gesture"] == "idle")  # nobody would end it
        listener.close()


def test_pictures_come_with_predictions_but_seldom(tmp_path: Path, unused_port: int) -> None:
    pictures = iter([b"\xff\xd8 1", None, b"\xff\xd8 2"])
    with broker(unused_port, tmp_path):
        listener = Listener(unused_port)
        wait(lambda: listener.subscribed)
        sink = MqttSink(**settings(unused_port, tmp_path), pictures=lambda camera: next(pictures))
        wait(lambda: sink.fault is None)
        for camera in ("cell-3", "cell-4", "cell-3"):
            sink.write(None, [Prediction(camera, 1, 1.0, True, {}, (), {}, 0, 0)])
        sink.write(None, [Gap("cell-3", 1.0, 2.0, "reset")])  # what came before it has come then
        wait(lambda: "gatestream/cell-3/gap" in listener.latest)
        assert [topic for topic, _ in listener.heard if topic.endswith("/picture")] == ["gatestream/cell-3/picture"]
        assert listener.raw["gatestream/cell-3/picture"] == b"\xff\xd8 1"
        image = json.loads(listener.latest["homeassistant/image/gatestream_cell-3_picture/config"])
        assert (image["image_topic"], image["content_type"]) == ("gatestream/cell-3/picture", "image/jpeg")
        assert image["device"]["name"] == "cell-3"
        sink.close()
        listener.close()


@pytest.mark.parametrize("asked", [True, False])
def test_a_service_sends_pictures_where_it_is_asked_to(asked: bool, tmp_path: Path, unused_port: int) -> None:
    password = settings(unused_port, tmp_path)["password_file"]
    config = parse_config(f'[results.mqtt]\nhost = "127.0.0.1"\nport = {unused_port}\nusername = "us"\n'
                          f'password_file = "{password}"\npictures = {str(asked).lower()}')
    with broker(unused_port, tmp_path), ExitStack() as stack:
        listener = Listener(unused_port)
        wait(lambda: listener.subscribed)
        outbox = open_sinks(config, engines.load("gesture"), tmp_path, stack, picture=str.encode)
        outbox.start()
        wait(lambda: not outbox.faults)
        outbox.put([Prediction("cell-3", 1, 1.0, True, {}, (), {}, 0, 0), Gap("cell-3", 1.0, 2.0, "reset")])
        wait(lambda: "gatestream/cell-3/gap" in listener.latest)
        assert listener.latest.get("gatestream/cell-3/picture") == ("cell-3" if asked else None)
        listener.close()


def test_what_is_not_confirmed_is_an_error_and_a_broker_that_starts_anew_knows_all_again(tmp_path: Path,
                                                                                        unused_port: int) -> None:
    sink = MqttSink(**settings(unused_port, tmp_path))
    try:
        with pytest.raises(SinkError, match="MQTT"):
            sink.write(None, [event("left", open=False)])
        sink.write(None, [event("up", open=True)])  # the latest label waits for the broker
        for _ in range(2):  # a broker without memory
            with broker(unused_port, tmp_path):
                listener = Listener(unused_port)
                wait(lambda: any(topic.endswith("/config") for topic in listener.latest))  # noqa: B023
                wait(lambda: "up" in listener.latest.values())  # noqa: B023
                wait(lambda: sink.fault is None)
                sink.write(None, [event("down", open=False, camera="b")])
                listener.close()
            wait(lambda: sink.fault is not None)
    finally:
        sink.close()


def test_a_wrong_password_is_seen(tmp_path: Path, unused_port: int) -> None:
    given = settings(unused_port, tmp_path)
    given["password_file"].write_text("wrong")
    with broker(unused_port, tmp_path):
        sink = MqttSink(**given)
        wait(lambda: "refuses the connection" in (sink.fault or ""))
        with pytest.raises(SinkError, match="refuses the connection"):
            sink.write(None, [event("left", open=False)])
        sink.close()


def test_names_stay_apart_and_legal() -> None:
    names = ["line 1/a", "line 1 a", "line-1-a", "***", "###", "+", "k\u00fcche", "kuche", "a/b#c"]
    for mapped in ([plain_name(name) for name in names], [_ascii(name) for name in names]):
        assert len(set(mapped)) == len(names)
        assert not any(set(name) & set("+#/ ") for name in mapped)
        assert all(mapped)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", _ascii(name)) for name in names)
    assert plain_name("cell-3") == _ascii("cell-3") == "cell-3"


@pytest.mark.parametrize(("given", "error"), [({"username": "us", "password_file": "none"}, "none, which cannot"),
                                              ({"ca": "none"}, "certificates for the MQTT broker")])
def test_files_that_are_not_there(given: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=error):
        MqttSink(**{key: tmp_path / value if value == "none" else value for key, value in given.items()})
