"""The service's configuration: a TOML file, validated before anything starts.

An empty file is a valid configuration. `config_table.py` makes the README's table of its keys."""

import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from engines.errors import UsageError
from stream.sources import check_source
from stream.sources.address import MOST_PORT, has_host, has_valid_port, is_loopback, parse_scheme, split_address
from stream.wire.messages import NAME_CHARACTERS, parse_camera_name


def _require(holds: Callable[[Any], bool], wanted: str) -> AfterValidator:
    """A pydantic validator of values for which `holds` is true."""
    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(wanted)
        return value

    return AfterValidator(check)


def _key(default: Any, meaning: str, **limits: Any) -> Any:
    """A key that may be left out; limits: as pydantic's `Field` has them."""
    return Field(default, description=meaning, **limits)


def _check_source(spec: str) -> str:
    if parse_scheme(spec) == "zmq" and not (re.fullmatch(r"zmq://[^\s/]+:\d{1,5}", spec) and has_valid_port(spec)):
        raise ValueError("zmq://host:port of a publisher")
    try:
        check_source(spec)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return spec


_Port = _require(has_valid_port, f"a port of {MOST_PORT} at most")
Address = Annotated[str, Field(pattern=r"^(tcp://[^\s/]+:(\d{1,5}|\*)|ipc://\S+)$"), _Port]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Staleness = Annotated[float, Field(gt=0, le=60_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Pause = Annotated[float, Field(ge=0, le=60)]
CameraName = Annotated[str, _require(lambda name: parse_camera_name(name) == name, (
    f"a printable name of up to {NAME_CHARACTERS} characters, without spaces around it"))]
Crop = Annotated[tuple[Share, Share, Share, Share], _require(
    lambda xywh: xywh[2] > 0 and xywh[3] > 0 and xywh[0] + xywh[2] <= 1 and xywh[1] + xywh[3] <= 1,
    "x, y, width, height of a part of the picture, as shares: [0.25, 0.0, 0.5, 1.0]")]
File = Annotated[Path, _require(Path.is_file, "a file that is there")]
KeyPath = tuple[str | int, ...]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReceiveConfig(_Table):
    """Sockets to which cameras connect. Quotas are each camera's."""

    bind: tuple[Address, ...] = _key(("tcp://127.0.0.1:5555",), (
        "Addresses for imagezmq and NetGear (REQ) senders and `gatestream camera`, side by side."))
    pair: tuple[Address, ...] = _key((), "Addresses for NetGear's pattern 0 (PAIR), one sender each.")
    sub: tuple[Address, ...] = _key((), "Addresses for NetGear's pattern 2 (PUB).")
    curve: bool = _key(False, "Only senders with a key in the folder `keys` may connect; see `gatestream keys`.")
    keys: Path | None = _key(None, "Folder of keys; default: the user's own (`~/.config/gatestream/keys` on Linux).")
    addresses: tuple[str, ...] = _key((), "Only senders at these IP addresses may connect; empty: all.")
    unknown: bool = _key(True, "Cameras that are not in this file may join.")
    cameras: int = _key(256, "Largest number of cameras, those in this file included.", ge=1, le=10_000)
    staleness_ms: Staleness = _key(200.0, "A frame that waited longer than this for the engine is dropped.")
    pace_ms: float = _key(0.0, "Longest wait of an answer for the engine, to slow its sender down.", ge=0, le=1000)
    tell: bool = _key(True, "Answer imagezmq senders with their camera's latest prediction, if any, instead of `OK`.")
    max_message_mb: float = _key(
        32.0, "Largest message (MiB); whoever sends four times as much is cut off.", gt=0, le=1024)
    max_frames_per_s: Positive = _key(120.0, "Quota of messages per second.")
    max_mb_per_s: Positive = _key(200.0, "Quota of payload per second (MB).")


class CameraConfig(_Table):
    """A camera that is opened by the service, or whose settings differ from the others'."""

    name: CameraName = Field(description="As the camera calls itself: up to 64 printable characters.")
    source: Annotated[str, AfterValidator(_check_source)] | None = _key(None, (
        "Opened by the service, as by `gatestream run`: webcam number, rtsp://, zmq://host:port of a publisher, file. "
        "Without it, the camera connects to the service."))
    address: str | None = _key(None, "IP address of a sender without a name, or the only one that may use this name.")
    model: str | None = _key(None, "A bundled model's name or a model file, instead of the service's `model`.")
    colour: Literal["BGR", "RGB"] = _key("BGR", "Channel order of raw pixels whose header does not say it.")
    crop: Crop | None = _key(None, "The part of the picture to use: x, y, width, height as shares of it.")
    open_above: Share | None = _key(None, "Probability above which an event opens, instead of its model's.")
    min_score: Share | None = _key(None, "Smallest score of an event that is reported, instead of its model's.")
    staleness_ms: Staleness | None = _key(None, "Instead of `receive.staleness_ms`.")
    lost_after_s: Seconds = _key(20.0, "After this long without a frame the camera has left: its events are closed.")


class MqttConfig(_Table):
    """An MQTT broker."""

    host: str = _key("localhost", "Host of the broker.")
    port: int = _key(1883, "Port of the broker.", ge=1, le=65_535)
    tls: bool = _key(False, "Encrypt the connection, with the system's certificates.")
    ca: Path | None = _key(None, "File of certificates to trust instead of the system's.")
    certificate: Path | None = _key(None, "File of the service's own certificate, if the broker asks for one.")
    key: Path | None = _key(None, "File of that certificate's key.")
    client_id: str = _key("", "Name of the connection; default: any.")
    username: str | None = _key(None, "Name to log in with.")
    password_file: Path | None = _key(None, "File that holds the password.")
    topic: str = _key("gatestream", "First level of all topics.", pattern=r"^[^+#\s/][^+#\s]*$")
    discovery: str = _key("homeassistant", "Home Assistant's discovery prefix; empty: no discovery.")
    pictures: bool = _key(False, "Publish each camera's newest picture, too, every 5 s at most.")


class WebhookConfig(_Table):
    """An HTTP address to which every closed event is posted; `webhook = "https://..."` for one without options."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$"), _require(has_host, "an address with a host")] = Field(
        description="The address.")
    headers: dict[str, str] = _key({}, "Headers to send with each event.")
    token_file: Path | None = _key(None, "File that holds a bearer token to send.")
    secret_file: Path | None = _key(None, "File that holds the key to sign events with (HMAC-SHA256).")
    timeout_s: float = _key(5.0, "Longest wait for an answer.", gt=0, le=60)


class ResultsConfig(_Table):
    """Where results go."""

    log: Path | None = _key(None, "The event log (SQLite); without it, what is not delivered is gone with the service.")
    keep_days: Positive | None = _key(None, "Older events and gaps leave the log, but not before sinks have them.")
    keep_mb: Positive | None = _key(None, "The oldest are deleted while the log is larger (MB), likewise.")
    publish: tuple[Address, ...] = _key((), "Addresses of a ZeroMQ publisher, with the topic `CAMERA/TYPE`.")
    confirmed: tuple[Address, ...] = _key((), (
        "Addresses for one consumer (ZeroMQ DEALER) that answers each closed event and gap with its number."))
    mqtt: MqttConfig | None = None
    jsonl: Path | None = _key(None, "A file of JSON lines, appended to.")
    webhook: Annotated[WebhookConfig, BeforeValidator(
        lambda value: {"url": value} if isinstance(value, str) else value)] | None = None


class ClipsConfig(_Table):
    """A video of every event, made from the pictures as cameras sent them; on request of all the time between, too."""

    folder: Path = Field(description="Folder of the videos.")
    continuous: bool = _key(False, "Record all that cameras send, in segments.")
    segment_s: float = _key(60.0, "Length of a segment.", ge=1, le=3600)
    before_s: Pause = _key(2.0, "Seconds shown before the event.")
    after_s: Pause = _key(2.0, "Seconds shown after it.")
    most_s: float = _key(60.0, "Longest video, counted from the event's start.", gt=0, le=600)
    keep_days: Positive = _key(30.0, "Older videos and segments are deleted.")
    keep_mb: Positive = _key(10_000.0, "The oldest videos and segments beyond this size of all (MB) are deleted.")


class PromotionConfig(_Table):
    """What a new model has to do before it replaces the running one."""

    recording: Annotated[Path, _require(Path.exists, "a recording that is there")] = Field(description=(
        "A recording that `gatestream run` takes, in which it has to find the events that the running model finds."))
    f1: Share = _key(0.9, "Smallest F1 of that comparison.")


class HealthConfig(_Table):
    """The HTTP and WebSocket API: /docs lists its pages, /health and /metrics are two of them."""

    bind: Annotated[str, Field(pattern=r"^[^\s/]+:\d{1,5}$"), _Port] | None = _key(
        "127.0.0.1:9155", "host:port of the pages; [::1]:9155 for IPv6.")
    pictures: bool | None = _key(None, (
        "Serve cameras' pictures, videos and live records, too; default: at a loopback `bind`, or with `api.tokens`."))


class ApiConfig(_Table):
    """Who may use the pages at `health.bind`, and how."""

    tokens: File | None = _key(None, "File of tokens (`gatestream tokens new`): every request has to bring one.")
    open: bool = _key(False, "Serve an address that other machines reach without tokens: everybody may read.")
    hosts: tuple[str, ...] = _key((), (
        "Names it is called by beside localhost, this machine's and IP addresses; `*`: any, as it is with tokens."))
    certificate: File | None = _key(None, "TLS: a PEM file with the certificates; it is read at the start.")
    certificate_key: File | None = _key(None, "PEM file of its key, if that is another one.")
    requests_per_s: Positive = _key(500.0, "Quota of each client (IP address); further requests are answered with 429.")


class ClusterConfig(_Table):
    """Workers of `gatestream serve --cluster`."""

    address: str | None = _key(None, "Address of a running Ray cluster; by default one is started on this machine.")
    workers: int | None = _key(None, (
        "Number of workers; by default one for each GPU, or without GPUs one for each `cores` cores."), ge=1, le=10_000)
    cores: int = _key(2, "Cores of each worker.", ge=1, le=1024)


class Config(_Table):
    """The whole file."""

    model: str = _key("gesture", "A bundled model's name or a model file.")
    engine: str = _key("auto", "As of `gatestream run --engine`.")
    models: tuple[Path, ...] = _key((), "Folders from which a running service may take another model.")
    memory_mb: int = _key(1024, "Most memory (MB) for pictures that wait or are kept; it is told when it bites.", ge=64)
    gate: PromotionConfig | None = None
    receive: ReceiveConfig = ReceiveConfig()
    camera: tuple[CameraConfig, ...] = ()
    results: ResultsConfig = ResultsConfig()
    clips: ClipsConfig | None = None
    health: HealthConfig = HealthConfig()
    api: ApiConfig = ApiConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [camera.name for camera in self.camera]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"two cameras called {twice[0]!r}")
        if len(names) > self.receive.cameras:
            raise ValueError(f"{len(names)} cameras, where receive.cameras is {self.receive.cameras}")
        if self.clips is not None and self.results.log is None:
            raise ValueError("clips without results.log, from which they have their names")
        bind, api = self.health.bind, self.api
        if bind and not (api.tokens or api.open or is_loopback(split_address(bind)[0])):
            raise ValueError(f"health.bind = {bind!r}, which other machines reach, without tokens; set api.tokens to a "
                             "file of `gatestream tokens new`, or api.open = true to let everybody read")
        if api.certificate_key and not api.certificate:
            raise ValueError("api.certificate_key without api.certificate")
        return self

    @property
    def exposures(self) -> list[str]:
        """What anybody in the network may do, a line each: addresses beyond loopback without keys."""
        receive, results = self.receive, self.results
        senders = [] if receive.curve or receive.addresses else [*receive.bind, *receive.pair, *receive.sub]
        may = (("send as any camera: set receive.curve or receive.addresses", senders),
               ("read the results, which are not encrypted: publish on the loopback address",
                [*results.publish, *results.confirmed]))
        return [f"anybody who reaches {address} may {what}" for what, addresses in may for address in addresses
                if address.startswith("tcp://") and not is_loopback(split_address(address[6:])[0])]

    @property
    def serves_pictures(self) -> bool:
        """Whether cameras' pictures and live records are served."""
        if self.health.pictures is not None:
            return self.health.pictures
        return self.api.tokens is not None or is_loopback(split_address(self.health.bind or "")[0])


def read_config(path: Path) -> Config:
    """Reads and validates a configuration file. Raises UsageError, which names the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path}: {reason}", "a TOML file that can be read", "check the path") from error
    return parse_config(text, str(path))


def parse_config(text: str, name: str = "configuration") -> Config:
    """Validates the text of a configuration file called `name`. Raises UsageError, which names the line."""
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        position = re.search(r" \(at line (\d+), column \d+\)", str(error))
        where = f"{name}:{position[1]}" if position else name
        raise UsageError(f"{where}: {str(error).split(' (at ')[0]}", "TOML",
                         "see toml.io for how to write it") from error
    except ValidationError as error:
        lines = _key_lines(text)
        faults = [f"{name}:{_describe(fault, lines)}" for fault in error.errors()[:5]]
        raise UsageError("; ".join(faults), "keys and values as stream/service/README.md lists them",
                         "correct the lines and run `gatestream serve --check` again") from error


def _key_lines(text: str) -> dict[KeyPath, int]:
    """The line of every table and key of a valid TOML text."""
    lines: dict[KeyPath, int] = {(): 1}
    table: KeyPath = ()
    counts: Counter[KeyPath] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*(\[{0,2})\s*([\w.-]+)\s*[]=]", line):
            path: KeyPath = tuple(found[2].split("."))
            if found[1]:
                table = (*path, counts[path]) if found[1] == "[[" else path
                counts[path] += 1
            lines[table if found[1] else (*table, *path)] = number
    return lines


def _describe(fault: Any, lines: dict[KeyPath, int]) -> str:
    """The line of the key at fault, or of the nearest table that holds it; the key; what is wrong with it."""
    key: KeyPath = fault["loc"]
    line = next(lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines)
    dotted = ".".join(f"{part}" if isinstance(part, str) else f"{part + 1}" for part in key) or "the file"
    got = f", got {str(fault['input'])[:60]!r}" if key else ""
    reason = {"extra_forbidden": "no such key", "missing": "missing"}.get(fault["type"])
    return f"{line}: {dotted}: {reason or fault['msg'].removeprefix('Value error, ') + got}"
