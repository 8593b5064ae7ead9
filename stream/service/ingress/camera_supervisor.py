"""The cameras that the service opens itself: a process for each, restarted when it ends or stalls."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from subprocess import Popen

from stream.service.config import CameraConfig
from stream.service.ingress.admission import CameraSession
from stream.service.worker.processes import BACK_OFF_S, ChildProcess, end_processes, start_process
from stream.sources.address import parse_scheme

log = logging.getLogger("gatestream.service")

SILENT_AFTER_S = 20.0  # then a camera is reopened
ENDS_WITHIN_S = 1.0


def needs_process(camera: CameraConfig) -> bool:
    """Whether the service opens this camera in a process of its own; to a publisher it connects without one."""
    return camera.source is not None and parse_scheme(camera.source) != "zmq"


class CameraSupervisor:
    """Starts, watches and ends the cameras' processes. Owned by the thread that runs the service.

        supervisor = CameraSupervisor("ipc://...")
        supervisor.configure(config.camera)
        supervisor.supervise(sessions)     # ten times a second or so"""

    def __init__(self, address: str, steady: Callable[[], float] = time.monotonic,
                 start: Callable[[dict[str, str]], Popen[bytes]] | None = None) -> None:
        """address: where the processes send to; start: starts a process with this request."""
        self._address, self._steady = address, steady
        self._start = start or partial(start_process, "stream.service.ingress.camera_process")
        self._sources: dict[str, str] = {}
        self.children: dict[str, ChildProcess] = {}

    def configure(self, cameras: Iterable[CameraConfig]) -> None:
        """Ends the processes of cameras that are gone or have another source; `supervise` starts the new ones."""
        before, self._sources = self._sources, {
            one.name: one.source for one in cameras if one.source is not None and needs_process(one)}
        gone = [self.children.pop(name) for name, source in before.items() if self._sources.get(name) != source]
        end_processes((child.process for child in gone), ENDS_WITHIN_S, terminate=True)
        for name, source in self._sources.items():
            if name not in self.children:
                start = partial(self._start, {"source": source, "to": self._address, "name": name})
                self.children[name] = ChildProcess(f"camera {name}", BACK_OFF_S["camera"], start, self._steady)

    def supervise(self, sessions: Mapping[str, CameraSession]) -> None:
        """Starts what is due; ends processes without frames, or whose picture does not change."""
        for name, child in self.children.items():
            code = child.supervise(partial(self._hang_reason, name, sessions.get(name)))
            if code == 0:
                log.info("camera %s: end of its recording", name)
            elif code is not None:
                child.restart()

    def close(self) -> None:
        """Ends all processes."""
        self.configure([])

    def _hang_reason(self, name: str, session: CameraSession | None) -> str | None:
        now, started_at, source = self._steady(), self.children[name].started_at, self._sources[name]
        if session and session.last_at <= started_at:  # it has not found its camera yet, and may go on trying
            return f"no sign of life for {SILENT_AFTER_S:g} s" if (
                now - max(started_at, session.alive_at) > SILENT_AFTER_S) else None
        if now - max(started_at, session.last_at if session else 0.0) > SILENT_AFTER_S:
            return f"no picture for {SILENT_AFTER_S:g} s"
        live = source.isdecimal() or parse_scheme(source) in ("rtsp", "rtsps", "http", "https")
        if live and session and now - max(started_at, session.changed_at) > SILENT_AFTER_S:
            return f"the same picture for {SILENT_AFTER_S:g} s"
        return None
