"""How the keeper of the sockets and an engine's process talk: ZeroMQ over a socket file that only this user can open.

    worker ──ready──► keeper         {"model": ...}: it can take work
    keeper ──frames─► worker         [{camera, index, ...}, ...], then the payload of each
    worker ──done───► keeper         {"records": [...], "errors": [...]}: and it can take work again
    keeper ──cameras► worker         [{name, colour, crop, ...}, ...]: what is configured of cameras
    keeper ──leave──► worker         {"camera": ...}: close its events, free its slot
    keeper ──stop───► worker         close all events, and end

Headers are JSON, payloads are what cameras sent: nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stream.frame import Event, Gap
from stream.service.lobby import Guest
from stream.service.wire import Message

READY, FRAMES, DONE, CAMERAS, LEAVE, STOP = b"ready", b"frames", b"done", b"cameras", b"leave", b"stop"


def packed(guests: Sequence[Guest]) -> list[bytes]:
    """Parts of a `frames` message."""
    headers = [{"camera": guest.camera, "index": guest.index, "lost": guest.lost, "captured_at": guest.captured_at,
                "arrived_at": guest.arrived_at, "protocol": guest.message.protocol,
                "encoding": guest.message.encoding, "shape": guest.message.shape, "dtype": guest.message.dtype,
                "pixel_format": guest.message.pixel_format} for guest in guests]
    return [FRAMES, json.dumps(headers).encode(), *(guest.message.payload for guest in guests)]


def unpacked(parts: Sequence[bytes]) -> list[Guest]:
    """The guests of a `frames` message without its kind."""
    guests = []
    for header, payload in zip(json.loads(parts[0]), parts[1:], strict=True):
        message = Message(header["protocol"], header["camera"], payload, header["encoding"], tuple(header["shape"]),
                          header["dtype"], header["pixel_format"])
        guests.append(Guest(header["camera"], message, header["index"], header["lost"], header["captured_at"],
                            header["arrived_at"]))
    return guests


def record_of(said: dict[str, Any]) -> Event | Gap:
    """The event or gap that a JSON object of `as_json` stands for."""
    fields = {key: value for key, value in said.items() if key != "type"}
    return Event(**fields) if said["type"] == "event" else Gap(**fields)
