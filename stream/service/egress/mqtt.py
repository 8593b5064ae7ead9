"""Results over MQTT, and cameras that Home Assistant finds by itself.

    gatestream/<camera>/prediction, .../event, .../gap     the JSON objects of --json
    gatestream/<camera>/now/<head>                          the label of the event under way, `idle` without one; kept
    gatestream/status                                      online or offline; kept; the broker sets it when we vanish
    homeassistant/sensor/gatestream_<camera>_<head>/config  makes a sensor of `now`; kept

Needs paho-mqtt (`pip install 'gatestream[mqtt]'`). While the broker is away, events and gaps wait; predictions do not.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from engines.errors import UsageError, imports_of
from stream.service.config import Mqtt
from stream.service.egress.outbox import ResultSink, Said

log = logging.getLogger("gatestream.service")

IDLE = "idle"
WAITING = 10_000  # messages that may wait for the broker
BACK_OFF_S = (1, 60)  # between two tries to reach it
NEEDED = ("event", "gap")  # what is sent until the broker has it


class MqttSink(ResultSink):
    """See the file's top. Raises UsageError without paho-mqtt, or for a password file that cannot be read."""

    def __init__(self, settings: Mqtt) -> None:
        with imports_of("mqtt", "paho-mqtt", "results over MQTT"):
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        self._settings, self._known = settings, set[tuple[str, str]]()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.max_queued_messages_set(WAITING)
        self._client.reconnect_delay_set(*BACK_OFF_S)
        if settings.username is not None:
            self._client.username_pw_set(settings.username, _password(settings))
        if settings.tls:
            self._client.tls_set()
        self._status = f"{settings.topic}/status"
        self._client.will_set(self._status, "offline", qos=1, retain=True)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.connect_async(settings.host, settings.port)
        self._client.loop_start()

    def write(self, said: Sequence[Said]) -> None:
        for one in said:
            camera = _level(one["camera"])
            if one["type"] in NEEDED or self._client.is_connected():
                self._send(f"{camera}/{one['type']}", json.dumps(one, separators=(",", ":")), one["type"] in NEEDED)
            if one["type"] == "prediction":
                for head in one["heads"]:
                    self._introduce(camera, one["camera"], head)
            elif one["type"] == "event":
                self._introduce(camera, one["camera"], one["head"])
                now = one["label"] if one["open"] else IDLE
                self._send(f"{camera}/now/{_level(one['head'])}", now, True, keep=True)

    def close(self, within_s: float) -> None:
        if self._client.is_connected():
            self._client.publish(self._status, "offline", qos=1, retain=True).wait_for_publish(within_s)
        self._client.disconnect()
        self._client.loop_stop()

    def _send(self, topic: str, payload: str, needed: bool, keep: bool = False) -> None:
        self._client.publish(f"{self._settings.topic}/{topic}", payload, qos=int(needed), retain=keep)

    def _introduce(self, camera: str, name: str, head: str) -> None:
        """Tells Home Assistant of a camera's head, once."""
        if not self._settings.discovery or (camera, head) in self._known:
            return
        self._known.add((camera, head))
        id = f"gatestream_{camera}_{_level(head)}"
        topic = f"{self._settings.topic}/{camera}"
        sensor: dict[str, Any] = {
            "name": head, "unique_id": id, "state_topic": f"{topic}/now/{_level(head)}",
            "json_attributes_topic": f"{topic}/event", "availability_topic": self._status, "icon": "mdi:gesture",
            "device": {"identifiers": [f"gatestream_{camera}"], "name": name, "manufacturer": "gatestream"}}
        self._client.publish(f"{self._settings.discovery}/sensor/{id}/config", json.dumps(sensor), qos=1, retain=True)
        self._send(f"{camera}/now/{_level(head)}", IDLE, True, keep=True)

    def _connected(self, client: Any, data: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            log.error("the MQTT broker refuses us: %s", reason)
            return
        log.info("results go to the MQTT broker %s:%d", self._settings.host, self._settings.port)
        client.publish(self._status, "online", qos=1, retain=True)

    def _disconnected(self, client: object, data: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            log.warning("the MQTT broker is gone (%s): events wait", reason)


def _password(settings: Mqtt) -> str | None:
    if settings.password_file is None:
        return None
    try:
        return settings.password_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{settings.password_file}, which cannot be read", "a file with the broker's password",
                         "check results.mqtt.password_file") from error


def _level(name: str) -> str:
    """A name as one level of a topic."""
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "-"
