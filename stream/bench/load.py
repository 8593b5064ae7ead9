"""How many cameras this machine serves: a service, as many simulated cameras as asked for, and a subscriber to results.

    send (a process) ──JPEGs──► gatestream serve ──predictions──► measure"""

import asyncio
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import zmq

import engines
from engines.errors import EngineError, UsageError
from engines.model.contract import Contract
from engines.synthetic import Simulation
from stream.bench.soak import slope_mb_per_minute
from stream.clock import Clock
from stream.runner import Percentiles
from stream.wire.messages import encode_header

WARM_UP_S = 5.0  # after the last camera has joined; not counted
READY_WITHIN_S = 120.0
SAMPLE_S = 1.0  # between two samples of memory
SIZE_HW = (480, 640)
SECONDS = 4.0  # of rendered stream, played back and forth
STAYS_S, AWAY_S = (20.0, 60.0), (2.0, 10.0)  # with `churn`, a camera


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured. Processes: the service and its engine's."""

    cameras: int
    rate: float  # frames/s that each camera sends
    seconds: float
    ticks: int  # of the model's clock, for each camera
    fewest: int  # predictions of the camera that had fewest
    most: int
    held: int  # ticks that were filled with the picture before
    skipped: int  # ticks that had pictures, and nobody had time for them
    latency_ms: dict[str, float]  # percentiles, from a picture's sending to its prediction at a subscriber
    dropped: dict[str, int]  # messages, by cause
    late: int  # pictures that a sender did not send, because it still waited for its answer
    resident_mb: float
    slope_mb_per_minute: float  # of resident memory
    descriptors: tuple[int, int]  # open at the beginning and at the end
    cores: float  # that the service used

    def text(self) -> list[str]:
        """Lines for people."""
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


def measure(cameras: int, rate: float = 15.0, seconds: float = 30.0, model: str = "gesture", engine: str = "auto",
            churn: bool = False) -> Load:
    """Serves so many cameras of 640x480 for a time. churn: cameras come and go. Raises UsageError off Linux,
    EngineError when the service does not start."""
    if not Path("/proc/self/statm").is_file():
        raise UsageError(f"a service under load on {sys.platform}", "Linux, which shows what processes use",
                         "leave --cameras out here")
    contract = engines.load(model).contract
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "service.toml").write_text(
            f'model = {json.dumps(model)}\nengine = {json.dumps(engine)}\n[receive]\n'
            f'bind = ["ipc://{folder}/cameras"]\ncameras = {cameras}\nmax_frames_per_s = 10000\n'
            f'[results]\npublish = ["ipc://{folder}/results"]\n[health]\nbind = "127.0.0.1:0"\n')
        service, health = stack.enter_context(_service(folder))
        context = stack.enter_context(zmq.Context())
        sub = stack.enter_context(context.socket(zmq.SUB))
        sub.linger = sub.rcvhwm = 0
        sub.subscribe(b"")
        sub.connect(f"ipc://{folder}/results")
        request = json.dumps({"address": f"ipc://{folder}/cameras", "cameras": cameras, "rate": rate, "churn": churn})
        senders = stack.enter_context(subprocess.Popen(
            [sys.executable, "-m", "stream.bench.load", request], stdout=subprocess.PIPE, text=True))
        stack.callback(senders.kill)
        monitor = _Monitor(sub, health, service.pid, contract)
        monitor.wait(lambda: len(monitor.joined) == cameras, READY_WITHIN_S)
        monitor.wait(lambda: False, WARM_UP_S)
        monitor.start()
        monitor.wait(lambda: False, seconds)
        load = monitor.report(cameras, rate)
        senders.terminate()
        return replace(load, late=int(senders.communicate()[0] or 0))


