"""Messages between the receiver and an engine's process, over a ZeroMQ socket file that only this user can open.

    worker ──ready──► receiver         {"engine": ..., "pid": ..., "clock": [rate, longest gap]}: takes work
    receiver ──frames─► worker         [{camera, index, ...}, ...], then the payload of each
    worker ──done───► receiver         {"records": [...], "errors": [...], "odd": [[camera, line]]}: takes work again
    receiver ──cameras► worker         [{name, colour, crop, ...}, ...]: the configuration's cameras
    receiver ──warm───► worker         as frames: earlier ones, for the engine's state and no results
    receiver ──leave──► worker         {"camera": ...}: close its events, free its slot
    receiver ──stop───► worker         close all events, and end

Headers are JSON, payloads are what cameras sent: nothing is pickled."""

import json
from collections.abc import Sequence
from typing import Any

from stream.service.frames import PendingFrame
from stream.wire import Message

CREDITS = 3  # batches that may be under way: one in the engine, one being decoded, one at hand
READY, FRAMES, DONE, CAMERAS, WARM, LEAVE, STOP = b"ready", b"frames", b"done", b"cameras", b"warm", b"leave", b"stop"


def encode(kind: bytes, content: Any) -> list[bytes]:
    """Parts of a message without payloads."""
    return [kind, json.dumps(content).encode()]


def pack(frames: Sequence[PendingFrame], kind: bytes = FRAMES) -> list[bytes]:
    """Parts of a `frames` or `warm` message."""
    headers = [{"camera": frame.camera, "index": frame.index, "lost": frame.lost, "captured_at": frame.captured_at,
                "arrived_at": frame.arrived_at, "passed_at": frame.passed_at, "protocol": frame.message.protocol,
                "encoding": frame.message.encoding, "shape": frame.message.shape, "dtype": frame.message.dtype,
                "pixel_format": frame.message.pixel_format} for frame in frames]
    return [*encode(kind, headers), *(frame.message.payload for frame in frames)]


def unpack(parts: Sequence[bytes]) -> list[PendingFrame]:
    """The frames of such a message, whose first part is left out."""
    frames = []
    for header, payload in zip(json.loads(parts[0]), parts[1:], strict=True):
        message = Message(header["protocol"], header["camera"], payload, header["encoding"], tuple(header["shape"]),
                          header["dtype"], header["pixel_format"])
        frames.append(PendingFrame(header["camera"], message, header["index"], header["lost"], header["captured_at"],
                                   header["arrived_at"], header["passed_at"]))
    return frames
