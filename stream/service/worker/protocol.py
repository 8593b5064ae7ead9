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

from stream.service.ingress.scheduler import Guest
from stream.wire import Message

CREDITS = 3  # batches the keeper may send ahead: one in the engine, one being decoded, one at hand
READY, FRAMES, DONE, CAMERAS, WARM, LEAVE, STOP = (b"ready", b"frames", b"done", b"cameras", b"warm", b"leave",
                                                   b"stop")


def packed(guests: Sequence[Guest], kind: bytes = FRAMES) -> list[bytes]:
    """Parts of a `frames` or `warm` message."""
    headers = [{"camera": guest.camera, "index": guest.index, "lost": guest.lost, "captured_at": guest.captured_at,
                "arrived_at": guest.arrived_at, "passed_at": guest.passed_at, "protocol": guest.message.protocol,
                "encoding": guest.message.encoding, "shape": guest.message.shape, "dtype": guest.message.dtype,
                "pixel_format": guest.message.pixel_format} for guest in guests]
    return [kind, json.dumps(headers).encode(), *(guest.message.payload for guest in guests)]


def unpacked(parts: Sequence[bytes]) -> list[Guest]:
    """The guests of such a message without its kind."""
    guests = []
    for header, payload in zip(json.loads(parts[0]), parts[1:], strict=True):
        message = Message(header["protocol"], header["camera"], payload, header["encoding"], tuple(header["shape"]),
                          header["dtype"], header["pixel_format"])
        guests.append(Guest(header["camera"], message, header["index"], header["lost"], header["captured_at"],
                            header["arrived_at"], header["passed_at"]))
    return guests
