"""The cameras of `fault_soak.py`: what they show, and how each is broken and mended. What a looped camera shows at
which time follows from the clock, so that everybody knows it, and one that was away goes on where it would be.

    python fault_cameras.py FORM ADDRESS NAME FOLDER      # a sender: own, imagezmq or publisher

A file FOLDER/NAME.mode says what is wrong with a sender or webcam now: gone, hang, cut, giant, still, or seconds that
its clock is off."""

from __future__ import annotations

import json
import math
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATE, LOOP_S, SIZE_HW = 10.0, 62.0, (240, 320)
SEEDS, SHIFT_S = (41, 42, 43, 44), 17.0  # from one camera to the next that shows the same
PICTURES = int(RATE * LOOP_S)
PATIENCE_MS = 3000  # of senders, for an answer; then they connect anew, as imagezmq's guide has it
GIANT_BYTES = 44_000_000
WEBCAMS = ("webcam-0", "webcam-1")
ROOT = Path(__file__).resolve().parents[1]
# In the process of a camera only, of which nothing else is changed.
WEBCAM_PATCH = f"""
import sys
if "stream.service.ingress.camera_process" in sys.orig_argv:
    sys.path.append({str(Path(__file__).parent)!r})
    import cv2, fault_cameras
    cv2.VideoCapture = fault_cameras.FakeWebcam
"""


# ---- what they show ----

