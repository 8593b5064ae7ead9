"""The cameras that the service opens itself: a process for each, restarted when it ends or stalls."""

import logging
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from stream.service.config import CameraConfig
from stream.service.ingress.admission import CameraSession
from stream.service.worker.processes import start_process, wait_or_kill
from stream.sources.address import parse_scheme

log = logging.getLogger("gatestream.service")

SILENT_AFTER_S = 20.0  # then a camera is reopened
BACK_OFF_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before the next try, times a random 0.5 to 1; the last is repeated
LASTING_S = 30.0  # a process that lived this long starts the row anew
ENDS_WITHIN_S = 1.0
Start = Callable[[dict[str, str]], "subprocess.Popen[bytes]"]


def needs_process(camera: CameraConfig) -> bool:
    """Whether the service opens this camera in a process of its own; to a publisher it connects without one."""
    return camera.source is not None and parse_scheme(camera.source) != "zmq"


@dataclass
class _CameraProcess:
    source: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    next_at: float = 0.0
    tries: int = 0
    finished: bool = False  # a recording that was played to its end


class CameraSupervisor:
    """Starts, watches and ends the cameras' processes. Owned by the thread that runs the service.

        supervisor = CameraSupervisor("ipc://...")
        supervisor.configure(config.camera)
        supervisor.supervise(sessions)     # ten times a second or so"""

    def __init__(self, address: str, steady: Callable[[], float] = time.monotonic,
                 chance: Callable[[], float] = random.random, start: Start | None = None) -> None:
        """address: where the processes send to; chance: 0 to 1, so that many cameras do not come back at once; start:
        starts a process with this request."""
        self._address, self._steady, self._chance = address, steady, chance
        self._start = start or partial(start_process, "stream.service.ingress.camera_process")
        self._cameras: dict[str, _CameraProcess] = {}

    def configure(self, cameras: Iterable[CameraConfig]) -> None:
        """Ends the processes of cameras that are gone or have another source; `supervise` starts the new ones."""
        sources = {one.name: one.source for one in cameras if one.source is not None and needs_process(one)}
        for name in [name for name, camera in self._cameras.items() if sources.get(name) != camera.source]:
            self._terminate([self._cameras.pop(name)])
        for name, source in sources.items():
            self._cameras.setdefault(name, _CameraProcess(source))

    def supervise(self, sessions: Mapping[str, CameraSession]) -> None:
        """Starts what is due; ends processes without frames, or whose picture does not change."""
        now = self._steady()
        for name, camera in self._cameras.items():
            if camera.process is None:
                if not camera.finished and now >= camera.next_at:
                    camera.process = self._start({"source": camera.source, "to": self._address, "name": name})
                    camera.started_at = now
                continue
            code = camera.process.poll()
            reason = self._stall_reason(camera, sessions.get(name), now)
            if code is None and reason is not None:
                log.warning("camera %s: %s: opening it again", name, reason)
                code = wait_or_kill(camera.process, 0.0)
            if code is not None:
                self._on_exit(name, camera, code, now)

    def close(self) -> None:
        """Ends all processes."""
        self._terminate(self._cameras.values())
        self._cameras.clear()

    def _stall_reason(self, camera: _CameraProcess, session: CameraSession | None, now: float) -> str | None:
        last_at = max(camera.started_at, session.last_at if session else 0.0)
        if now - last_at > SILENT_AFTER_S:
            return f"no picture for {SILENT_AFTER_S:g} s"
        live = camera.source.isdecimal() or parse_scheme(camera.source) in ("rtsp", "rtsps", "http", "https")
        if live and session and now - max(camera.started_at, session.changed_at) > SILENT_AFTER_S:
            return f"the same picture for {SILENT_AFTER_S:g} s"
        return None

    def _on_exit(self, name: str, camera: _CameraProcess, code: int, now: float) -> None:
        camera.process, camera.finished = None, code == 0
        if camera.finished:
            log.info("camera %s: end of its recording", name)
            return
        camera.tries = 0 if now - camera.started_at > LASTING_S else camera.tries
        pause_s = BACK_OFF_S[min(camera.tries, len(BACK_OFF_S) - 1)] * (0.5 + 0.5 * self._chance())
        camera.tries, camera.next_at = camera.tries + 1, now + pause_s
        log.warning("camera %s: next try in %.1f s", name, pause_s)

    def _terminate(self, cameras: Iterable[_CameraProcess]) -> None:
        processes = [camera.process for camera in cameras if camera.process is not None]
        for process in processes:
            process.terminate()
        until = self._steady() + ENDS_WITHIN_S
        for process in processes:
            wait_or_kill(process, until - self._steady())
