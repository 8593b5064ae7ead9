"""Results over MQTT with a real broker: what is needed arrives, also what was written while the broker was away."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.errors import UsageError
from stream.frame import Event, Gap
from stream.service.config import MqttConfig
from stream.service.egress.mqtt import MqttSink

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
        self._client.on_message = lambda _, __, message: self.heard.append((message.topic, message.payload.decode()))
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    @property
    def latest(self) -> dict[str, str]:
        return dict(self.heard)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def event(label: str, open: bool, camera: str = "cell/3") -> dict[str, Any]:
    return Event(camera, "gesture", label, 1.0, 2.0, 0.9, open).as_json()


def test_events_become_a_sensor_and_wait_for_the_broker(tmp_path: Path, unused_port: int) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    settings = MqttConfig(host="127.0.0.1", port=unused_port, username="us", password_file=password)
    with broker(unused_port, tmp_path):
        listener = Listener(unused_port)
        wait(lambda: listener.subscribed)
        sink = MqttSink(settings)
        sink.write([event("left", open=True), Gap("cell/3", 1.0, 2.0, "reset").as_json()])  # it is not connected yet
        wait(lambda: listener.latest.get("gatestream/status") == "online")
        wait(lambda: "gatestream/cell-3/gap" in listener.latest)
        assert listener.latest["gatestream/cell-3/now/gesture"] == "left"
        sink.write([event("left", open=False)])
        wait(lambda: listener.latest["gatestream/cell-3/now/gesture"] == "idle")
        assert json.loads(listener.latest["gatestream/cell-3/event"]) == event("left", open=False)
        sensor = json.loads(listener.latest["homeassistant/sensor/gatestream_cell-3_gesture/config"])
        assert sensor["state_topic"] == "gatestream/cell-3/now/gesture"
        assert sensor["availability_topic"] == "gatestream/status"
        assert sensor["device"]["name"] == "cell/3"
        sink.close(1.0)
        wait(lambda: listener.latest["gatestream/status"] == "offline")
        listener.close()


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="broker's password"):
        MqttSink(MqttConfig(username="us", password_file=tmp_path / "none"))
