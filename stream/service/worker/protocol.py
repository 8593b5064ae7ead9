"""How the keeper of the sockets and an engine's process talk: ZeroMQ over a socket file that only this user can open.

    worker ──ready──► keeper         {"engine": ..., "pid": ..., "clock": [rate, longest gap]}: it can take work
    keeper ──frames─► worker         [{camera, index, ...}, ...], then the payload of each
    worker ──done───► keeper         {"records": [...], "errors": [...]}: and it can take work again
    keeper ──cameras► worker         [{name, colour, crop, ...}, ...]: what is configured of cameras
    keeper ──warm───► worker         as frames: what cameras sent before, for the engine's state and no results
    keeper ──leave──► worker         {"camera": ...}: close its events, free its slot
    keeper ──stop───► worker         close all events, and end

Headers are JSON, payloads are what cameras sent: nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from stream.service.frames import PendingFrame
from stream.wire import Message

CREDITS = 3  # batches the keeper may send ahead: one in the engine, one being decoded, one at hand
READY, FRAMES, DONE, CAMERAS, WARM, LEAVE, STOP = (b"ready", b"frames", b"done", b"cameras", b"warm", b"leave",
                                                   b"stop")


def pack(frames: Sequence[PendingFrame], kind: bytes = FRAMES) -> list[bytes]:
    """Parts of a `frames` or `warm` message."""
    headers = [{"camera": frame.camera, "index": frame.index, "lost": frame.lost, "captured_at": frame.captured_at,
                "arrived_at": frame.arrived_at, "passed_at": frame.passed_at, "protocol": frame.message.protocol,
                "encoding": frame.message.encoding, "shape": frame.message.shape, "dtype": frame.message.dtype,
                "pixel_format": frame.message.pixel_format} for frame in frames]
    return [kind, json.dumps(headers).encode(), *(frame.message.payload for frame in frames)]


def unpack(parts: Sequence[bytes]) -> list[PendingFrame]:
    """The frames of such a message without its kind."""
    frames = []
    for header, payload in zip(json.loads(parts[0]), parts[1:], strict=True):
        message = Message(header["protocol"], header["camera"], payload, header["encoding"], tuple(header["shape"]),
                          header["dtype"], header["pixel_format"])
        frames.append(PendingFrame(header["camera"], message, header["index"], header["lost"], header["captured_at"],
                            header["arrived_at"], header["passed_at"]))
    return frames
