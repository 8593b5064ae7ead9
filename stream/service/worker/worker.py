"""The engine's process: takes cameras' newest messages from the keeper of the sockets, gives back what they caused.

    echo '{"link": "ipc://...", "model": "gesture", ...}' | python -m stream.service.worker.worker      # see Service

It may crash or be killed at any time: another one goes on where it was, without the cameras' state.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import zmq

import engines
from engines.errors import FrameError, GatestreamError
from engines.model.contract import EventRule
from engines.model.preprocess import shrinkable
from stream.frame import Event, Image
from stream.notices import ignore_terminal_signals, log_to_stderr, silence_decoders
from stream.recognizer import Arrival, Prepared, Recognizer
from stream.runner import recognize_file
from stream.service.config import Camera, Gate
from stream.service.frames import PendingFrame
from stream.service.worker import protocol
from stream.service.worker.promotion import check
from stream.wire import Limits, decode

log = logging.getLogger("gatestream.service")

UNCONFIGURED = Camera(name="any")
PATIENCE_MS = 1000  # after which it is asked whether the keeper still lives


class Worker:
    """One engine, and the cameras' settings."""

    def __init__(self, recognizer: Recognizer, limits: Limits | None = None,
                 steady: Callable[[], float] = time.monotonic) -> None:
        self._recognizer, self._limits, self._steady = recognizer, limits or Limits(), steady
        self._cameras: dict[str, Camera] = {}

    def configure(self, cameras: Sequence[Camera]) -> None:
        """Takes the settings of cameras."""
        self._cameras = {camera.name: camera for camera in cameras}
        own = self._recognizer.contract.events
        self._recognizer.set_rules({camera.name: _rule(own, camera) for camera in cameras})

    def begin(self, frames: Sequence[PendingFrame]) -> list[Prepared]:
        """Begins to decode what `frames` is given soon."""
        return self._recognizer.prepare_async(self._arrivals(frames))

    def frames(self, frames: Sequence[PendingFrame], begun: Sequence[Prepared] | None = None) -> dict[str, Any]:
        """What these messages caused, and the pictures among them that were refused."""
        records, errors = [], []
        for frame, outcome in zip(frames, self._recognizer.push_many(self._arrivals(frames), begun), strict=True):
            if isinstance(outcome, GatestreamError):
                errors.append([frame.camera, frame.index, type(outcome).__name__, str(outcome)])
            else:
                records += [item.as_json() for item in outcome]
        return {"records": records, "errors": errors}

    def warm(self, frames: Sequence[PendingFrame]) -> dict[str, Any]:
        """Takes messages that had their results before: the network's state comes up to date, nothing is told."""
        self._recognizer.push_many(self._arrivals(frames))
        for frame in frames:
            self._recognizer.close_events(frame.camera)
        return {"records": [], "credits": 0}

    def leave(self, camera: str) -> dict[str, Any]:
        """Ends a camera's stream; the events that were still open."""
        return {"records": [event.as_json() for event in self._recognizer.flush(camera)], "credits": 0}

    def stop(self) -> dict[str, Any]:
        """Ends all streams."""
        closed = [event.as_json() for camera in self._recognizer.cameras for event in self._recognizer.flush(camera)]
        return {"records": closed, "credits": 0, "last": True}

    def _arrivals(self, frames: Sequence[PendingFrame]) -> list[Arrival]:
        now = self._steady()
        return [Arrival(partial(self._decoded, frame), frame.captured_at, frame.camera, frame.index, frame.lost,
                        max(0.0, now - frame.arrived_at), frame.passed_at) for frame in frames]

    def _decoded(self, frame: PendingFrame) -> Image:
        camera = self._cameras.get(frame.camera, UNCONFIGURED)
        x, y, w, h = camera.crop or (0.0, 0.0, 1.0, 1.0)
        contract = self._recognizer.contract
        image = decode(frame.message, self._limits, camera.colour,
                        lambda size: shrinkable((max(1, round(h * size[0])), max(1, round(w * size[1]))), contract))
        height, width = image.shape[:2]
        left, top = round(x * width), round(y * height)
        part = image[top:max(top + 1, round((y + h) * height)), left:max(left + 1, round((x + w) * width))]
        if not part.size:
            raise FrameError(f"a picture of {width} x {height} pixels", f"one that {camera.crop} is a part of",
                             f"correct the crop of camera {frame.camera}")
        return part


