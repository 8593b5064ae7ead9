"""Which camera a message is of, and whether it is admitted: names, keys, addresses, numbers and quotas."""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from engines.errors import FrameError
from stream.clock import CaptureTimes, unix_time
from stream.frame import Camera, Event, Gap, Prediction, Record
from stream.service.config import CameraConfig, Config
from stream.service.ingress.scheduler import FrameScheduler
from stream.wire.messages import NAME_CHARACTERS, Message

log = logging.getLogger("gatestream.service")

SILENT_AFTER_S = 3.0  # without a frame that is told, long before the camera has left
FROZEN_AFTER_S = 20.0  # of the very same payload
TAKEN_OVER_AFTER_S = 5.0  # of silence, by another connection from the same address
NOTICES, NOTICE_S = 100, 10.0
IN_STREAM = ("reset", "new stream")  # what was done about gaps that nothing else tells of
NEW_NAMES = 16  # of cameras, over one connection
REFUSED_S = (10.0, 30.0, 120.0, 600.0)  # how long a camera is refused whose frames ended engines, the last repeatedly
FORGIVEN_AFTER_S = 1800.0


@dataclass(eq=False, slots=True)
class Connection:
    """One sender's connection to a socket."""

    peer: str = ""  # IP address of the sender, "" where there is none
    key: str = ""  # its public CURVE key
    open: bool = True
    camera: str | None = None  # that its latest frame was of
    unnamed: str | None = None  # what it is called without a name
    new_names: int = 0


@dataclass(slots=True)
class CameraSession:
    """What is known of a camera that has sent something, or is configured. Times are steady seconds."""

    name: str
    config: CameraConfig
    configured: bool
    protocol: str = ""
    peer: str = ""  # IP address of its sender
    connection: Connection | None = None  # that its latest frame came over
    last_at: float = 0.0
    alive_at: float = 0.0  # the latest sign of life of the process that opens it
    present: bool = False  # it sends
    silent: bool = False  # it is present, but has sent nothing for SILENT_AFTER_S
    frames_left: float = 0.0  # of its quota
    bytes_left: float = 0.0  # of its quota
    payload: int = 0  # hash of the last one
    changed_at: float = 0.0  # when its payload last changed
    left_at: float | None = None  # when it last sent before it left
    reconnects: int = 0
    predictions: int = 0
    latest: Prediction | None = None  # since it has joined
    answer: bytes | None = None  # the same as JSON
    open_events: dict[tuple[str, int | None], Event] = field(default_factory=dict)  # by head, number
    gaps: Counter[str] = field(default_factory=Counter)  # in its stream, by action
    notices: tuple[float, float] = (0.0, 0.0)  # what was reported or logged of it of late, and when last
    odd: list[str] = field(default_factory=list)  # what no camera should show, a line each
    fault: str = ""  # why its latest picture could not be decoded
    crashes: int = 0  # of engines that had its frames
    crashed_at: float = -math.inf
    refused_until: float = 0.0
    clock: CaptureTimes = field(default_factory=CaptureTimes)

    def on_record(self, record: Record) -> None:
        """Notes what a record says of the camera."""
        if isinstance(record, Prediction):
            self.latest, self.answer = record, json.dumps(record.as_json()).encode()
            self.predictions, self.fault = self.predictions + 1, ""
        elif isinstance(record, Event) and record.open:
            self.open_events[record.head, record.number] = record
        elif isinstance(record, Event):
            self.open_events.pop((record.head, record.number), None)

    def may_report(self, record: Gap | Camera | None, now: float) -> bool:
        """Whether a gap, or that it joins or leaves, is reported, or what is logged only (None): NOTICES at once, then
        one every NOTICE_S, or a camera that comes and goes without end would fill the log. All are counted."""
        if isinstance(record, Gap):
            self.gaps[record.action] += 1
        count, at = self.notices
        count = max(0.0, count - (now - at) / NOTICE_S)
        self.notices = count + (count < NOTICES), now
        if isinstance(record, Gap) and record.action in IN_STREAM and count < NOTICES:
            log.info("camera %s: a gap of %.1f s (%s)", self.name, record.seconds, record.action)
        return count < NOTICES

    def join(self) -> None:
        """It sends, for the first time or again."""
        self.present, self.silent, self.fault, self.clock = True, False, "", CaptureTimes()

    def check_silence(self, now: float) -> None:
        """Logs when it falls silent, and when it sends again."""
        silent = self.present and now - self.last_at > SILENT_AFTER_S
        if silent != self.silent and self.present and self.may_report(None, now):
            log.warning("camera %s %s", self.name,
                        f"has sent nothing for {SILENT_AFTER_S:g} s" if silent else "sends again")
        self.silent = silent

    def leave(self) -> None:
        """It does not send any more."""
        self.present, self.left_at, self.latest, self.answer = False, self.last_at, None, None

    def capture_time(self, message: Message, now: float, own: bool = False) -> float:
        """When the picture of its message was taken (Unix time); logs what is wrong with its clock. own: a process of
        ours sends it, whose times are taken as they are."""
        if own and message.captured_at is not None:
            return message.captured_at
        before = self.clock.notice
        at = self.clock.of_frame(message.captured_at, unix_time(), now)
        if self.clock.notice != before and self.may_report(None, now):
            log.warning("camera %s: %s", self.name, self.clock.notice or "its clock is right again")
        return at

    def find_fault(self, now: float) -> str:
        """What is wrong with a camera that is present; "" if nothing is."""
        if self.silent:
            return f"it has sent nothing for {now - self.last_at:.0f} s"
        return f"its latest picture: {self.fault}" if self.fault else self.clock.notice

    def state(self, now: float) -> dict[str, Any]:
        """What /health shows of it that is known here."""
        latest, silent_s = self.latest, round(now - self.last_at, 3) if self.last_at else None
        return {"present": self.present, "protocol": self.protocol, "peer": self.peer, "staleness_seconds": silent_s,
                "left_at": None if self.present or silent_s is None else round(unix_time() - silent_s, 3),
                "latency_seconds": latest.latency_ms["total"] / 1000 if latest else None,
                "clock_skew_seconds": round(self.clock.skew_s, 3), "frozen": self.frozen(now),
                "predictions": self.predictions,
                "labels": {head: list(scores.window[0]) for head, scores in latest.heads.items()} if latest else {},
                "reconnects": self.reconnects, "gaps": dict(self.gaps),
                "odd": [*self.odd, *filter(None, [self.clock.notice])]}

    def frozen(self, now: float) -> bool:
        """Whether it sends the same picture again and again."""
        return self.present and now - self.changed_at > FROZEN_AFTER_S


