"""Which camera a message is of, and whether it may come in: names, addresses, numbers and quotas.

Plain bookkeeping with times given by the caller; nothing here knows a socket.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from engines.errors import FrameError
from stream.service.config import Camera, Config
from stream.service.ingress.scheduler import FrameScheduler
from stream.wire import Message

FROZEN_AFTER_S = 20.0  # of the very same payload


@dataclass(slots=True)
class CameraSession:
    """What is known of a camera that has shown itself, or is configured. Times are steady seconds.

    present: sends; peer: address of its sender; frames, bytes: what its quotas have left; changed_at: when its payload
    last changed; left_at: when it last sent before it left, None if it never did; gaps: in its stream, by action.
    """

    name: str
    said: Camera
    configured: bool
    protocol: str = ""
    peer: str = ""
    last_at: float = 0.0
    present: bool = False
    frames: float = 0.0
    bytes: float = 0.0
    payload: int = 0
    changed_at: float = 0.0
    left_at: float | None = None
    reconnects: int = 0
    predictions: int = 0
    gaps: Counter[str] = field(default_factory=Counter)

    def frozen(self, now: float) -> bool:
        """Whether it sends the same picture again and again."""
        return self.present and now - self.changed_at > FROZEN_AFTER_S


class Refused(Exception):  # noqa: N818 - not a fault of ours
    """A message that is not let in. cause: what it is counted as; error: what its sender is told."""

    def __init__(self, cause: str, error: FrameError) -> None:
        self.cause, self.error = cause, error
        super().__init__(cause)


class Admission:
    """See the file's top."""

    def __init__(self, config: Config, scheduler: FrameScheduler) -> None:
        self._config, self._scheduler = config, scheduler
        self.sessions: dict[str, CameraSession] = {}

    def configure(self, config: Config) -> None:
        """Takes another configuration; cameras that are no longer in it become unknown ones."""
        self._config = config
        for name in {camera.name for camera in config.camera} | set(self.sessions):
            session, fresh = self.session(name), self._fresh(name)
            session.said, session.configured = fresh.said, fresh.configured

    def session(self, name: str) -> CameraSession:
        """What is known of a camera; a new entry for a new one."""
        if name not in self.sessions:
            self.sessions[name] = self._fresh(name)
        return self.sessions[name]

    def _fresh(self, name: str) -> CameraSession:
        said = next((camera for camera in self._config.camera if camera.name == name), None)
        return CameraSession(name, said or Camera.model_construct(name=name), said is not None)

    def admit(self, message: Message, dialled: str | None, peer: str, now: float) -> CameraSession:
        """The camera that a message is of, which then has a place in the scheduler. Raises Refused.

        dialled: the camera's name where we dialled or opened it; peer: the sender's IP address, "" if it has none.
        """
        name = dialled or message.name or self._at(peer) or f"{message.protocol}@{peer or 'local'}"
        session = self._known(name)
        if dialled is None and session.said.source is not None:
            raise _refused("not its source", f"camera {name!r} by itself", "the source it is configured with")
        if session.said.address is not None and peer and session.said.address != peer:
            raise _refused("wrong address", f"camera {name!r} at {peer}", f"it at {session.said.address}")
        self._scheduler.open(name)
        self._charge(session, len(message.payload), now)
        session.protocol, session.peer = message.protocol, peer
        payload = hash(message.payload)
        if payload != session.payload or not session.present:
            session.payload, session.changed_at = payload, now
        return session

    def _at(self, peer: str) -> str | None:
        """The camera that is configured with an address."""
        return next((camera.name for camera in self._config.camera if peer and camera.address == peer), None)

    def _known(self, name: str) -> CameraSession:
        known = self.sessions.get(name)
        if known is None or not known.configured:
            if not self._config.receive.unknown:
                raise _refused("unknown camera", f"a camera called {name!r}", "one of the configuration")
            most = self._config.receive.cameras
            if known is None and len(self.sessions) >= most and not self._made_room():
                raise _refused("too many cameras", f"one camera more than {most}", "fewer, or another limit")
        return self.session(name)

    def _made_room(self) -> bool:
        """Whether a camera that is not of the configuration and has gone could be forgotten."""
        gone = [session for session in self.sessions.values() if not session.configured and not session.present]
        if not gone:
            return False
        oldest = min(gone, key=lambda session: session.last_at)
        del self.sessions[oldest.name]
        self._scheduler.close(oldest.name)
        return True

    def _charge(self, session: CameraSession, size: int, now: float) -> None:
        """Takes a message from the camera's quotas, which a second fills."""
        receive = self._config.receive
        since_s = now - session.last_at if session.last_at else 1.0
        frames, size_limit = receive.max_frames_per_s, receive.max_mb_per_s * 1e6
        session.frames = min(session.frames + since_s * frames, frames)
        session.bytes = min(session.bytes + since_s * size_limit, size_limit)
        session.last_at = now
        if session.frames < 1 or session.bytes < size:
            self._scheduler.refuse(session.name, "quota")
            raise _refused("quota", f"camera {session.name!r} faster than its quota",
                           f"{frames:g} frames/s and {receive.max_mb_per_s:g} MB/s at most")
        session.frames -= 1
        session.bytes -= size


def _refused(cause: str, got: str, wanted: str) -> Refused:
    return Refused(cause, FrameError(got, wanted, "ask whoever runs the service"))
