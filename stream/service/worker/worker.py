"""The engine's process: decodes and recognises the frames that the receiver sends it.

    echo '{"address": "ipc://...", "model": "gesture", ...}' | python -m stream.service.worker.worker

It may crash or be killed at any time: another one takes its place, without the cameras' state."""

import json
import os
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import zmq
from pydantic import validate_call

import engines
from engines.decoding.sanity import PictureMonitor
from engines.errors import FrameError, GatestreamError
from engines.model.contract import EventRule
from engines.model.preprocess import shrinkable
from stream.frame import Event, Image, Item, Prediction
from stream.recognizer import Arrival, Prepared, Recognizer
from stream.runner import recognize_file
from stream.service.config import CameraConfig, PromotionConfig
from stream.service.worker import protocol
from stream.service.worker.processes import run_process
from stream.service.worker.promotion import check_promotion
from stream.wire.frames import PendingFrame
from stream.wire.messages import Limits, decode

UNCONFIGURED = CameraConfig(name="any")


class Worker:
    """Turns cameras' frames into the content of `done` messages. Belongs to one thread."""

    def __init__(self, recognizer: Recognizer, own: Mapping[str, Recognizer] | None = None) -> None:
        """own: of cameras that have a model of their own, by camera."""
        self._default, self._own = recognizer, own or {}
        self._recognizers = list(dict.fromkeys((recognizer, *self._own.values())))
        self._cameras: dict[str, CameraConfig] = {}
        self._monitors: defaultdict[str, PictureMonitor] = defaultdict(lambda: PictureMonitor("pictures"))
        self._odd: deque[tuple[str, str]] = deque()  # camera, what is odd about its pictures

    def configure(self, cameras: Sequence[CameraConfig]) -> None:
        """Takes the settings of cameras."""
        self._cameras = {camera.name: camera for camera in cameras}
        for recognizer in self._recognizers:
            recognizer.set_rules({camera.name: _event_rule(recognizer.contract.events, camera) for camera in cameras})

    def prepare_async(self, frames: Sequence[PendingFrame]) -> list[Prepared]:
        """Begins to decode the frames of a later `process`."""
        return [self._of(frame.camera).prepare_async([self._arrival(frame)])[0] for frame in frames]

    def process(self, frames: Sequence[PendingFrame], prepared: Sequence[Prepared] | None = None) -> dict[str, Any]:
        """Recognises frames, each model its cameras' at once: their records, in order, and an error for each that could
        not be decoded."""
        records, errors = [], []
        for frame, outcome in zip(frames, self._push(frames, prepared), strict=True):
            if isinstance(outcome, GatestreamError):
                errors.append([frame.camera, frame.index, type(outcome).__name__, str(outcome)])
            else:
                records += [self._in_whole_picture(item).as_json() for item in outcome]
        return {"records": records, "errors": errors, "odd": [self._odd.popleft() for _ in range(len(self._odd))]}

    def warm(self, frames: Sequence[PendingFrame]) -> dict[str, Any]:
        """Brings the network's state up to date with frames whose results are known; gives no records."""
        self._push(frames)
        for frame in frames:
            self._of(frame.camera).close_events(frame.camera)
        return {"records": []}

    def leave(self, camera: str) -> dict[str, Any]:
        """Ends a camera's stream: the events that were still open."""
        return {"records": [event.as_json() for event in self._of(camera).flush(camera)]}

    def stop(self) -> dict[str, Any]:
        """Ends all streams."""
        return {"records": [record for recognizer in self._recognizers for camera in recognizer.cameras
                            for record in self.leave(camera)["records"]], "last": True}

    def _of(self, camera: str) -> Recognizer:
        return self._own.get(camera, self._default)

    def _push(self, frames: Sequence[PendingFrame], prepared: Sequence[Prepared] | None = None
              ) -> list[list[Item] | GatestreamError]:
        prepared = self.prepare_async(frames) if prepared is None else prepared
        outcomes: dict[int, list[Item] | GatestreamError] = {}
        for recognizer in self._recognizers:
            numbers = [number for number, frame in enumerate(frames) if self._of(frame.camera) is recognizer]
            arrivals = [self._arrival(frames[number]) for number in numbers]
            outcomes |= zip(numbers, recognizer.push_many(arrivals, [prepared[number] for number in numbers]),
                            strict=True)
        return [outcomes[number] for number in range(len(frames))]

    def _arrival(self, frame: PendingFrame) -> Arrival:
        return Arrival(partial(self._decode, frame), frame.captured_at, frame.camera, frame.index, frame.lost,
                       max(0.0, time.monotonic() - frame.arrived_at), frame.tick)

    def _in_whole_picture(self, item: Item) -> Item:
        """A prediction's hands as shares of what the camera sent, of which a part may have been used."""
        crop = self._cameras.get(item.camera, UNCONFIGURED).crop
        if crop is None or not isinstance(item, Prediction) or not item.hands:
            return item
        left, top, wide, high = crop
        return replace(item, hands={side: tuple((left + wide * x, top + high * y) for x, y in points)
                                    for side, points in item.hands.items()})

    def _decode(self, frame: PendingFrame) -> Image:
        camera = self._cameras.get(frame.camera, UNCONFIGURED)
        x, y, w, h = camera.crop or (0.0, 0.0, 1.0, 1.0)
        contract = self._of(frame.camera).contract
        image = decode(frame.message, Limits(), camera.colour,
                       lambda size: shrinkable((max(1, round(h * size[0])), max(1, round(w * size[1]))), contract))
        height, width = image.shape[:2]
        left, top = round(x * width), round(y * height)
        part = image[top:max(top + 1, round((y + h) * height)), left:max(left + 1, round((x + w) * width))]
        if not part.size:
            raise FrameError(f"a picture of {width} x {height} pixels", f"one that {camera.crop} is a part of",
                             f"correct the crop of camera {frame.camera}")
        self._odd += [(frame.camera, line) for line in self._monitors[frame.camera].add(frame.captured_at, part)]
        return part


