"""Hostile senders beside a real camera: the service lives, answers, and says of the camera what it says without them.

GATESTREAM_HOSTILE=10000 sends so many mutated messages instead of a thousand.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zmq
from test_service import PATIENCE_S, RATE, Service

import engines
from engines.synthetic import Simulation

MESSAGES = int(os.environ.get("GATESTREAM_HOSTILE", "1000"))
IMAGE = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
JPEG = cv2.imencode(".jpg", IMAGE)[1].tobytes()
NASTY: list[Any] = [None, True, -1, 0, 1e308, 2**63, 2**200, "", "x" * 500, "\u0000", "../../etc", [], [[]], {},
                    [1, 2, 3, 4], [-1, 5, 3], [1.5, 2, 3], [2**40, 2**40, 3], "object", "<U8", "float16", "O",
                    "uint8", ["uint8"]]


def png_of(height: int, width: int) -> bytes:
    """A PNG of a few bytes that claims to be so large."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def jpeg_of(height: int, width: int) -> bytes:
    """The JPEG with another size in its header."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4:]


def mutants(seed: int) -> Iterator[list[bytes]]:
    """Messages as imagezmq, NetGear and we send them, and what became of them."""
    rng = np.random.default_rng(seed)
    headers: list[dict[str, Any]] = [
        {"msg": "evil", "dtype": "uint8", "shape": list(IMAGE.shape)}, {"msg": "evil"},
        {"terminate_flag": False, "compression": False, "message": "evil", "pattern": "1", "dtype": "uint8",
         "shape": list(IMAGE.shape)},
        {"terminate_flag": False, "compression": {"dct": False, "ups": False, "colorspace": "BGR"}, "message": "evil"},
        {"gatestream": 1, "camera": "evil", "encoding": "raw", "shape": list(IMAGE.shape), "dtype": "uint8",
         "pixel_format": "bgr8", "captured_at": 1e9, "sequence": 1},
        {"gatestream": 1, "camera": "evil", "encoding": "jpeg"}, {"gatestream": 1, "camera": "evil", "encoding": "png"}]
    payloads = [IMAGE.tobytes(), JPEG, png_of(50_000, 50_000), png_of(4000, 4000), jpeg_of(65_000, 65_000),
                jpeg_of(2000, 2000), b"", b"\xff\xd8\xff"]
    while True:
        header = dict(headers[int(rng.integers(len(headers)))])
        for _ in range(int(rng.integers(3))):
            header[str(rng.choice(list(header)))] = NASTY[int(rng.integers(len(NASTY)))]
        raw, body = bytearray(json.dumps(header).encode()), bytearray(payloads[int(rng.integers(len(payloads)))])
        for part in (raw, body):
            if len(part) and rng.random() < 0.3:
                at = int(rng.integers(len(part)))
                part[at:at + int(rng.integers(6))] = rng.bytes(int(rng.integers(6)))
        parts = [bytes(raw), bytes(body)][:2 - int(rng.random() < 0.1)]
        yield [b""] * (1 + int(rng.random() < 0.1)) + parts + [b"more"] * int(rng.random() < 0.1)


@pytest.mark.parametrize("seed", [0])
def test_hostile_senders_change_nothing(seed: int, tmp_path: Path) -> None:
    room = Simulation(3, (96, 128), RATE, idle_s=(1.0, 2.0))
    images = [room.frame(k) for k in range(round(12 * RATE))]
    began_at = round(time.time()) + 30.0  # within what a clock may be off, all the time
    all_but_a_step = began_at + (len(images) - 1) / RATE - 1 / engines.load("gesture").contract.frame_rate
    service = Service(tmp_path, pace_ms=1000, staleness_ms=60_000, max_frames_per_s=10_000)
    stop, sent = threading.Event(), [0]

    def attack() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as evil:
            evil.linger, evil.sndhwm, evil.sndtimeo = 0, 20, 1000
            evil.connect(f"tcp://127.0.0.1:{service.cameras}")
            for parts in mutants(seed):
                if stop.is_set() or sent[0] == MESSAGES:
                    break
                try:
                    evil.send_multipart(parts)
                    sent[0] += 1
                    while evil.poll(0):
                        evil.recv_multipart()
                except zmq.Again:
                    continue
            while evil.poll(500):  # what is still on its way would be lost with the connection
                evil.recv_multipart()

    def seen(camera: str) -> list[dict[str, Any]]:
        """What is said of a camera that shows all images, without what depends on its name or the machine."""
        with service.subscriber() as sub, service.sender(camera) as sender:
            time.sleep(0.2)
            for k, image in enumerate(images):
                sender.send(image, began_at + k / RATE)
            assert sender.unanswered == 0
            found, last_at = list[dict[str, Any]](), 0.0
            while sub.poll(500 if last_at > all_but_a_step else 1000 * PATIENCE_S):
                said = json.loads(sub.recv_multipart()[1])
                if said["camera"] == camera and said["type"] in ("prediction", "event"):
                    last_at = max(last_at, said.get("captured_at", 0.0))
                    found.append({key: what for key, what in said.items() if key not in ("latency_ms", "id", "camera")})
        return found

    try:
        service.ready()
        alone = seen("alone")
        before = service.ready()
        attacker = threading.Thread(target=attack)
        attacker.start()
        beside = seen("beside")
        attacker.join(PATIENCE_S * max(1, MESSAGES // 1000))
        stop.set()
        attacker.join()
        assert sent[0] == MESSAGES
        assert beside == alone
        assert len(alone) > 60
        after = service.ready()
        assert after["engine_restarts"] == 0
        refused = sum(after["refused"].values()) + sum(sum(camera["dropped"].values()) for camera in
                                                        after["cameras"].values())
        assert refused > MESSAGES / 2
        assert after["memory_bytes"] - before["memory_bytes"] < 100e6  # two pictures of 2000 x 2000 pixels are 24e6
        grown_mb = (after["memory_bytes"] - before["memory_bytes"]) / 1e6
        dropped = {name: camera["dropped"] for name, camera in after["cameras"].items()
                   if name not in ("alone", "beside")}
        print(f"{MESSAGES} messages: refused {after['refused']}, {dropped}; memory {grown_mb:+.1f} MB")
    finally:
        service.end()
    errors = (tmp_path / "errors.txt").read_text().splitlines()
    assert all(line.startswith("gatestream: ") for line in errors), errors