class _Monitor:
    """Subscribes to results, and samples the service's memory every SAMPLE_S."""

    def __init__(self, sub: zmq.Socket[bytes], health: str, pid: int, contract: Contract) -> None:
        self._sub, self._health, self._pid, self._rate = sub, health, pid, contract.frame_rate
        # As the recogniser's own: what they find missing between predictions was held or skipped.
        self._clocks = defaultdict[str, Clock](lambda: Clock(contract.frame_rate, contract.max_gap_s))
        self.joined = set[str]()
        self._sampled_at = 0.0
        self.start()

    def start(self) -> None:
        """Counts from now on."""
        self._started_at, self._state = time.monotonic(), self._read_health()
        self._latency, self._predictions = Percentiles(), Counter[str]()
        self._held: dict[str, tuple[int, int]] = {}  # first and largest count of each camera
        self._missing = 0
        self._times, self._resident_mb = list[float](), list[float]()
        self._cpu_s, self._descriptors = _cpu_seconds(self._pid), _descriptors(self._pid)

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Takes results until the condition holds or the time is over."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            if self._sub.poll(100):
                while self._sub.poll(0):
                    self._take(json.loads(self._sub.recv_multipart()[1]), time.time())
            if time.monotonic() - self._sampled_at > SAMPLE_S:
                self._sampled_at = time.monotonic()
                self._times.append(self._sampled_at)
                self._resident_mb.append(self._read_health()["memory_bytes"] / 2**20)

    def _take(self, record: dict[str, Any], now: float) -> None:
        if record["type"] == "prediction":
            camera, held = record["camera"], record["held"]
            self.joined.add(camera)
            self._predictions[camera] += 1
            self._missing += self._clocks[camera].tick(record["captured_at"]).held
            self._latency.add(1000 * (now - record["captured_at"]))
            first, largest = self._held.get(camera, (held, held))
            self._held[camera] = first, max(largest, held)

    def _read_health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self._health}/health", timeout=10) as answer:
            return dict(json.load(answer))

    def report(self, cameras: int, rate: float) -> Load:
        seconds = time.monotonic() - self._started_at
        before, after = self._state["cameras"], self._read_health()["cameras"]
        dropped = Counter[str]()
        for camera, facts in after.items():
            dropped.update(facts["dropped"])
            dropped.subtract(before.get(camera, {}).get("dropped", {}))
        counts = self._predictions.values()
        held = sum(largest - first for first, largest in self._held.values())
        return Load(cameras, rate, seconds, int(seconds * min(rate, self._rate)), min(counts), max(counts), held,
                    max(0, self._missing - held), self._latency.summary(), dict(+dropped), 0, self._resident_mb[-1],
                    slope_mb_per_minute(self._times, self._resident_mb), (self._descriptors, _descriptors(self._pid)),
                    (_cpu_seconds(self._pid) - self._cpu_s) / seconds)


@contextmanager
def _service(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service that is ready, and the address of its health page."""
    log, command = folder / "service.log", [sys.executable, "-m", "stream", "serve", str(folder / "service.toml")]
    with log.open("wb") as errors, subprocess.Popen(command, stderr=errors) as process:
        try:
            health = None
            while not health or "the engine is ready" not in log.read_text():
                if process.poll() is not None:
                    raise EngineError("a service that ends before it is ready", "one that starts",
                                      "try `gatestream serve`, which says why")
                time.sleep(0.1)
                health = re.search(r"http://(\S+?)/health", log.read_text())
            yield process, health[1]
        finally:
            process.terminate()


def _family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _cpu_seconds(pid: int) -> float:
    stats = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in _family(pid)]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def _descriptors(pid: int) -> int:
    return sum(len(os.listdir(f"/proc/{one}/fd")) for one in _family(pid))


# ---- the senders' process ----

def render_jpegs() -> list[bytes]:
    """JPEGs of a few seconds of a rendered room at 15 frames/s, forward, then backward."""
    room = Simulation(3, SIZE_HW, 15.0, idle_s=(0.5, 1.0))
    forward = [cv2.imencode(".jpg", room.frame(k), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
               for k in range(round(SECONDS * 15))]
    return forward + forward[::-1]


async def send(address: str, cameras: int, rate: float, churn: bool) -> None:
    """Sends `rate` pictures a second from each camera until SIGTERM; prints how many were late. churn: they leave."""
    jpegs, rng, late, started_at = render_jpegs(), random.Random(0), Counter[int](), time.monotonic()

    async def play(k: int) -> None:
        """A camera that waits for its answer before it sends again."""
        name, at, pictures = f"camera {k}", started_at + k / (rate * cameras), islice(cycle(jpegs), 7 * k, None)
        while True:
            socket = context.socket(zmq.REQ)
            socket.connect(address)
            leaves_at, waits = at + rng.uniform(*STAYS_S) if churn else math.inf, False
            while at < leaves_at:
                await asyncio.sleep(at - time.monotonic())
                if waits and not socket.poll(0):
                    late[k] += 1
                else:
                    if waits:
                        socket.recv()
                    socket.send_multipart([encode_header(name, captured_at=time.time()), next(pictures)])
                    waits = True
                at = max(at + 1 / rate, time.monotonic() - 1 / rate)
            if socket.poll(1000):
                socket.recv()
                socket.send_multipart([encode_header(name, end=True), b""])
            socket.close(linger=100)
            at += rng.uniform(*AWAY_S)

    own_task = asyncio.current_task()
    assert own_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own_task.cancel)
    with zmq.Context() as context:
        try:
            await asyncio.gather(*map(play, range(cameras)))
        except asyncio.CancelledError:
            print(late.total(), flush=True)
        finally:
            context.destroy(linger=0)


if __name__ == "__main__":
    asyncio.run(send(**json.loads(sys.argv[1])))