def _event_rule(default: EventRule, camera: CameraConfig) -> EventRule:
    rule = default if camera.open_above is None else default.opening_above(camera.open_above)
    return rule if camera.min_score is None else rule.model_copy(update={"min_score": camera.min_score})


def _clock(recognizer: Recognizer) -> tuple[float, float]:
    return recognizer.contract.frame_rate, recognizer.contract.max_gap_s


def _prepare(worker: Worker, kind: bytes, parts: Sequence[bytes]) -> Callable[[], dict[str, Any] | None]:
    """What a message of the receiver asks for; pictures are being decoded from now on."""
    match kind:
        case protocol.CAMERAS:
            return partial(worker.configure, [CameraConfig.model_validate(camera) for camera in json.loads(parts[0])])
        case protocol.FRAMES:
            frames = protocol.unpack(parts)
            return partial(worker.process, frames, worker.prepare_async(frames))
        case protocol.WARM:
            return partial(worker.warm, protocol.unpack(parts))
        case protocol.LEAVE:
            return partial(worker.leave, json.loads(parts[0])["camera"])
    return worker.stop


@contextmanager
def _signs_of_life(context: zmq.Context[zmq.Socket[bytes]], address: str) -> Iterator[None]:
    """Tells the receiver every ALIVE_S that this process lives, from a thread of its own: while an engine is built or a
    recording replayed, too, and when there is nothing to do."""
    stop, sign = threading.Event(), protocol.encode(protocol.ALIVE, {"pid": os.getpid()})

    def tell() -> None:
        with context.socket(zmq.DEALER) as socket:
            socket.linger, socket.sndhwm = 0, 1
            socket.connect(address)
            while True:
                with suppress(zmq.Again):
                    socket.send_multipart(sign, zmq.NOBLOCK)
                if stop.wait(protocol.ALIVE_S):
                    return

    thread = threading.Thread(target=tell, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@validate_call
def serve(address: str, model: str, own: dict[str, str], engine: str, slots: int, promotion: PromotionConfig | None,
          expected: list[Event] | None, known: list[Event] | None) -> None:
    """Works for the receiver at `address` until it sends `stop`; `run_process` ends it with the service.
    own: model files of cameras that have another model, each of which is built once; slots: of the default model.
    expected: the events that the running model found in promotion's recording; None if this model is the first. Raises
    ModelError, before `ready`, if this one finds others. known: those that this model found when it ran before,
    without `promotion`."""
    with (zmq.Context() as context, _signs_of_life(context, address), context.socket(zmq.DEALER) as socket):
        socket.linger = 2000
        socket.connect(address)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads, ExitStack() as stack:
            built: dict[str, Recognizer] = {}
            for file, cameras in {model: slots, **Counter(own.values())}.items():
                loaded = engines.load(file)
                compiled = engines.compile(loaded, engine=engine, slots=cameras)
                built[file] = stack.enter_context(Recognizer(loaded, compiled, threads=threads))
            recognizer = built[model]
            found = known or []
            if promotion is not None:
                found = recognize_file(recognizer, promotion.recording, "gate")
            if promotion is not None and expected is not None:
                check_promotion(expected, found, promotion.f1, promotion.recording)
            worker = Worker(recognizer, {camera: built[file] for camera, file in own.items()})
            socket.send_multipart(protocol.encode(protocol.READY, {
                "engine": "; ".join(f"{one.contract.name}, {one.engine.name} {one.engine.precision}"
                                    for one in built.values()),
                "clock": [*_clock(recognizer), {camera: _clock(built[file]) for camera, file in own.items()}],
                "credits": protocol.CREDITS, "pid": os.getpid(), "events": [event.as_json() for event in found]}))
            queue: deque[tuple[bytes, Callable[[], dict[str, Any] | None]]] = deque()  # kinds of messages, their work
            while True:
                # Pictures of the next batches are decoded while the engine has this one.
                while (len(queue) < protocol.CREDITS and (not queue or queue[-1][0] == protocol.FRAMES)
                       and socket.poll(0 if queue else None)):
                    kind, *parts = socket.recv_multipart()
                    queue.append((kind, _prepare(worker, kind, parts)))
                kind, work = queue.popleft()
                if (done := work()) is not None:
                    done["credits"] = int(kind == protocol.FRAMES)
                    socket.send_multipart(protocol.encode(protocol.DONE, done))
                if kind == protocol.STOP:
                    return


if __name__ == "__main__":
    sys.exit(run_process(lambda request: serve(**request), lambda request: "the engine"))
