"""How many cameras this machine serves: a service, as many senders as asked for, and a stopwatch at the results.

    senders (a process) ──JPEGs──► gatestream serve ──predictions──► measure

A camera draws gestures in a rendered room, 640x480, and is a strict request-and-answer sender, as imagezmq's are. Its
latency is from the moment it sends a picture to the moment a subscriber has the prediction made of it.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zmq

import engines
from engines.errors import EngineError, UsageError
from engines.model.contract import Contract
from stream.clock import Clock
from stream.runner import Percentiles
from stream.wire import encode_header

SIZE_HW = (480, 640)
SECONDS = 4.0  # of rendered stream, played forth and back
WARM_UP_S = 5.0  # after the last camera has come; not counted
READY_WITHIN_S = 120.0
LOOK_S = 1.0
STAYS_S, AWAY_S = (20.0, 60.0), (2.0, 10.0)  # with `churn`, a camera


@dataclass(frozen=True, slots=True)
class Load:
    """What was seen. seconds: counted; ticks: of the model's clock for each camera in that time; predictions: of the
    camera that had fewest, and most; held: ticks that were filled with the picture before; skipped: ticks that had
    pictures, and nobody had time for them; latency_ms: percentiles; dropped: messages, by cause; late: pictures that a
    sender did not send, because it still waited for its answer; slope_mb_per_minute: of the resident memory of the
    service, its engine's process included; descriptors: open in the service at the beginning and at the end; cores:
    that the service used."""

    cameras: int
    rate: float
    seconds: float
    ticks: int
    fewest: int
    most: int
    held: int
    skipped: int
    latency_ms: dict[str, float]
    dropped: dict[str, int]
    late: int
    resident_mb: float
    slope_mb_per_minute: float
    descriptors: tuple[int, int]
    cores: float

    def text(self) -> list[str]:
        """For people."""
        ms = self.latency_ms
        dropped = ", ".join(f"{count} {cause}" for cause, count in self.dropped.items())
        return [f"{self.cameras} cameras at {self.rate:g} frames/s, {self.seconds:.0f} s",
                f"camera to prediction   p50 {ms['p50']:.0f}, p95 {ms['p95']:.0f}, p99 {ms['p99']:.0f} ms",
                f"predictions a camera   {self.fewest} to {self.most} of {self.ticks} ticks; {self.held} held and "
                f"{self.skipped} skipped in all", f"dropped                {dropped or 'none'}",
                f"not sent in time       {self.late}",
                f"service                {self.cores:.2f} cores, {self.resident_mb:.0f} MB, "
                f"{self.slope_mb_per_minute:+.2f} MB a minute, {self.descriptors[0]} to {self.descriptors[1]} "
                "open descriptors"]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(cameras: int, rate: float = 15.0, seconds: float = 30.0, model: str = "gesture", engine: str = "auto",
            churn: bool = False) -> Load:
    """Serves so many cameras for a time. churn: cameras come and go.

    Raises UsageError off Linux, EngineError when the service does not start.
    """
    if not Path("/proc/self/statm").is_file():
        raise UsageError(f"a service under load on {sys.platform}", "Linux, which tells of other processes",
                         "leave --cameras out here")
    contract = engines.load(model).contract
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "service.toml"
        config.write_text(f'model = {json.dumps(model)}\nengine = {json.dumps(engine)}\n[receive]\n'
                          f'bind = ["ipc://{folder}/cameras"]\ncameras = {cameras}\nmax_frames_per_s = 10000\n'
                          f'[results]\npublish = ["ipc://{folder}/results"]\n[health]\nbind = "127.0.0.1:0"\n')
        service, health = stack.enter_context(_service(config))
        context = stack.enter_context(zmq.Context())
        sub = stack.enter_context(context.socket(zmq.SUB))
        sub.linger = 0
        sub.rcvhwm = 0
        sub.subscribe(b"")
        sub.connect(f"ipc://{folder}/results")
        said = {"address": f"ipc://{folder}/cameras", "cameras": cameras, "rate": rate, "churn": churn}
        senders = stack.enter_context(_process([sys.executable, "-m", "stream.service.bench.load"], json.dumps(said)))
        watch = _Watch(sub, health, service.pid, contract)
        watch.until(lambda: len(watch.seen) == cameras, READY_WITHIN_S)
        watch.until(lambda: False, WARM_UP_S)
        watch.begin()
        watch.until(lambda: False, seconds)
        load = watch.report(cameras, rate)
        senders.terminate()
        return replace(load, late=int(senders.communicate()[0] or 0))


class _Watch:
    """Listens to results and looks at the service every LOOK_S."""

    def __init__(self, sub: zmq.Socket[bytes], health: str, pid: int, contract: Contract) -> None:
        self._sub, self._health, self._pid, self._rate = sub, health, pid, contract.frame_rate
        # As the recogniser's own: what they find missing between predictions was held or skipped.
        self._clocks = defaultdict[str, Clock](lambda: Clock(contract.frame_rate, contract.max_gap_s))
        self.seen: dict[str, int] = defaultdict(int)
        self._looked_at = 0.0
        self.begin()

    def begin(self) -> None:
        """Counts from now on."""
        self._began_at, self._state = time.monotonic(), self._told()
        self._latency, self._counted = Percentiles(), defaultdict[str, int](int)
        self._held: dict[str, list[int]] = {}
        self._missing = 0
        self._times: list[float] = []
        self._resident: list[float] = []
        self._busy, self._files = _busy_s(self._pid), _files(self._pid)

    def until(self, condition: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            if self._sub.poll(100):
                while True:
                    try:
                        _, body = self._sub.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    self._take(json.loads(body), time.time())
            if time.monotonic() - self._looked_at > LOOK_S:
                self._looked_at = time.monotonic()
                self._times.append(self._looked_at)
                self._resident.append(self._told()["memory_bytes"] / 2**20)

    def _take(self, said: dict[str, Any], now: float) -> None:
        if said["type"] == "prediction":
            camera, held = said["camera"], said["held"]
            self.seen[camera] += 1
            self._counted[camera] += 1
            self._missing += self._clocks[camera].tick(said["captured_at"]).held
            self._latency.add(1000 * (now - said["captured_at"]))
            first = self._held.setdefault(camera, [held, held])
            first[1] = max(first[1], held)

    def _told(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self._health}/health", timeout=10) as answer:
            return dict(json.load(answer))

    def report(self, cameras: int, rate: float) -> Load:
        seconds = time.monotonic() - self._began_at
        before, after = self._state["cameras"], self._told()["cameras"]
        dropped: dict[str, int] = defaultdict(int)
        for camera, facts in after.items():
            for cause, count in facts["dropped"].items():
                dropped[cause] += count - before.get(camera, {}).get("dropped", {}).get(cause, 0)
        settled = len(self._times) // 5
        slope = 60 * float(np.polyfit(self._times[settled:], self._resident[settled:], 1)[0])
        counts = sorted(self._counted.values())
        held = sum(last - first for first, last in self._held.values())
        return Load(cameras, rate, seconds, int(seconds * min(rate, self._rate)), counts[0], counts[-1],
                    held, max(0, self._missing - held), self._latency.summary(),
                    {cause: count for cause, count in dropped.items() if count}, 0, self._resident[-1], slope,
                    (self._files, _files(self._pid)), (_busy_s(self._pid) - self._busy) / seconds)


@contextmanager
def _service(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service, and the address of its health page."""
    process = subprocess.Popen([sys.executable, "-m", "stream", "serve", str(config)], stderr=subprocess.PIPE)
    try:
        health, ready = "", False
        assert process.stderr is not None
        while not (health and ready):
            line = process.stderr.readline().decode()
            if not line:
                raise EngineError("a service that ends before it is ready", "one that starts",
                                  "try `gatestream serve`, which says why")
            health = line.split("http://")[1].split("/")[0] if "/health" in line else health
            ready = ready or "the engine is ready" in line
        os.set_blocking(process.stderr.fileno(), True)
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield process, health
        finally:
            process.terminate()
            process.wait()
            drain.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def _process(command: Sequence[str], said: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(said.encode())
    process.stdin.close()
    process.stdin = None
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _busy_s(pid: int) -> float:
    """Seconds of processor that a process and its children have used."""
    ticks = 0
    for one in _family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _files(pid: int) -> int:
    """Open descriptors of a process and its children."""
    return sum(len(os.listdir(f"/proc/{one}/fd")) for one in _family(pid))


# ---- the senders' process ----

class _Camera:
    """A sender that waits for its answer before it sends again."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, name: str, phase: int) -> None:
        self.name, self.shown, self.late = name, phase, 0
        self._context, self._address = context, address
        self._waits = False
        self.leaves_at = self.comes_at = 0.0
        self.socket: zmq.Socket[bytes] | None = None

    def send(self, jpegs: Sequence[bytes]) -> None:
        if self.socket is None:
            self.socket = self._context.socket(zmq.REQ)
            self.socket.linger = 0
            self.socket.connect(self._address)
        if self._waits and not self.socket.poll(0):
            self.late += 1
            return
        if self._waits:
            self.socket.recv()
        self.socket.send_multipart([encode_header(self.name, captured_at=time.time()), jpegs[self.shown % len(jpegs)]])
        self.shown, self._waits = self.shown + 1, True

    def leave(self) -> None:
        """Says that its stream is over, if it may speak."""
        if self.socket is not None:
            if not self._waits or self.socket.poll(1000):
                if self._waits:
                    self.socket.recv()
                self.socket.send_multipart([encode_header(self.name, end=True), b""])
            self.socket.close(linger=100)
            self.socket, self._waits = None, False


def pictures() -> list[bytes]:
    """JPEGs of a few seconds of a rendered room at 15 frames/s, forth and back."""
    from engines.synthetic import Simulation

    room = Simulation(3, SIZE_HW, 15.0, idle_s=(0.5, 1.0))
    forth = [cv2.imencode(".jpg", room.frame(k), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
             for k in range(round(SECONDS * 15))]
    return forth + forth[::-1]


def send(address: str, cameras: int, rate: float, churn: bool, seed: int = 0) -> None:
    """Sends until it is terminated; then writes to stdout how many pictures were late."""
    jpegs, rng = pictures(), random.Random(seed)
    with zmq.Context() as context:
        all_of = [_Camera(context, address, f"camera {k}", 7 * k) for k in range(cameras)]
        began = time.monotonic()
        due = [(began + k / (rate * cameras), k) for k in range(cameras)]
        heapq.heapify(due)
        for one in all_of:
            one.leaves_at = began + rng.uniform(*STAYS_S) if churn else float("inf")
        try:
            while True:
                at, k = due[0]
                pause_s = at - time.monotonic()
                if pause_s > 0:
                    time.sleep(pause_s)
                camera, now = all_of[k], time.monotonic()
                if now > camera.leaves_at:
                    camera.leave()
                    camera.comes_at = now + rng.uniform(*AWAY_S)
                    camera.leaves_at = camera.comes_at + rng.uniform(*STAYS_S)
                elif now >= camera.comes_at:
                    camera.send(jpegs)
                heapq.heapreplace(due, (max(at + 1 / rate, now - 1 / rate), k))
        except KeyboardInterrupt:
            print(sum(one.late for one in all_of), flush=True)
        finally:
            for one in all_of:
                if one.socket is not None:
                    one.socket.close(linger=0)


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    send(**json.load(sys.stdin))
