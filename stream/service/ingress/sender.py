"""A ZeroMQ camera: sends pictures to `gatestream serve`, imagezmq hubs or NetGear clients."""

import json
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import zmq

from engines.errors import SinkError, UsageError
from stream.frame import Image
from stream.service.ingress.security import read_keys
from stream.wire import encode_header

Form = Literal["gatestream", "imagezmq", "netgear"]
PATIENCE_S = 4.0  # for an answer, after which the socket is made anew


class Sender:
    """Sends JPEGs; waits for the answer to each (REQ) or publishes to whoever listens (PUB, which binds).

        with Sender("tcp://127.0.0.1:5555", "cell-3") as sender:
            answer = sender.send(image_bgr, captured_at=time.time())

    form: whose header; quality: of the JPEGs; key, server_key: files of the camera's pair and of the service's public
    key, where the service asks for them. Belongs to one thread. Raises SinkError for an address that cannot be used,
    UsageError for such files."""

    def __init__(self, address: str, camera: str, form: Form = "gatestream", publish: bool = False,
                 quality: int = 90, patience_s: float = PATIENCE_S, key: Path | None = None,
                 server_key: Path | None = None) -> None:
        if (key is None) != (server_key is None):
            raise UsageError("one key file", "two: the camera's pair and the service's public key", "give both")
        self._keys = (read_keys(key), read_keys(server_key)) if key is not None and server_key is not None else None
        self._address, self._camera, self._form, self._publish = address, camera, form, publish
        self._quality, self._patience_s = quality, patience_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sequence, self.unanswered = count(), 0
        try:
            self._socket = self._open_socket()
        except SinkError:
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> Self:
        return self

    def send(self, image_bgr: Image, captured_at: float) -> dict[str, Any] | None:
        """Sends a picture (uint8 [H, W, 3]; Unix time); returns the camera's latest prediction if that is the answer.
        An answer that does not come in time is counted in `unanswered`, and the next picture is sent all the same."""
        encoded, jpeg = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        assert encoded
        return self._request([self._header(captured_at), jpeg.tobytes()])

    def __exit__(self, *_: object) -> None:
        """Tells the receiver that the stream is over, and closes."""
        if self._form != "imagezmq" and not self._context.closed:
            self._patience_s = min(self._patience_s, 0.5)
            with suppress(zmq.ZMQError):  # interrupted while it waits for an answer, it may not send
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
        try:
            found = json.loads(answer)
        except ValueError:
            return None
        found = found.get("data") if isinstance(found, dict) and "return_type" in found else found
        return found if isinstance(found, dict) else None

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