def _rule(own: EventRule, camera: Camera) -> EventRule:
    rule = own if camera.open_above is None else own.opening_above(camera.open_above)
    return rule if camera.min_score is None else rule.model_copy(update={"min_score": camera.min_score})


class _Work(NamedTuple):
    """A message of the keeper, and of `frames` what is decoded by now."""

    kind: bytes
    rest: list[bytes]
    frames: list[PendingFrame]
    begun: list[Prepared]


def serve(address: str, model: str, engine: str, slots: int, gate: Gate | None = None,
          wanted: list[Event] | None = None) -> None:
    """Works for the keeper at a link's address until it says stop, or is no more.

    gate, wanted: a recording, and the events that the model before this one found there, None for the first: raises
    ModelError before it says that it is ready when this one finds others.
    """
    keeper = os.getppid()
    loaded = engines.load(model)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 2000
        socket.connect(address)
        compiled = engines.compile(loaded, engine=engine, slots=slots)
        with (ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
              Recognizer(loaded, compiled, threads=threads) as recognizer):
            found = [] if gate is None else recognize_file(recognizer, str(gate.recording), "gate")
            if gate is not None and wanted is not None:
                check(wanted, found, gate.f1, gate.recording)
            worker = Worker(recognizer)
            said = {"engine": f"{loaded.contract.name}, {compiled.name} {compiled.precision}",
                    "clock": [loaded.contract.frame_rate, loaded.contract.max_gap_s],
                    "credits": protocol.CREDITS, "pid": os.getpid(), "events": [event.as_json() for event in found]}
            _reply(socket, protocol.READY, said)
            queue: deque[_Work] = deque()
            while True:
                # Pictures of the next batches are decoded while the engine has this one.
                while (len(queue) < protocol.CREDITS and (not queue or queue[-1].kind == protocol.FRAMES)
                       and socket.poll(0 if queue else PATIENCE_MS)):
                    kind, *rest = socket.recv_multipart()
                    frames = protocol.unpack(rest) if kind in (protocol.FRAMES, protocol.WARM) else []
                    queue.append(_Work(kind, rest, frames, worker.begin(frames) if kind == protocol.FRAMES else []))
                if not queue:
                    if os.getppid() != keeper:
                        return
                    continue
                kind, rest, frames, begun = queue.popleft()
                if kind == protocol.FRAMES:
                    _reply(socket, protocol.DONE, worker.frames(frames, begun))
                elif kind == protocol.CAMERAS:
                    worker.configure([Camera.model_validate(camera) for camera in json.loads(rest[0])])
                elif kind == protocol.WARM:
                    _reply(socket, protocol.DONE, worker.warm(frames))
                elif kind == protocol.LEAVE:
                    _reply(socket, protocol.DONE, worker.leave(json.loads(rest[0])["camera"]))
                elif kind == protocol.STOP:
                    _reply(socket, protocol.DONE, worker.stop())
                    return


def _reply(socket: zmq.Socket[bytes], kind: bytes, said: dict[str, Any]) -> None:
    socket.send_multipart([kind, json.dumps(said).encode()])


def main() -> int:
    """The process."""
    ignore_terminal_signals()
    silence_decoders()
    said = json.load(sys.stdin)
    with log_to_stderr():
        try:
            gate = Gate.model_validate(said["gate"]) if said["gate"] else None
            wanted = None if said["wanted"] is None else [Event.from_json(one) for one in said["wanted"]]
            serve(said["link"], said["model"], said["engine"], said["slots"], gate, wanted)
        except GatestreamError as error:
            log.error("the engine: %s", " ".join(str(error).split()))
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
