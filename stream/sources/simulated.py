"""The simulated camera, `sim://gestures`: someone shows the ten gestures to it, clearly, with the truth beside it.

    sim://gestures?seed=41&rate=30&width=640&height=480&seconds=30&realtime=1

seed: another seed is another person, place and performance; rate: frames per second; width, height: pixels;
seconds: length of the stream, endless without; realtime: 1 plays as a camera does (Unix time, a frame when it is
due), 0 renders as fast as it is read (stream time from 0, every frame counts)."""

import difflib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from engines.errors import UsageError
from engines.synthetic import Simulation, Span
from stream.clock import unix_time
from stream.frame import Frame, Gap
from stream.sources.base import Policy, Source, SourceInfo


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter of the address."""

    default: float
    least: float
    most: float
    whole: bool = True


SETTINGS: dict[str, Setting] = {
    "seed": Setting(41, 0, 2 ** 32 - 1),
    "rate": Setting(30.0, 0.1, 1000.0, whole=False),
    "width": Setting(640, 16, 4096),
    "height": Setting(480, 16, 4096),
    "seconds": Setting(math.inf, 0.001, 1e7, whole=False),
    "realtime": Setting(1, 0, 1),
}


class SimulatedSource(Source):
    """A camera that needs no camera.
    spec: the address above; camera: the name its frames carry; policy: when the reader is late in real time,
    "newest" (and "auto") leaves frames out and counts them as lost, "every" gives them late;
    now, clock, sleep: a rising clock, Unix time and a wait, all in seconds.
    Raises UsageError naming the parameter that cannot be."""

    def __init__(self, spec: str = "sim://gestures", camera: str | None = None, policy: Policy = "auto",
                 now: Callable[[], float] = time.monotonic, clock: Callable[[], float] = unix_time,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        settings = _settings(spec)
        self._rate, self._skip = settings["rate"], policy != "every"
        self._live = settings["realtime"] == 1
        size_hw = int(settings["height"]), int(settings["width"])
        frames = None if math.isinf(settings["seconds"]) else math.ceil(settings["seconds"] * self._rate - 1e-6)
        self.info = SourceInfo(camera or "gestures", self._live, size_hw, self._rate, frames)
        self._frames = math.inf if frames is None else max(frames, 1)
        self._simulation = Simulation(int(settings["seed"]), size_hw, self._rate, demonstration=True)
        self._now, self._clock, self._sleep = now, clock, sleep
        self.started_at = 0.0

    def spans(self, until_s: float) -> list[Span]:
        """The gestures that start before `until_s`, in seconds after the first frame: the truth.
        Add `started_at`, known from the first frame on, to compare with times of frames and events."""
        return self._simulation.spans(until_s)

    def frames(self) -> Iterator[Frame | Gap]:
        k = lost = 0
        start_s = math.nan
        while k < self._frames and not self._closed:
            image_bgr = self._simulation.frame(k)  # before it is due, so that its making adds no delay
            if k == 0:
                start_s = self._now()
                self.started_at = self._clock() if self._live else 0.0
            if self._live and not self._wait_until(start_s + k / self._rate, self._now, self._sleep):
                return
            yield Frame(image_bgr, self.started_at + k / self._rate, k, self.info.camera, lost)
            due, k = k + 1, self._newest(k + 1, start_s)
            lost = k - due
            self.lost += lost

    def _newest(self, due: int, start_s: float) -> int:
        """Number of the frame to give after those before `due`: a late reader gets the newest one."""
        if not (self._live and self._skip) or due >= self._frames:
            return due
        return max(due, min(math.floor((self._now() - start_s) * self._rate), int(min(self._frames, 1e15)) - 1))


def _settings(spec: str) -> dict[str, float]:
    place, _, query = spec.partition("://")[2].partition("?")
    if place not in ("gestures", "gestures/") or "#" in query:
        raise UsageError(f"{spec}: no such simulation", "sim://gestures", "write sim://gestures?seed=1")
    values = {name: setting.default for name, setting in SETTINGS.items()}
    given: set[str] = set()
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            raise UsageError(f"{name!r} in {spec}", f"parameters {', '.join(SETTINGS)}",
                             f"did you mean {near[0]}" if near else "leave it out")
        if name in given:
            raise UsageError(f"{name} twice in {spec}", "each parameter once", f"leave one {name} out")
        given.add(name)
        values[name] = _value(name, text)
    return values


def _value(name: str, text: str) -> float:
    setting = SETTINGS[name]
    try:
        value = float(int(text)) if setting.whole else float(text)
    except (ValueError, OverflowError):
        value = math.nan
    if not setting.least <= value <= setting.most:
        kind = "a whole number" if setting.whole else "a number"
        raise UsageError(f"{name}={text}", f"{kind} from {setting.least:g} to {setting.most:.10g}",
                         f"write {name}=N, or leave it out")
    return value
