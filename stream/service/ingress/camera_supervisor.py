"""The cameras that the service opens itself: a process for each, started again when it ends or falls silent.

    feeders = Feeders("ipc://...")
    feeders.configure(config.camera)      # starts, ends and changes processes
    feeders.supervise(seen)               # every now and then
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
from stream.service.worker.processes import started
from stream.sources.address import parse_scheme

log = logging.getLogger("gatestream.service")

SILENT_AFTER_S = 20.0  # then a camera is opened anew
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before the next try, times a random 0.5 to 1; the last again and again
LASTING_S = 30.0  # a process that lived so long starts the row anew
ENDS_WITHIN_S = 1.0


class Seen(NamedTuple):
    """Steady seconds: when a camera's last picture came, and since when it is the same picture."""

    last_at: float
    same_since: float


Start = Callable[[dict[str, str]], "subprocess.Popen[bytes]"]


def is_fed(camera: Camera) -> bool:
    """Whether the service opens this camera in a process of its own; a publisher is dialled without one."""
    return camera.source is not None and parse_scheme(camera.source) != "zmq"


@dataclass
class _Feeder:
    source: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    next_at: float = 0.0
    tries: int = 0
    ended: bool = False  # a recording that was played to its end


class Feeders:
    """See the file's top."""

    def __init__(self, link: str, steady: Callable[[], float] = time.monotonic,
                 chance: Callable[[], float] = random.random, start: Start | None = None) -> None:
        """link: address that the processes send to; chance: 0 to 1, so that many cameras do not come back at once;
        start: starts a process that is told this."""
        self._link, self._steady, self._chance = link, steady, chance
        self._start = start or partial(started, "stream.service.ingress.camera_process")
        self._feeders: dict[str, _Feeder] = {}

    def configure(self, cameras: Iterable[Camera]) -> None:
        """Ends the processes of cameras that are gone or have another source; `supervise` starts the new ones."""
        wanted = {camera.name: camera.source for camera in cameras if camera.source is not None and is_fed(camera)}
        for name in [name for name, feeder in self._feeders.items() if wanted.get(name) != feeder.source]:
            self._end([self._feeders.pop(name)])
        for name, source in wanted.items():
            self._feeders.setdefault(name, _Feeder(source))

    def supervise(self, seen: Mapping[str, Seen]) -> None:
        """Starts what is due; ends what has fallen silent, or shows the same picture for ever."""
        now = self._steady()
        for name, feeder in self._feeders.items():
            if feeder.process is None:
                if not feeder.ended and now >= feeder.next_at:
                    feeder.process = self._start({"source": feeder.source, "to": self._link, "name": name})
                    feeder.started_at = now
                continue
            code = feeder.process.poll()
            why = self._stuck(feeder, seen.get(name), now)
            if code is None and why is not None:
                log.warning("camera %s: %s: it is opened anew", name, why)
                feeder.process.kill()
                code = feeder.process.wait()
            if code is not None:
                self._ended(name, feeder, code, now)

    def close(self) -> None:
        """Ends all processes."""
        self._end(self._feeders.values())
        self._feeders.clear()

    def _stuck(self, feeder: _Feeder, seen: Seen | None, now: float) -> str | None:
        last_at = max(feeder.started_at, seen.last_at if seen else 0.0)
        if now - last_at > SILENT_AFTER_S:
            return f"no picture for {SILENT_AFTER_S:g} s"
        live = feeder.source.isdecimal() or parse_scheme(feeder.source) in ("rtsp", "rtsps", "http", "https")
        if live and seen and now - max(feeder.started_at, seen.same_since) > SILENT_AFTER_S:
            return f"the same picture for {SILENT_AFTER_S:g} s"
        return None

    def _ended(self, name: str, feeder: _Feeder, code: int, now: float) -> None:
        feeder.process = None
        feeder.ended = code == 0
        if feeder.ended:
            log.info("camera %s: its recording is at its end", name)
            return
        feeder.tries = 0 if now - feeder.started_at > LASTING_S else feeder.tries
        pause_s = PAUSES_S[min(feeder.tries, len(PAUSES_S) - 1)] * (0.5 + 0.5 * self._chance())
        feeder.tries, feeder.next_at = feeder.tries + 1, now + pause_s
        log.warning("camera %s: it is tried again in %.1f s", name, pause_s)

    def _end(self, feeders: Iterable[_Feeder]) -> None:
        processes = [feeder.process for feeder in feeders if feeder.process is not None]
        for process in processes:
            process.terminate()
        until = self._steady() + ENDS_WITHIN_S
        for process in processes:
            try:
                process.wait(max(0.0, until - self._steady()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
