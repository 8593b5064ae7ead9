"""What a service is told: a TOML file, checked before anything starts.

    model = "gesture"

    [receive]
    bind = ["tcp://127.0.0.1:5555"]

    [[camera]]
    name = "cell-3"
    source = "zmq://10.0.0.3:5555"

    [results]
    log = "events.db"
    publish = "tcp://127.0.0.1:5556"

Every key has a default but a camera's name: an empty file is a service. Mistakes are told with their line.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engines.errors import UsageError
from stream.sources import check_source
from stream.sources.address import parse_scheme
from stream.wire import NAME_CHARACTERS, parse_camera_name

Address = Annotated[str, Field(pattern=r"^(tcp://[^\s/]+:(\d{1,5}|\*)|ipc://\S+)$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Staleness = Annotated[float, Field(gt=0, le=60_000)]
LOOPBACK = ("localhost", "127.0.0.1", "::1")
Share = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Receive(_Table):
    """Sockets that cameras dial. bind: for imagezmq, NetGear (REQ) and `gatestream camera`, side by side; pair, sub:
    ports of their own for NetGear's patterns 0 and 2; curve: only senders with a key in the folder `keys`, see
    `gatestream keys`; addresses: only senders
    at these IP addresses, all if empty; unknown: cameras that are not in the file may join, up to `cameras` in all;
    staleness_ms: a message that waited longer is dropped; pace_ms: an answer waits for its frame's turn, so long at
    most, so that senders that wait slow down; tell: answers carry the camera's latest prediction; quotas are each
    camera's."""

    bind: tuple[Address, ...] = ("tcp://127.0.0.1:5555",)
    pair: tuple[Address, ...] = ()
    sub: tuple[Address, ...] = ()
    curve: bool = False
    keys: Path | None = None
    addresses: tuple[str, ...] = ()
    unknown: bool = True
    cameras: Annotated[int, Field(ge=1, le=10_000)] = 256
    staleness_ms: Staleness = 200.0
    pace_ms: Annotated[float, Field(ge=0, le=1000)] = 0.0
    tell: bool = True
    max_message_mb: Annotated[float, Field(gt=0, le=1024)] = 32.0
    max_frames_per_s: Annotated[float, Field(gt=0)] = 120.0
    max_mb_per_s: Annotated[float, Field(gt=0)] = 200.0


