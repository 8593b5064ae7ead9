"""The cameras that the service opens itself: a process for each, started again when it ends or falls silent.

    supervisor = CameraSupervisor("ipc://...")
    supervisor.configure(config.camera)      # starts, ends and changes processes
    supervisor.supervise(seen)               # every now and then
"""

from __future__ import annotations

import logging
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from stream.service.config import Camera
from stream.service.worker.processes import start_process
from stream.sources.address import parse_scheme

log = logging.getLogger("gatestream.service")

SILENT_AFTER_S = 20.0  # then a camera is opened anew
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before the next try, times a random 0.5 to 1; the last again and again
LASTING_S = 30.0  # a process that lived so long starts the row anew
ENDS_WITHIN_S = 1.0


class FrameTimes(NamedTuple):
    """Steady seconds: when a camera's last picture came, and since when it is the same picture."""

    last_at: float
    unchanged_since: float


Start = Callable[[dict[str, str]], "subprocess.Popen[bytes]"]


def needs_process(camera: Camera) -> bool:
    """Whether the service opens this camera in a process of its own; a publisher is dialled without one."""
    return camera.source is not None and parse_scheme(camera.source) != "zmq"


@dataclass
class _CameraProcess:
    source: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    next_at: float = 0.0
    tries: int = 0
    ended: bool = False  # a recording that was played to its end


class CameraSupervisor:
    """See the file's top."""

    def __init__(self, link: str, steady: Callable[[], float] = time.monotonic,
                 chance: Callable[[], float] = random.random, start: Start | None = None) -> None:
        """link: address that the processes send to; chance: 0 to 1, so that many cameras do not come back at once;
        start: starts a process that is told this."""
        self._link, self._steady, self._chance = link, steady, chance
        self._start = start or partial(start_process, "stream.service.ingress.camera_process")
        self._supervisor: dict[str, _CameraProcess] = {}

    def configure(self, cameras: Iterable[Camera]) -> None:
        """Ends the processes of cameras that are gone or have another source; `supervise` starts the new ones."""
        wanted = {camera.name: camera.source for camera in cameras
                  if camera.source is not None and needs_process(camera)}
        for name in [name for name, camera in self._supervisor.items() if wanted.get(name) != camera.source]:
            self._end([self._supervisor.pop(name)])
        for name, source in wanted.items():
            self._supervisor.setdefault(name, _CameraProcess(source))

    def supervise(self, seen: Mapping[str, FrameTimes]) -> None:
        """Starts what is due; ends what has fallen silent, or shows the same picture for ever."""
        now = self._steady()
        for name, camera in self._supervisor.items():
            if camera.process is None:
                if not camera.ended and now >= camera.next_at:
                    camera.process = self._start({"source": camera.source, "to": self._link, "name": name})
                    camera.started_at = now
                continue
            code = camera.process.poll()
            why = self._stuck(camera, seen.get(name), now)
            if code is None and why is not None:
                log.warning("camera %s: %s: it is opened anew", name, why)
                camera.process.kill()
                code = camera.process.wait()
            if code is not None:
                self._ended(name, camera, code, now)

    def close(self) -> None:
        """Ends all processes."""
        self._end(self._supervisor.values())
        self._supervisor.clear()

    def _stuck(self, camera: _CameraProcess, seen: FrameTimes | None, now: float) -> str | None:
        last_at = max(camera.started_at, seen.last_at if seen else 0.0)
        if now - last_at > SILENT_AFTER_S:
            return f"no picture for {SILENT_AFTER_S:g} s"
        live = camera.source.isdecimal() or parse_scheme(camera.source) in ("rtsp", "rtsps", "http", "https")
        if live and seen and now - max(camera.started_at, seen.unchanged_since) > SILENT_AFTER_S:
            return f"the same picture for {SILENT_AFTER_S:g} s"
        return None

    def _ended(self, name: str, camera: _CameraProcess, code: int, now: float) -> None:
        camera.process = None
        camera.ended = code == 0
        if camera.ended:
            log.info("camera %s: its recording is at its end", name)
            return
        camera.tries = 0 if now - camera.started_at > LASTING_S else camera.tries
        pause_s = PAUSES_S[min(camera.tries, len(PAUSES_S) - 1)] * (0.5 + 0.5 * self._chance())
        camera.tries, camera.next_at = camera.tries + 1, now + pause_s
        log.warning("camera %s: it is tried again in %.1f s", name, pause_s)

    def _end(self, supervisor: Iterable[_CameraProcess]) -> None:
        processes = [camera.process for camera in supervisor if camera.process is not None]
        for process in processes:
            process.terminate()
        until = self._steady() + ENDS_WITHIN_S
        for process in processes:
            try:
                process.wait(max(0.0, until - self._steady()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
