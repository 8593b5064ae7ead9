"""Which camera a message is of, and whether it is admitted: names, addresses, numbers and quotas."""

from collections import Counter
from dataclasses import dataclass, field

from engines.errors import FrameError
from stream.service.config import CameraConfig, Config
from stream.service.ingress.scheduler import FrameScheduler
from stream.wire import Message

FROZEN_AFTER_S = 20.0  # of the very same payload


@dataclass(slots=True)
class CameraSession:
    """What is known of a camera that has sent something, or is configured. Times are steady seconds."""

    name: str
    config: CameraConfig
    configured: bool
    protocol: str = ""
    peer: str = ""  # IP address of its sender
    connection: tuple[int, bytes] = (0, b"")  # that its latest frame came over: endpoint, identity there
    last_at: float = 0.0
    present: bool = False  # it sends
    frames: float = 0.0  # left of its quota
    bytes: float = 0.0  # left of its quota
    payload: int = 0  # hash of the last one
    changed_at: float = 0.0  # when its payload last changed
    left_at: float | None = None  # when it last sent before it left
    reconnects: int = 0
    predictions: int = 0
    gaps: Counter[str] = field(default_factory=Counter)  # in its stream, by action
    odd: list[str] = field(default_factory=list)  # what no camera should show, a line each

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

        session = admission.admit(message, None, "10.0.0.3", now)     # raises Refused"""

    def __init__(self, config: Config, scheduler: FrameScheduler) -> None:
        self._config, self._scheduler = config, scheduler
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

    def admit(self, message: Message, own_name: str | None, peer: str, now: float) -> CameraSession:
        """The session of the camera that a message is of, which is then open in the scheduler. Raises Refused.
        own_name: the camera's, where the service connected to it or opened it; peer: the sender's IP address, or ""."""
        at_peer = next((camera.name for camera in self._config.camera if peer and camera.address == peer), None)
        name = own_name or message.name or at_peer or f"{message.protocol}@{peer or 'local'}"
        session = self.sessions.get(name)
        if session is None or not session.configured:
            if not self._config.receive.unknown:
                raise Refused("unknown camera", f"a camera called {name!r}", "one of the configuration")
            most = self._config.receive.cameras
            if session is None and len(self.sessions) >= most and not self._remove_absent():
                raise Refused("too many cameras", f"one camera more than {most}", "fewer, or another limit")
        session = self.session(name)
        if own_name is None and session.config.source is not None:
            raise Refused("not its source", f"camera {name!r} by itself", "the source it is configured with")
        if session.config.address is not None and peer and session.config.address != peer:
            raise Refused("wrong address", f"camera {name!r} at {peer}", f"it at {session.config.address}")
        self._scheduler.open(name)
        self._charge(session, len(message.payload), now)
        session.protocol, session.peer = message.protocol, peer
        payload = hash(message.payload)
        if payload != session.payload or not session.present:
            session.payload, session.changed_at = payload, now
        return session

    def _new_session(self, name: str) -> CameraSession:
        config = next((camera for camera in self._config.camera if camera.name == name), None)
        return CameraSession(name, config or CameraConfig.model_construct(name=name), config is not None)

    def _remove_absent(self) -> bool:
        """Whether there was an absent camera, not of the configuration, that could be forgotten."""
        absent = [session for session in self.sessions.values() if not session.configured and not session.present]
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
        session.frames = min(session.frames + since_s * frames, frames)
        session.bytes = min(session.bytes + since_s * size_limit, size_limit)
        session.last_at = now
        if session.frames < 1 or session.bytes < size:
            self._scheduler.count_refused(session.name, "quota")
            raise Refused("quota", f"camera {session.name!r} faster than its quota",
                          f"{frames:g} frames/s and {receive.max_mb_per_s:g} MB/s at most")
        session.frames -= 1
        session.bytes -= size