class Refused(FrameError):  # noqa: N818 - not a fault of ours
    """A message that is not admitted. cause: what it is counted as."""

    def __init__(self, cause: str, got: str, wanted: str) -> None:
        self.cause = cause
        super().__init__(got, wanted, "ask whoever runs the service")


class Admission:
    """Admits messages, and holds the sessions of all cameras. Owned by the receiver thread; others may read `sessions`.

        session = admission.admit(message, None, connection, now)     # raises Refused

    camera_of_key: the camera to which a CURVE key belongs, where keys are needed."""

    def __init__(self, config: Config, scheduler: FrameScheduler,
                 camera_of_key: Callable[[str], str | None] | None = None) -> None:
        self._config, self._scheduler, self._camera_of_key = config, scheduler, camera_of_key
        self.sessions: dict[str, CameraSession] = {}

    def configure(self, config: Config) -> None:
        """Takes another configuration; cameras that are no longer in it become unknown ones."""
        self._config = config
        for name in {camera.name for camera in config.camera} | set(self.sessions):
            session, fresh = self.session(name), self._new_session(name)
            session.config, session.configured = fresh.config, fresh.configured

    def session(self, name: str) -> CameraSession:
        """The session of a camera, which is made for a new one."""
        if name not in self.sessions:
            self.sessions[name] = self._new_session(name)
        return self.sessions[name]

    def admit(self, message: Message, own_name: str | None, connection: Connection, now: float) -> CameraSession:
        """The session of the camera that a message is of, which is then open in the scheduler. Raises Refused.
        own_name: the camera's, where the service connected to it or opened it."""
        name = own_name or self._name(message, connection, now)
        session, peer = self.sessions.get(name), connection.peer
        if session is None or not session.configured:
            if not self._config.receive.unknown:
                raise Refused("unknown camera", f"a camera called {name!r}", "one of the configuration")
            if session is None and connection.new_names >= NEW_NAMES:
                raise Refused("too many names", "another camera over the same connection", f"{NEW_NAMES} at most")
            most = self._config.receive.cameras
            if session is None and len(self.sessions) >= most and not self._remove_absent():
                raise Refused("too many cameras", f"one camera more than {most}", "fewer, or another limit")
            connection.new_names += session is None
        session = self.session(name)
        if own_name is None and session.config.source is not None:
            raise Refused("not its source", f"camera {name!r} by itself", "the source it is configured with")
        if session.config.address is not None and peer and session.config.address != peer:
            raise Refused("wrong address", f"camera {name!r} at {peer}", f"it at {session.config.address}")
        if own_name is None and self._has_other_sender(session, connection, now):
            raise Refused("name taken", f"a second sender of camera {name!r}", "one, until it is silent or gone")
        if now < session.refused_until:
            raise Refused("ended engines", f"camera {name!r}, whose pictures ended the engine's process twice",
                          f"other pictures, in {session.refused_until - now:.0f} s")
        self._scheduler.open(name)
        self._charge(session, len(message.payload), now)
        session.protocol, session.peer, session.connection = message.protocol, peer, connection
        connection.camera = name
        payload = hash(message.small.payload)
        if payload != session.payload or not session.present:
            session.payload, session.changed_at = payload, now
        return session

    def count_crash(self, cameras: Collection[str], now: float) -> list[str]:
        """An engine's process has ended that had these cameras' frames. One that was alone and had been there before is
        refused for a while; returns such."""
        for session in [self.sessions[camera] for camera in cameras if camera in self.sessions]:
            if now - session.crashed_at > FORGIVEN_AFTER_S:
                session.crashes = 0
            session.crashes, session.crashed_at = max(1, session.crashes + (len(cameras) == 1)), now
            if len(cameras) == 1 and session.crashes > 1:
                session.refused_until = now + REFUSED_S[min(session.crashes - 2, len(REFUSED_S) - 1)]
                return [session.name]
        return []

    def _name(self, message: Message, connection: Connection, now: float) -> str:
        """What a sender that connected to us is called. Raises Refused."""
        if message.bad_name is not None:
            raise Refused("not a name", f"a camera called {message.bad_name}",
                          f"a printable name of up to {NAME_CHARACTERS} characters")
        if self._camera_of_key is not None:
            owner = self._camera_of_key(connection.key)
            if owner is None:
                raise Refused("key not allowed", "a key that is no longer allowed", "another one")
            if message.name not in (None, owner):
                raise Refused("not its key", f"camera {message.name!r} with the key of {owner!r}", "its own key")
            return owner
        if message.name is not None:
            return message.name
        for camera in self._config.camera:
            if connection.peer and camera.address == connection.peer:
                return camera.name
        if connection.unnamed is None:
            sender = f"{message.protocol}@{connection.peer or 'local'}{f':{message.port}' if message.port else ''}"
            names = (sender if number == 1 else f"{sender}-{number}" for number in count(1))
            connection.unnamed = next(name for name in names if (session := self.sessions.get(name)) is None
                                      or not self._has_other_sender(session, connection, now))
        return connection.unnamed

    @staticmethod
    def _has_other_sender(session: CameraSession, connection: Connection, now: float) -> bool:
        """Whether another connection still sends a camera."""
        sender = session.connection
        if not session.present or sender is None or sender is connection or not sender.open:
            return False
        return now - session.last_at < (
            TAKEN_OVER_AFTER_S if sender.peer == connection.peer else session.config.lost_after_s)

    def _new_session(self, name: str) -> CameraSession:
        config = next((camera for camera in self._config.camera if camera.name == name), None)
        return CameraSession(name, config or CameraConfig.model_construct(name=name), config is not None)

    def _remove_absent(self) -> bool:
        """Whether there was an absent camera, not of the configuration, that could be forgotten."""
        absent = [session for session in self.sessions.values()
                  if not (session.configured or session.present or session.open_events)]
        if absent:
            oldest = min(absent, key=lambda session: session.last_at)
            del self.sessions[oldest.name]
            self._scheduler.close(oldest.name)
        return bool(absent)

    def _charge(self, session: CameraSession, size: int, now: float) -> None:
        """Takes a message from the camera's quotas, which fill within a second."""
        receive = self._config.receive
        since_s = now - session.last_at if session.last_at else 1.0
        frames, size_limit = receive.max_frames_per_s, receive.max_mb_per_s * 1e6
        session.frames_left = min(session.frames_left + since_s * frames, frames)
        session.bytes_left = min(session.bytes_left + since_s * size_limit, size_limit)
        session.last_at = now
        if session.frames_left < 1 or session.bytes_left < size:
            self._scheduler.count_refused(session.name, "quota")
            raise Refused("quota", f"camera {session.name!r} faster than its quota",
                          f"{frames:g} frames/s and {receive.max_mb_per_s:g} MB/s at most")
        session.frames_left -= 1
        session.bytes_left -= size
