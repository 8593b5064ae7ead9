"""Messages between the receiver and an engine's process, over a ZeroMQ socket file that only this user can open.

    worker ──alive──► receiver         {"pid": ...}: every second, whatever it does
    worker ──ready──► receiver         {"engine": ..., "pid": ..., "clock": [rate, longest gap, {camera: the same of
                                       one with another model}]}: takes work
    receiver ──frames─► worker         [{camera, index, ...}, ...], then the payload of each
    worker ──done───► receiver         {"records": [...], "errors": [...], "odd": [[camera, line]]}: takes work again
    receiver ──cameras► worker         [{name, colour, crop, ...}, ...]: the configuration's cameras
    receiver ──warm───► worker         as frames: earlier ones, for the engine's state and no results
    receiver ──leave──► worker         {"camera": ...}: close its events, free its slot
    receiver ──stop───► worker         close all events, and end

Headers are JSON, payloads are what cameras sent: nothing is pickled. The receiver's end is a `WorkerSocket`."""

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import zmq

from stream.clock import Tick
from stream.wire.frames import PendingFrame
from stream.wire.messages import Message

CREDITS = 3  # batches that may be under way: one in the engine, one being decoded, one at hand
BATCH = 8  # frames in a batch, at most
LEAST = 2  # where many wait: a core each, at least
UNDER_WAY_S = 0.12  # that all batches under way may take
ALIVE_S = 1.0  # from one sign of life to the next
ALIVE, READY, FRAMES, DONE = b"alive", b"ready", b"frames", b"done"
CAMERAS, WARM, LEAVE, STOP = b"cameras", b"warm", b"leave", b"stop"
OF_FRAME = ("camera", "index", "lost", "captured_at", "arrived_at", "tick")  # what a header says of a frame,
OF_MESSAGE = ("protocol", "encoding", "shape", "dtype", "pixel_format", "stride")  # and of its message


def encode(kind: bytes, content: Any) -> list[bytes]:
    """Parts of a message without payloads."""
    return [kind, json.dumps(content).encode()]


def pack(frames: Sequence[PendingFrame], kind: bytes) -> list[bytes]:
    """Parts of a `frames` or `warm` message."""
    headers = [{key: getattr(frame, key) for key in OF_FRAME} | {key: getattr(frame.message, key) for key in OF_MESSAGE}
               for frame in frames]
    return [*encode(kind, headers), *(frame.message.payload for frame in frames)]


def unpack(parts: Sequence[bytes]) -> list[PendingFrame]:
    """The frames of such a message, whose first part is left out."""
    frames = []
    for header, payload in zip(json.loads(parts[0]), parts[1:], strict=True):
        header["shape"], header["tick"] = tuple(header["shape"]), header["tick"] and Tick(*header["tick"])
        message = Message(name=header["camera"], payload=payload, **{key: header[key] for key in OF_MESSAGE})
        frames.append(PendingFrame(message=message, **{key: header[key] for key in OF_FRAME}))
    return frames


class BatchSizer:
    """How many frames a batch may have so that all that are under way are done within UNDER_WAY_S: those that wait for
    the next one instead are overtaken by newer ones. Times are steady seconds."""

    def __init__(self) -> None:
        self._sent: deque[tuple[float, int]] = deque()
        self._done_at = self._each_s = 0.0

    def on_sent(self, now: float, frames: int) -> None:
        """A batch of so many frames was sent."""
        self._sent.append((now, frames))

    def on_done(self, now: float, batch: bool = True) -> None:
        """The oldest batch under way is done, or if not `batch`, something else that was before it."""
        if batch and self._sent:
            sent_at, frames = self._sent.popleft()
            each_s = (now - max(sent_at, self._done_at)) / frames
            self._each_s += (each_s - self._each_s) / 8
        self._done_at = now

    def reset(self) -> None:
        """Nothing is under way any more."""
        self._sent.clear()

    def waiting_s(self, now: float) -> float:
        """How long the oldest batch under way has had the engine; 0 if there is none."""
        return now - max(self._sent[0][0], self._done_at) if self._sent else 0.0

    @property
    def size(self) -> int:
        """Frames of the next batch, at most."""
        fit = BATCH if not self._each_s else int(UNDER_WAY_S / (CREDITS * self._each_s))
        return max(LEAST, min(BATCH, fit))


class WorkerSocket:
    """Sends work to the live worker, the one that got ready last, and receives from all that are connected. Owned by
    the receiver thread; other threads may read its attributes."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger, self.socket.sndhwm = 0, 0
        self.batch = BatchSizer()
        self.engine, self.pid = "", 0  # what the live worker runs, and its process
        self.events: list[dict[str, Any]] = []  # that it found in the recording for promotions
        self.was_ready = False  # whether any worker ever got ready
        self.last_at = 0.0  # steady seconds of the last message that was no sign of life
        self.alive_at: dict[int, float] = {}  # of each process, steady seconds of the last one of any kind
        self.identity: bytes | None = None  # of the live worker, where there is one
        self._credits: Counter[bytes] = Counter()
        self.under_way: deque[tuple[bytes, Sequence[PendingFrame]]] = deque()  # what the live worker has not answered

    @property
    def takes_work(self) -> bool:
        """Whether the live worker takes a batch now."""
        return self.identity is not None and self._credits[self.identity] > 0

    def receive(self, accept: bool) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Kinds and contents of the messages that have come. accept: a worker that is ready becomes the live one; the
        one before it still finishes what it has."""
        while True:
            try:
                identity, kind, body = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            content, now = json.loads(body), time.monotonic()
            if kind == ALIVE:
                self.alive_at[content["pid"]] = now
                continue
            self.last_at = now
            if kind == READY and accept:
                self.send(STOP, {})
                self.identity, self.engine, self.was_ready = identity, content["engine"], True
                self.pid, self.events = content.get("pid", 0), content.get("events", [])
                self.batch.reset()
                self.under_way.clear()
            credits = content.get("credits", 1)
            self._credits[identity] += credits
            if kind == DONE and identity == self.identity:
                self.batch.on_done(now, bool(credits))
                if self.under_way:
                    self.under_way.popleft()
            if content.get("last") and identity == self.identity:
                self.identity = None
            yield kind, content

    def send(self, kind: bytes, content: Any) -> None:
        """Sends a message without frames to the live worker, if there is one."""
        self._send(encode(kind, content), ())

    def send_frames(self, frames: Sequence[PendingFrame], kind: bytes = FRAMES) -> None:
        """Sends frames to the live worker: FRAMES, if it takes work, or WARM."""
        if kind == FRAMES:
            assert self.identity is not None
            self._credits[self.identity] -= 1
            self.batch.on_sent(time.monotonic(), len(frames))
        self._send(pack(frames, kind), frames)

    def _send(self, parts: Sequence[bytes], frames: Sequence[PendingFrame]) -> None:
        if self.identity is not None:
            if parts[0] != CAMERAS:
                self.under_way.append((parts[0], frames))
            self.socket.send_multipart([self.identity, *parts], zmq.NOBLOCK)

    def on_lost(self) -> list[PendingFrame]:
        """The live worker's process has ended: the frames that it was at work on."""
        suspects: list[PendingFrame] = []
        for kind, frames in islice(self.under_way, CREDITS):
            suspects += frames
            if kind != FRAMES:  # it does not look ahead beyond others
                break
        self.identity = None
        self.under_way.clear()
        self._credits.clear()
        self.batch.reset()
        return suspects