class Camera(_Table):
    """A camera. source: as of `gatestream run`: a webcam's number, rtsp://, zmq://host:port of a publisher, a file;
    without one, the camera dials us and sends its name; address: of a sender that sends no name, or the
    only one that may use this name; colour: of raw pixels that do not say; crop: x, y, width, height as shares of the
    picture; open_above, min_score: instead of the model's; staleness_ms: instead of all cameras'; lost_after_s: with
    no frames for so long a camera has left, and its events are closed."""

    name: str
    source: str | None = None
    address: str | None = None
    colour: Literal["BGR", "RGB"] = "BGR"
    crop: tuple[Share, Share, Share, Share] | None = None
    open_above: Share | None = None
    min_score: Share | None = None
    staleness_ms: Staleness | None = None
    lost_after_s: Seconds = 20.0

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if parse_camera_name(value) != value:
            raise ValueError(f"a printable name of up to {NAME_CHARACTERS} characters, without spaces around it")
        return value

    @field_validator("source")
    @classmethod
    def _source(cls, value: str | None) -> str | None:
        if value is not None and parse_scheme(value) == "zmq" and not re.fullmatch(r"zmq://[^\s/]+:\d{1,5}", value):
            raise ValueError("zmq://host:port of a publisher")
        if value is not None:
            try:
                check_source(value)
            except UsageError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("crop")
    @classmethod
    def _crop(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not (value[2] > 0 and value[3] > 0 and value[0] + value[2] <= 1
                                      and value[1] + value[3] <= 1):
            raise ValueError("x, y, width, height of a part of the picture, as shares: [0.25, 0.0, 0.5, 1.0]")
        return value


class Mqtt(_Table):
    """An MQTT broker. password_file: holds the password, which has no place here; topic: what ours begin with;
    discovery: Home Assistant's prefix, "" for none."""

    host: str = "localhost"
    port: Annotated[int, Field(ge=1, le=65_535)] = 1883
    tls: bool = False
    username: str | None = None
    password_file: Path | None = None
    topic: Annotated[str, Field(pattern=r"^[^+#\s/][^+#\s]*$")] = "gatestream"
    discovery: str = "homeassistant"


class Results(_Table):
    """Where results go. log: the event log; publish: a ZeroMQ publisher, one topic for each camera; mqtt: a broker;
    jsonl: a file of JSON lines; webhook: an HTTP address that gets closed events."""

    log: Path | None = None
    publish: tuple[Address, ...] = ()
    mqtt: Mqtt | None = None
    jsonl: Path | None = None
    webhook: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None


class Clips(_Table):
    """A video of every event, made from the pictures as they came, all in one folder. before_s, after_s: around the
    event; most_s: the longest; keep_days, keep_mb: older ones and the oldest ones beyond that are deleted."""

    folder: Path
    before_s: Annotated[float, Field(ge=0, le=60)] = 2.0
    after_s: Annotated[float, Field(ge=0, le=60)] = 2.0
    most_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    keep_days: Annotated[float, Field(gt=0)] = 30.0
    keep_mb: Annotated[float, Field(gt=0)] = 10_000.0


class Gate(_Table):
    """What a changed model has to do before it goes live: find the events in a recording (a file that `gatestream run`
    takes) that the one before it finds, with this F1 at least."""

    recording: Path
    f1: Share = 0.9

    @field_validator("recording")
    @classmethod
    def _recording(cls, value: Path) -> Path:
        if not value.exists():
            raise ValueError("a recording that is there")
        return value


class Health(_Table):
    """bind: where /metrics and /health are served, None for nowhere; pictures: whether cameras can be looked at there,
    None for only if nobody but this machine can ask."""

    bind: Annotated[str, Field(pattern=r"^[^\s/]+:\d{1,5}$")] | None = "127.0.0.1:9155"
    pictures: bool | None = None

    @property
    def shows(self) -> bool:
        """Whether cameras can be looked at."""
        host = (self.bind or "").rpartition(":")[0].strip("[]")
        return host in LOOPBACK if self.pictures is None else self.pictures


class ClusterConfig(_Table):
    """Workers of `serve --cluster`. address: of a running Ray cluster, None for one of this machine alone; workers: how
    many, by default one for each GPU, else as many as there are groups of cores; cores: of each."""

    address: str | None = None
    workers: Annotated[int, Field(ge=1, le=10_000)] | None = None
    cores: Annotated[int, Field(ge=1, le=1024)] = 2


class Config(_Table):
    """The whole file. model, engine: as of `gatestream run`; models: folders from which a running service takes another
    model; camera: what is special about some of them."""

    model: str = "gesture"
    engine: str = "auto"
    models: tuple[Path, ...] = ()
    gate: Gate | None = None
    receive: Receive = Receive()
    camera: tuple[Camera, ...] = ()
    results: Results = Results()
    clips: Clips | None = None
    health: Health = Health()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [camera.name for camera in self.camera]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"two cameras called {name!r}")
        if len(names) > self.receive.cameras:
            raise ValueError(f"{len(names)} cameras, where receive.cameras is {self.receive.cameras}")
        if self.clips is not None and self.results.log is None:
            raise ValueError("clips without results.log, from which they have their names")
        return self


def read(path: Path) -> Config:
    """The configuration in a file. Raises UsageError, which names the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path}: {reason}", "a TOML file that can be read", "check the path") from error
    return parse(text, str(path))


def parse(text: str, name: str = "configuration") -> Config:
    """The configuration that a text says. Raises UsageError, which names the line."""
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)", str(error))
        where = f"{name}:{place[1]}" if place else name
        raise UsageError(f"{where}: {str(error).split(' (at ')[0]}", "TOML",
                         "see toml.io for how to write it") from error
    except ValidationError as error:
        lines = lines_of(text)
        told = [f"{name}:{_line(lines, fault['loc'])}: {_key(fault['loc'])}: {_reason(fault)}"
                for fault in error.errors()]
        raise UsageError("; ".join(told[:5]), "keys and values as README's section on the service lists them",
                         "correct the lines and run `gatestream serve --check` again") from error


def lines_of(text: str) -> dict[tuple[str | int, ...], int]:
    """The line of every table and key of a TOML text that is valid, by its path."""
    lines: dict[tuple[str | int, ...], int] = {(): 1}
    table: tuple[str | int, ...] = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*\[\[\s*([\w.-]+)\s*\]\]", line):
            counts[found[1]] = counts.get(found[1], -1) + 1
            table = (*found[1].split("."), counts[found[1]])
            lines[table] = number
        elif found := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            table = tuple(found[1].split("."))
            lines[table] = number
        elif found := re.match(r"\s*([\w.-]+)\s*=", line):
            lines[(*table, *found[1].split("."))] = number
    return lines


def _line(lines: dict[tuple[str | int, ...], int], place: tuple[str | int, ...]) -> int:
    """Of the key at a place, or of the nearest that holds it."""
    while place not in lines:
        place = place[:-1]
    return lines[place]


def _key(place: tuple[str | int, ...]) -> str:
    return ".".join(f"{part}" if isinstance(part, str) else f"{part + 1}" for part in place) or "the file"


def _reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such key"
    if fault["type"] == "missing":
        return "missing"
    text = fault["msg"].removeprefix("Value error, ")
    return f"{text}, got {str(fault['input'])[:60]!r}" if fault["loc"] else text
