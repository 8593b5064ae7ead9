"""Results over MQTT, and cameras that Home Assistant finds by itself.

    gatestream/<camera>/prediction, .../event, .../gap     the JSON objects of --json
    gatestream/<camera>/now/<head>                          label of the open event, `idle` without one; retained
    gatestream/<camera>/status                              online or offline; retained
    gatestream/status                                      the same of the service; retained; also its last will
    gatestream/<camera>/picture                             its newest picture (JPEG), if asked for
    homeassistant/sensor/gatestream_<camera>_<head>/config  makes a sensor of `now`; retained"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.errors import SinkError, UsageError, imports_of
from stream.frame import Camera, Event, Frame, Prediction, Record, is_lasting, record_type
from stream.sinks.base import Sink, plain_name, to_json
from stream.sinks.webhook import read_secret

log = logging.getLogger("gatestream.service")

IDLE, ONLINE, OFFLINE = "idle", "online", "offline"
BACK_OFF_S = (1, 5)  # between two tries to reach the broker
CONFIRMS_WITHIN_S = 5.0
PICTURE_S = 5.0  # from one picture of a camera to the next


class MqttSink(Sink):
    """Publishes results to a broker, with paho-mqtt's thread. Closed events and gaps are written when the broker has
    confirmed them; what else is written while it is away is dropped, but for the latest labels and states.

    topic: first level of all topics; discovery: Home Assistant's prefix, "" for none; ca, certificate, key: files of
    another authority than the system's, and of the client's own certificate; pictures: gives a camera's newest picture,
    as a JPEG, to publish it. Raises UsageError without paho-mqtt, or for files that cannot be read."""

    durable = True

    def __init__(self, host: str = "localhost", port: int = 1883, *, tls: bool = False, ca: Path | None = None,
                 certificate: Path | None = None, key: Path | None = None, client_id: str = "",
                 username: str | None = None, password_file: Path | None = None, topic: str = "gatestream",
                 discovery: str = "homeassistant", pictures: Callable[[str], bytes | None] | None = None) -> None:
        with imports_of("mqtt", "paho-mqtt", "results over MQTT"):
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        self._topic, self._discovery, self._broker = topic, discovery.strip("/"), f"{host}:{port}"
        self._entities: dict[tuple[str, str, str], dict[str, Any]] = {}  # by kind, camera and name
        self._pictures, self._picture_at = pictures, dict[str, float]()  # when each camera's next one is due
        self._retained: dict[str, str] = {}  # by topic
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id)
        self._client.reconnect_delay_set(*BACK_OFF_S)
        if username is not None:
            self._client.username_pw_set(username, None if password_file is None else read_secret(password_file))
        if tls or ca or certificate:
            try:
                files = {"ca_certs": ca, "certfile": certificate, "keyfile": key}
                self._client.tls_set(**{name: str(path) for name, path in files.items() if path})  # type: ignore[arg-type]
            except (OSError, ValueError) as error:  # of ssl, too
                raise UsageError(f"certificates for the MQTT broker: {error}", "PEM files that can be read",
                                 "check ca, certificate and key") from error
        self._status = f"{topic}/status"
        self._client.will_set(self._status, OFFLINE, qos=1, retain=True)
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.on_connect_fail = lambda *_: self._on_fault("cannot be reached")
        self.fault = f"the MQTT broker {self._broker} is not reached yet"
        self._client.connect_async(host, port)
        self._client.loop_start()

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        for record in records:
            topic = f"{self._topic}/{plain_name(record.camera)}/{plain_name(record_type(record))}"
            lasting = is_lasting(record)
            if lasting or self._client.is_connected():
                self._publish(topic, to_json(record), lasting)
            if isinstance(record, Prediction):
                for head in record.heads:
                    self._announce(record.camera, head)
                self._send_picture(record.camera)
            elif isinstance(record, Event):
                self._announce(record.camera, record.head)
                self._retain(_now(self._topic, record.camera, record.head), record.label if record.open else IDLE)
            elif isinstance(record, Camera) and record.action != "refused":  # by others, under whatever name
                self._retain(_state(self._topic, record.camera), OFFLINE if record.action == "left" else ONLINE)

    def close(self) -> None:
        if self._client.is_connected():
            for topic in self._retained:
                self._client.publish(topic, OFFLINE if topic.endswith("/status") else IDLE, qos=1, retain=True)
            self._client.publish(self._status, OFFLINE, qos=1, retain=True).wait_for_publish(CONFIRMS_WITHIN_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _publish(self, topic: str, payload: str, confirmed: bool) -> None:
        """Raises SinkError for what is to be confirmed and is not."""
        if confirmed and not self._client.is_connected():
            raise SinkError(self.fault or "no MQTT broker", "one that can be reached", "check the broker")
        message = self._client.publish(topic, payload, qos=int(confirmed))
        if confirmed:
            message.wait_for_publish(CONFIRMS_WITHIN_S)
            if not message.is_published():
                raise SinkError(f"the MQTT broker {self._broker} that confirms nothing", "a confirmation in "
                                f"{CONFIRMS_WITHIN_S:g} s", "look why it hangs")

    def _retain(self, topic: str, payload: str) -> None:
        """Has the broker keep the latest payload of a topic, which it gets again when it comes back."""
        self._retained[topic] = payload
        if self._client.is_connected():
            self._client.publish(topic, payload, qos=1, retain=True)

    def _send_picture(self, camera: str) -> None:
        """Publishes a camera's newest picture, if it is time for one."""
        if self._pictures is None or not self._client.is_connected() or (
                (now := time.monotonic()) < self._picture_at.get(camera, 0.0)):
            return
        self._picture_at[camera] = now + PICTURE_S
        if (jpeg := self._pictures(camera)) is not None:
            topic = f"{self._topic}/{plain_name(camera)}/picture"
            self._discover("image", camera, "picture", image_topic=topic, content_type="image/jpeg")
            self._client.publish(topic, jpeg)

    def _announce(self, camera: str, head: str) -> None:
        """Makes a sensor of a camera's head in Home Assistant, once for each connection to the broker."""
        if ("sensor", camera, head) in self._entities:
            return
        now = _now(self._topic, camera, head)
        self._discover("sensor", camera, head, state_topic=now, icon="mdi:gesture",
                       json_attributes_topic=f"{self._topic}/{plain_name(camera)}/event")
        self._retain(_state(self._topic, camera), ONLINE)
        self._retain(now, IDLE)  # what an earlier service may have left there

    def _discover(self, kind: str, camera: str, name: str, **values: str) -> None:
        """Has Home Assistant make an entity, once for each connection to the broker."""
        if (kind, camera, name) not in self._entities:
            self._entities[kind, camera, name] = {
                "name": name, "unique_id": f"gatestream_{_ascii(camera)}_{_ascii(name)}", **values,
                "availability": [{"topic": topic} for topic in (self._status, _state(self._topic, camera))],
                "availability_mode": "all",
                "device": {"identifiers": [f"gatestream_{_ascii(camera)}"], "name": camera,
                           "manufacturer": "gatestream"}}
            self._publish_entity(kind, self._entities[kind, camera, name])

    def _publish_entity(self, kind: str, entity: dict[str, Any]) -> None:
        if self._discovery and self._client.is_connected():
            self._client.publish(f"{self._discovery}/{kind}/{entity['unique_id']}/config", json.dumps(entity), qos=1,
                                 retain=True)

    def _on_connect(self, client: Any, data: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            self._on_fault(f"refuses the connection: {reason}")
            return
        self.fault = None
        log.info("results go to the MQTT broker %s", self._broker)
        client.publish(self._status, ONLINE, qos=1, retain=True)
        for (kind, _, _), entity in list(self._entities.items()):  # to a broker that was started anew, too
            self._publish_entity(kind, entity)
        for topic, payload in list(self._retained.items()):
            client.publish(topic, payload, qos=1, retain=True)

    def _on_disconnect(self, client: object, data: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure and self.fault is None:
            self._on_fault(f"is gone ({reason})")

    def _on_fault(self, what: str) -> None:
        fault = f"the MQTT broker {self._broker} {what}"
        if fault != self.fault:
            log.warning("%s: events and gaps wait", fault)
        self.fault = fault


def _now(topic: str, camera: str, head: str) -> str:
    return f"{topic}/{plain_name(camera)}/now/{plain_name(head)}"


def _state(topic: str, camera: str) -> str:
    return f"{topic}/{plain_name(camera)}/status"


def _ascii(name: str) -> str:
    return plain_name(name, r"[^a-zA-Z0-9_-]+")
