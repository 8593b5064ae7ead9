"""A ZeroMQ camera: sends pictures to `gatestream serve`, imagezmq hubs or NetGear clients."""

import json
import logging
import math
import re
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import zmq

from engines.errors import FrameError, SinkError, UsageError
from stream.access.keys import read_keys
from stream.clock import unix_time
from stream.frame import Frame, Image
from stream.sources.base import Source
from stream.wire.messages import Limits, encode_header

log = logging.getLogger("gatestream.service")

Form = Literal["gatestream", "imagezmq", "netgear"]
PATIENCE_S = 4.0  # for an answer, after which the socket is made anew
# Refused from the first on: so many pictures, for longer than a receiver waits for another sender of the name.
ALL_REFUSED, ALL_REFUSED_S = 20, 8.0


class Sender:
    """Sends JPEGs, with `lossless` the pixels, too. Waits for the answer to each (REQ) or publishes to whoever listens
    (PUB, which binds).

        with Sender("tcp://127.0.0.1:5555", "cell-3") as sender:
            answer = sender.send(image_bgr, captured_at=time.time())

    form: whose header; quality: of the JPEGs; key, server_key: files of the camera's pair and of the service's public
    key, where the service asks for them. Belongs to one thread. Raises SinkError for an address that cannot be used,
    UsageError for such files."""

    def __init__(self, address: str, camera: str, form: Form = "gatestream", publish: bool = False,
                 quality: int = 90, patience_s: float = PATIENCE_S, key: Path | None = None,
                 server_key: Path | None = None, lossless: bool = False) -> None:
        if (key is None) != (server_key is None):
            raise UsageError("one key file", "two: the camera's pair and the service's public key", "give both")
        self._keys = (read_keys(key), read_keys(server_key)) if key is not None and server_key is not None else None
        self._address, self._camera, self._form, self._publish = address, camera, form, publish
        self._quality, self._patience_s, self._lossless = quality, patience_s, lossless
        self._most_bytes = Limits().payload_bytes  # that the receiver takes, until it says so
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sequence, self.unanswered, self.refused, self._accepted = count(), 0, 0, False
        self._reasons: set[str] = set()  # of refusals, which were logged
        self._began_at = time.monotonic()
        try:
            self._socket = self._open_socket()
        except SinkError:
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> Self:
        return self

    def send(self, image_bgr: Image, captured_at: float, pixels: bool = True) -> dict[str, Any] | None:
        """Sends a picture (uint8 [H, W, 3]; Unix time), where that is asked for its pixels, too; returns the camera's
        latest prediction if that is the answer. An answer that does not come in time is counted in `unanswered`, a
        refusal in `refused` and logged once for each reason, and the next picture is sent all the same. Raises
        SinkError when all of the first ones are refused."""
        encoded, jpeg = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        assert encoded
        size, refused = image_bgr.nbytes + len(jpeg), self.refused
        if self._lossless and pixels and size <= self._most_bytes:
            header = encode_header(self._camera, image_bgr.shape, encoding="raw", pixel_format="bgr8",
                                   captured_at=captured_at, sequence=next(self._sequence))
            answer = self._request([header, image_bgr.tobytes(), jpeg.tobytes()])
            if self.refused > refused:  # it may be too large
                self._most_bytes = size - 1
        else:
            answer = self._request([self._header(captured_at), jpeg.tobytes()])
        self._most_bytes = (answer or {}).get("most_bytes", self._most_bytes)
        return answer

    def __exit__(self, *_: object) -> None:
        """Tells the receiver that the stream is over, and closes."""
        if self._form != "imagezmq" and not self._context.closed:
            self._patience_s = min(self._patience_s, 0.5)
            with suppress(zmq.ZMQError, SinkError):  # interrupted while it waits for an answer, it may not send
                self._request([json.dumps({"terminate_flag": True}).encode()] if self._form == "netgear" else
                              [encode_header(self._camera, end=True), b""])
        self._context.destroy()

    def _header(self, captured_at: float) -> bytes:
        meta: dict[str, Any] = {"camera": self._camera, "captured_at": captured_at, "sequence": next(self._sequence)}
        if self._form == "imagezmq":
            return json.dumps({"msg": meta}).encode()
        if self._form == "netgear":
            return json.dumps({"terminate_flag": False, "message": meta, "pattern": "2" if self._publish else "1",
                               "compression": {"dct": False, "ups": False, "colorspace": "BGR"}, "dtype": "",
                               "shape": ""}).encode()
        return encode_header(**meta)

    def _request(self, parts: list[bytes]) -> dict[str, Any] | None:
        if self._publish:
            self._socket.send_multipart(parts)
            return None
        self._socket.sndtimeo = self._socket.rcvtimeo = round(1000 * self._patience_s)
        try:
            self._socket.send_multipart(parts)  # to a receiver that refused the connection: it would wait for ever
            answer = self._socket.recv()
        except zmq.ZMQError as error:
            # EFSM: the connection broke while the message was on its way; ZeroMQ drops it and only tells now.
            if error.errno not in (zmq.EAGAIN, zmq.EFSM):
                raise
            self.unanswered += 1
            self._socket.close(linger=0)
            self._socket = self._open_socket()
            return None
        if answer.startswith(b"ERROR: "):
            self._on_refused(answer[7:].decode(errors="replace"))
            return None
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        found = found.get("data") if isinstance(found, dict) and "return_type" in found else found
        if isinstance(found, dict) and "error" in found:
            self._on_refused(str(found["error"]))
            return None
        self._accepted = True
        return found if isinstance(found, dict) else None

    def _on_refused(self, reason: str) -> None:
        self.refused += 1
        kind = re.sub(r"\d+", "", reason)
        if kind not in self._reasons and len(self._reasons) < ALL_REFUSED:
            self._reasons.add(kind)
            log.warning("%s refuses a picture of %s: %s", self._address, self._camera, reason)
        if not self._accepted and self.refused >= ALL_REFUSED and time.monotonic() - self._began_at > ALL_REFUSED_S:
            raise SinkError(f"{self._address}, which refused all {self.refused} pictures", "a receiver that takes them",
                            f"correct what it says: {reason}")

    def _open_socket(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUB if self._publish else zmq.REQ)
        # Before it binds or connects: a connection keeps the linger it was made with, whose default is for ever, and
        # one that ends while its socket is closed then blocks the context.
        socket.linger = 200
        socket.sndhwm = 2
        if self._keys is not None:
            own, (socket.curve_serverkey, _) = self._keys
            socket.curve_publickey, socket.curve_secretkey = own
        try:
            # NetGear's receivers bind, whatever the pattern; imagezmq's connect to publishers.
            if self._publish and self._form != "netgear":
                socket.bind(self._address)
            else:
                socket.connect(self._address)
        except zmq.ZMQError as error:
            socket.close()
            raise SinkError(f"{self._address} ({error.strerror})", "tcp://host:port", "correct the address") from error
        return socket


def send_frames(source: Source, sender: Sender, most: int | None = None) -> None:
    """Sends a source's frames until it ends or `most` are sent; only those that the receiver wants, if it says so. What
    is no live camera is sent as if it began now, whether its times are those of a file or of the day of recording."""
    offset_s = 0.0 if source.info.live else None
    sent, latest_at, next_at, between = 0, math.inf, -math.inf, False
    for frame in source.frames():
        if sent == most:
            return
        if not isinstance(frame, Frame):
            continue
        if offset_s is None:
            offset_s = unix_time() - frame.captured_at
        at = frame.captured_at + offset_s
        wanted = not latest_at < at < next_at
        if not (wanted or between):
            continue
        try:
            answer = sender.send(frame.image_bgr, at, pixels=wanted) or {}
            sent, latest_at, next_at = sent + 1, at, answer.get("next_at") or -math.inf
            between = answer.get("between", False)
        except FrameError as error:
            log.warning("%s", error)
