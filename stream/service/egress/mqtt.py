"""Results over MQTT, and cameras that Home Assistant finds by itself.

    gatestream/<camera>/prediction, .../event, .../gap     the JSON objects of --json
    gatestream/<camera>/now/<head>                          label of the open event, `idle` without one; retained
    gatestream/status                                      online or offline; retained; also the broker's last will
    homeassistant/sensor/gatestream_<camera>_<head>/config  makes a sensor of `now`; retained"""

import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from engines.errors import UsageError, imports_of
from stream.service.config import MqttConfig
from stream.service.egress.outbox import JsonRecord, ResultSink

log = logging.getLogger("gatestream.service")

IDLE = "idle"
WAITING = 10_000  # messages that may wait for the broker
BACK_OFF_S = (1, 60)  # between two tries to reach it
QUEUED = ("event", "gap")  # types that are sent until the broker has them


class MqttSink(ResultSink):
    """Publishes results to a broker, with paho-mqtt's thread. While the broker is away, events and gaps wait and
    predictions are dropped. Raises UsageError without paho-mqtt, or for a password file that cannot be read."""

    def __init__(self, settings: MqttConfig) -> None:
        with imports_of("mqtt", "paho-mqtt", "results over MQTT"):
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        self._settings, self._announced = settings, set[tuple[str, str]]()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.max_queued_messages_set(WAITING)
        self._client.reconnect_delay_set(*BACK_OFF_S)
        if settings.username is not None:
            self._client.username_pw_set(settings.username, _password(settings))
        if settings.tls:
            self._client.tls_set()
        self._status = f"{settings.topic}/status"
        self._client.will_set(self._status, "offline", qos=1, retain=True)
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.connect_async(settings.host, settings.port)
        self._client.loop_start()

    def write(self, records: Sequence[JsonRecord]) -> None:
        for record in records:
            camera, kind = _level(record["camera"]), record["type"]
            if kind in QUEUED or self._client.is_connected():
                self._publish(f"{camera}/{kind}", json.dumps(record, separators=(",", ":")), int(kind in QUEUED))
            if kind == "prediction":
                for head in record["heads"]:
                    self._announce(camera, record["camera"], head)
            elif kind == "event":
                self._announce(camera, record["camera"], record["head"])
                self._publish_now(camera, record["head"], record["label"] if record["open"] else IDLE)

    def close(self, within_s: float) -> None:
        if self._client.is_connected():
            self._client.publish(self._status, "offline", qos=1, retain=True).wait_for_publish(within_s)
        self._client.disconnect()
        self._client.loop_stop()

    def _publish(self, topic: str, payload: str, qos: int, retain: bool = False) -> None:
        self._client.publish(f"{self._settings.topic}/{topic}", payload, qos=qos, retain=retain)

    def _publish_now(self, camera: str, head: str, label: str) -> None:
        self._publish(f"{camera}/now/{_level(head)}", label, 1, retain=True)

    def _announce(self, camera: str, name: str, head: str) -> None:
        """Makes a sensor of a camera's head in Home Assistant, once."""
        if not self._settings.discovery or (camera, head) in self._announced:
            return
        self._announced.add((camera, head))
        id = f"gatestream_{camera}_{_level(head)}"
        topic = f"{self._settings.topic}/{camera}"
        sensor: dict[str, Any] = {
            "name": head, "unique_id": id, "state_topic": f"{topic}/now/{_level(head)}",
            "json_attributes_topic": f"{topic}/event", "availability_topic": self._status, "icon": "mdi:gesture",
            "device": {"identifiers": [f"gatestream_{camera}"], "name": name, "manufacturer": "gatestream"}}
        self._client.publish(f"{self._settings.discovery}/sensor/{id}/config", json.dumps(sensor), qos=1, retain=True)
        self._publish_now(camera, head, IDLE)

    def _on_connect(self, client: Any, data: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            log.error("the MQTT broker refuses the connection: %s", reason)
            return
        log.info("results go to the MQTT broker %s:%d", self._settings.host, self._settings.port)
        client.publish(self._status, "online", qos=1, retain=True)

    def _on_disconnect(self, client: object, data: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            log.warning("the MQTT broker is gone (%s): events wait", reason)


def _password(settings: MqttConfig) -> str | None:
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