def render(folder: Path, seed: int) -> list[tuple[str, float, float]]:
    """Writes a loop as JPEGs, as H.264 pictures and as a film of 80 minutes; returns which gestures it shows."""
    from fractions import Fraction

    import av
    import cv2

    from engines.synthetic import Simulation

    simulation, jpegs, packets = Simulation(seed, SIZE_HW, RATE, demonstration=True), [], []
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = SIZE_HW[1], SIZE_HW[0], "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(int(RATE)), Fraction(1, int(RATE))
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(int(RATE)), "bf": "0", "crf": "20"}
    for k in range(PICTURES):
        image_bgr = simulation.frame(k)
        jpegs.append(cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        frame = av.VideoFrame.from_ndarray(image_bgr, "bgr24")
        frame.pts = k
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    packets += [bytes(packet) for packet in encoder.encode(None)]
    assert len(packets) == PICTURES
    (folder / f"{seed}.jpegs").write_bytes(pickle.dumps(jpegs))
    (folder / f"{seed}.pictures").write_bytes(b"".join(len(one).to_bytes(4, "big") + one for one in packets))
    if seed == SEEDS[0]:
        (folder / "loop.h264").write_bytes(b"".join(packets))
        with av.open(str(folder / "loop.h264"), format="h264") as read, av.open(str(folder / "film.mkv"), "w") as film:
            stream = film.add_stream_from_template(read.streams.video[0])
            looped = [packet for packet in read.demux() if packet.size]
            for k in range(int(80 * 60 / LOOP_S) * len(looped)):
                packet = av.Packet(bytes(looped[k % len(looped)]))
                packet.stream, packet.time_base, packet.pts = stream, Fraction(1, int(RATE)), k
                packet.dts, packet.is_keyframe = k, looped[k % len(looped)].is_keyframe
                film.mux(packet)
    return [(span.label, span.started_at, span.ended_at) for span in simulation.spans(LOOP_S) if span.ended_at < LOOP_S]


def shift_of(name: str) -> float:
    """By how many seconds a camera is ahead of the others of its loop."""
    return SHIFT_S * (sum(name.encode()) % 3)


def seed_of(name: str) -> int:
    return SEEDS[sum(name.encode()) % len(SEEDS)]


class Player:
    """The pictures of a camera, each when it is due."""

    def __init__(self, folder: Path, name: str) -> None:
        self._jpegs: list[bytes] = pickle.loads((folder / f"{seed_of(name)}.jpegs").read_bytes())
        self._mode_path, self._shift = folder / f"{name}.mode", round(RATE * shift_of(name))
        self._next = int(time.time() * RATE) + 1

    @property
    def mode(self) -> str:
        try:
            return self._mode_path.read_text()
        except FileNotFoundError:
            return ""

    def next(self) -> bytes:
        """Waits for the next picture, which is the newest one for who is late."""
        time.sleep(max(0.0, self._next / RATE - time.time()))
        number, self._next = self._next, max(self._next + 1, int(time.time() * RATE))
        return self._jpegs[(number + self._shift) % PICTURES]


# ---- senders, in processes of their own ----

def send_for_ever(form: str, address: str, name: str, folder: str) -> None:
    import imagezmq
    import zmq

    context, player, still_at = zmq.Context(), Player(Path(folder), name), math.nan

    def connect() -> Any:
        if form == "imagezmq":
            sender = imagezmq.ImageSender(connect_to=address)
            found = sender, sender.zmq_socket
        else:
            found = None, context.socket(zmq.PUB if form == "publisher" else zmq.REQ)
            (found[1].bind if form == "publisher" else found[1].connect)(address)
        for option in (zmq.SNDTIMEO, zmq.RCVTIMEO):
            found[1].setsockopt(option, PATIENCE_MS)
        found[1].setsockopt(zmq.LINGER, 0)
        return found

    sender, socket = connect()
    while True:
        jpeg, mode = player.next(), player.mode
        at = time.time() + float(mode if mode.lstrip("-").isdecimal() else 0)
        still_at = (at if math.isnan(still_at) else still_at) if mode == "still" else math.nan
        at = still_at if mode == "still" else at
        payload = jpeg[:200] if mode == "cut" else bytes(GIANT_BYTES) if mode == "giant" else jpeg
        try:
            if sender is not None:
                sender.send_jpg({"camera": name, "captured_at": at}, payload)
                continue
            header = {"gatestream": 1, "camera": name, "encoding": "jpeg", "captured_at": at}
            socket.send_multipart([json.dumps(header).encode(), payload])
            if form != "publisher":
                socket.recv()
        except zmq.ZMQError:
            socket.close()
            sender, socket = connect()


# ---- webcams, in the service's process for each ----

class FakeWebcam:
    """Stands in for cv2.VideoCapture."""

    def __init__(self, index: int, *_: object) -> None:
        folder = Path(os.environ["FAULT_SOAK"])
        (folder / f"{WEBCAMS[index]}.pid").write_text(str(os.getpid()))
        self._player = Player(folder, WEBCAMS[index])
        self._jpeg: bytes | None = None

    def isOpened(self) -> bool:
        while self._player.mode == "hang":
            time.sleep(0.05)
        return self._player.mode != "gone"

    def get(self, property: int) -> float:
        import cv2
        return {cv2.CAP_PROP_FRAME_HEIGHT: SIZE_HW[0], cv2.CAP_PROP_FRAME_WIDTH: SIZE_HW[1],
                cv2.CAP_PROP_FPS: RATE}.get(property, 0.0)

    def grab(self) -> bool:
        self._jpeg = self._player.next() if self.isOpened() else None
        return self._jpeg is not None

    def retrieve(self) -> tuple[bool, Any]:
        import cv2
        import numpy as np
        assert self._jpeg is not None
        return True, cv2.imdecode(np.frombuffer(self._jpeg, np.uint8), cv2.IMREAD_COLOR)

    def release(self) -> None:
        self._jpeg = None


# ---- what can be done to them ----

class Line:
    """A TCP connection through here: it can be cut, go dead without a word, or stutter as one that loses packets."""

    def __init__(self, port: int, to: int) -> None:
        self._port, self._to, self._pairs, self._lock = port, to, set[socket.socket](), threading.Lock()
        self._dead, self._stutters, self._listener = False, False, None
        self.mend()

    def mend(self) -> None:
        """All is well again; what waited goes on."""
        self._dead = self._stutters = False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Ends all connections and refuses new ones."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            for one in self._pairs:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def swallow(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self._dead = True

    def stutter(self) -> None:
        """Goes dead for 0.3 to 2.5 s again and again, as TCP does that waits to send lost packets once more."""
        self._stutters = True

        def run() -> None:
            k = 0
            while self._stutters:
                self._dead = True
                time.sleep((0.3, 1.2, 2.5)[k % 3])
                self._dead = False
                time.sleep(0.2)
                k += 1

        threading.Thread(target=run, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        while self._dead:
            time.sleep(0.02)
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            near.close()
            return
        with self._lock:
            self._pairs |= {near, far}
        with selectors.DefaultSelector() as both, near, far, suppress(OSError):
            both.register(near, selectors.EVENT_READ, far)
            both.register(far, selectors.EVENT_READ, near)
            over = False
            while not over:
                for key, _ in both.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    while self._dead:
                        time.sleep(0.02)
                    over = over or not data
                    key.data.sendall(data)
        with self._lock:
            self._pairs -= {near, far}


@dataclass
class Process:
    """One that can be stopped, killed and started."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.running = subprocess.Popen(self.command, env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def signal(self, number: int) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.running is not None
        self.running.wait()


def sender(form: str, address: str, name: str, folder: Path) -> Process:
    return Process([sys.executable, __file__, form, address, name, str(folder)])


def rtsp_server(name: str, port: int, folder: Path) -> Process:
    return Process(["/usr/bin/python3", str(Path(__file__).with_name("rtsp_server.py")),
                    str(folder / f"{seed_of(name)}.pictures"), str(RATE), str(port), str(shift_of(name))])


def shown(name: str, loops: dict[int, list[tuple[str, float, float]]], since: float, until: float
          ) -> Iterator[tuple[str, float, float]]:
    """The gestures that a looped camera has shown whole between two times: label, start, end (Unix time)."""
    loop = int(since // LOOP_S) - 1
    while loop * LOOP_S < until + LOOP_S:
        for label, start, end in loops[seed_of(name)]:
            first, last = (loop * LOOP_S + at - shift_of(name) for at in (start, end))
            if since <= first and last <= until:
                yield label, first, last
        loop += 1


if __name__ == "__main__":
    send_for_ever(*sys.argv[1:])
