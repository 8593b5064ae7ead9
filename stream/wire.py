"""The messages of ZeroMQ cameras, and the replies to them.

    imagezmq    {"msg": ..., "dtype": ..., "shape": ...} + pixels, or {"msg": ...} + a JPEG
    NetGear     {"terminate_flag": false, "compression": ..., "message": ..., ...} + pixels or a JPEG
    gatestream  {"gatestream": 1, "camera": ..., ...} + pixels, a JPEG or a PNG; see `encode_header`

A message is a JSON header and a payload. Nothing here knows a socket: `parse` checks what a header claims against the
payload's length before anything is allocated, and `decode` decodes."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.decoding.images import as_bgr, parse_size_hw
from engines.errors import FrameError
from stream.frame import Image

Protocol = Literal["imagezmq", "netgear", "gatestream"]
Encoding = Literal["jpeg", "png", "raw"]

VERSION = 1
HEADER_BYTES = 64 * 1024
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
NAME_CHARACTERS = 64
# Pixel formats in 16-bit words, and by how many bits they are shifted to become bytes.
WIDE = {"mono10": 2, "mono12": 4, "mono16": 8}
BAYER = {"bayer_rg8": cv2.COLOR_BayerRGGB2BGR, "bayer_gr8": cv2.COLOR_BayerGRBG2BGR,
         "bayer_gb8": cv2.COLOR_BayerGBRG2BGR, "bayer_bg8": cv2.COLOR_BayerBGGR2BGR}  # GenICam's names, in lower case
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
           8: cv2.IMREAD_REDUCED_COLOR_8}
SEND = "send as imagezmq, NetGear or gatestream camera do"
ShrinkFactor = Callable[[tuple[int, int]], int]  # of a JPEG's [H, W]: by how much it may be smaller than it was sent
CHANNELS = {"bgr8": 3, "rgb8": 3, "bgra8": 4, "rgba8": 4, **dict.fromkeys(("mono8", *WIDE, *BAYER), 1)}


@dataclass(frozen=True, slots=True)
class Limits:
    """Larger messages are refused before they cost anything."""

    payload_bytes: int = 32 * 1024 * 1024  # of one message
    pixels: int = 40_000_000  # of one picture


@dataclass(frozen=True, slots=True)
class Message:
    """A camera's message, not yet decoded. None means that the sender did not state it."""

    protocol: Protocol
    name: str | None  # of the camera
    payload: bytes
    encoding: Encoding = "jpeg"
    shape: tuple[int, ...] = ()
    dtype: str = "uint8"
    pixel_format: str | None = None  # None: BGR, grey or BGRA by the array's shape
    captured_at: float | None = None  # Unix time
    sequence: int | None = None
    end: bool = False  # the camera's stream is over
    port: str | None = None  # of a NetGear sender among several, which the reply has to name

    @property
    def is_text(self) -> bool:
        """Whether it has no picture: some imagezmq senders send words with a payload of one byte."""
        return self.protocol == "imagezmq" and self.encoding != "raw" and len(self.payload) < 16


def encode_header(camera: str, image_shape: Sequence[int] | None = None, *, encoding: Encoding = "jpeg",
                  dtype: str = "uint8", pixel_format: str | None = None, captured_at: float | None = None,
                  sequence: int | None = None, end: bool = False) -> bytes:
    """The header of our own form; the second part of the message is the payload: C-order bytes, a JPEG or a PNG.
    image_shape, dtype, pixel_format: of raw pixels only."""
    header: dict[str, Any] = {"gatestream": VERSION, "camera": camera, "encoding": encoding}
    if encoding == "raw":
        header |= {"shape": list(image_shape or ()), "dtype": dtype, "pixel_format": pixel_format}
    header |= {"captured_at": captured_at, "sequence": sequence, "end": end or None}
    return json.dumps({key: value for key, value in header.items() if value is not None}).encode()


def parse(parts: Sequence[bytes], limits: Limits) -> Message:
    """Parses the parts of a message. Raises FrameError."""
    if len(parts) not in (1, 2):
        raise FrameError(f"a message of {len(parts)} parts", "a JSON header and a payload", SEND)
    header = _header(parts[0])
    payload = parts[1] if len(parts) == 2 else b""
    if len(payload) > limits.payload_bytes:
        raise FrameError(f"a payload of {len(payload)} bytes", f"{limits.payload_bytes} at most",
                         "compress the pictures, or allow larger messages")
    if "gatestream" in header:
        return _ours(header, payload, limits)
    if "terminate_flag" in header:
        return _netgear(header, payload, limits)
    if "msg" in header and len(parts) == 2:
        array = _array(header, payload, limits) if "shape" in header or "dtype" in header else {}
        return Message("imagezmq", payload=payload, **array, **_facts(header["msg"]))
    raise FrameError(f"a header with {', '.join(map(repr, list(header)[:6])) or 'nothing'} in it",
                     "one of imagezmq, NetGear or gatestream", "send as one of these does")


def encode_reply(message: Message | None, prediction: Mapping[str, Any] | None = None,
                 error: str | None = None) -> bytes:
    """The reply to a waiting sender: its camera's latest prediction, if there is one, or the error.
    One form serves all of NetGear's modes; imagezmq passes any bytes on."""
    if message is not None and message.protocol == "netgear":
        data = {"error": error} if error else None if prediction is None else dict(prediction)
        return json.dumps({"port": message.port or "0", "return_type": "NoneType" if data is None else "dict",
                           "data": data}).encode()
    if error:
        return f"ERROR: {error}".encode()
    return b"OK" if prediction is None else json.dumps(prediction).encode()


def decode(message: Message, limits: Limits, colour: Literal["BGR", "RGB"] = "BGR",
           shrinkable: ShrinkFactor = lambda _: 1) -> Image:
    """Decodes the picture of a message to BGR uint8 [H, W, 3]. Raises FrameError.
    colour: of raw arrays without a pixel format; shrinkable: 1, 2, 4 or 8, a smaller picture is decoded faster."""
    if message.encoding != "raw":
        return _decompress(message.payload, limits, shrinkable)
    array = np.frombuffer(message.payload, message.dtype).reshape(message.shape)
    form = message.pixel_format
    if form in BAYER:
        return np.asarray(cv2.cvtColor(_plane(array, np.uint8), BAYER[form]), np.uint8)
    if form in WIDE:
        return as_bgr((np.minimum(_plane(array, np.uint16) >> WIDE[form], 255)).astype(np.uint8))
    image = as_bgr(array)
    reverse = form.startswith("rgb") if form else colour == "RGB" and array.ndim == 3 and array.shape[2] > 1
    return np.ascontiguousarray(image[..., ::-1]) if reverse else image


def parse_camera_name(value: object) -> str | None:
    """A camera's name: short, printable text; else None. Numbers are no names: some senders send the time."""
    if not isinstance(value, str) or not value.strip() or len(value) > NAME_CHARACTERS or not value.isprintable():
        return None
    return value.strip()


def _header(raw: bytes) -> dict[str, Any]:
    if len(raw) > HEADER_BYTES:
        raise FrameError(f"a header of {len(raw)} bytes", f"{HEADER_BYTES} at most", "send a JSON object and a payload")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a header that is no JSON ({type(error).__name__})", "a JSON object", SEND) from error
    if not isinstance(header, dict):
        raise FrameError(f"a header that is {type(header).__name__}", "a JSON object", SEND)
    return header


def _ours(header: dict[str, Any], payload: bytes, limits: Limits) -> Message:
    if header["gatestream"] != VERSION:
        raise FrameError(f"a message of version {_short(header['gatestream'])}", f"version {VERSION}",
                         "use the same gatestream at both ends")
    if parse_camera_name(header.get("camera")) is None:
        raise FrameError(f"a camera called {_short(header.get('camera'))}",
                         f"a printable name of up to {NAME_CHARACTERS} characters", "name the camera")
    facts, encoding = {**_facts(header), "end": header.get("end") is True}, header.get("encoding")
    if facts["end"] and not payload:
        return Message("gatestream", payload=b"", **facts)
    if encoding in ("jpeg", "png"):
        return Message("gatestream", payload=payload, encoding=encoding, **facts)
    if encoding != "raw":
        raise FrameError(f"encoding {_short(encoding)}", "jpeg, png or raw", "choose one of them")
    form = header.get("pixel_format")
    if form is not None and form not in list(CHANNELS):  # a list: what a header holds may have no hash
        raise FrameError(f"pixel format {_short(form)}", f"one of {', '.join(CHANNELS)}", "convert the pictures")
    array = _array(header, payload, limits)
    wanted = "uint16" if form in WIDE else "uint8"
    channels = array["shape"][2] if len(array["shape"]) == 3 else 1
    if form is not None and (array["dtype"], channels) != (wanted, CHANNELS[form]):
        raise FrameError(f"{array['dtype']} {list(array['shape'])} as {form}", f"{wanted} of {CHANNELS[form]} channels",
                         "name the pixel format that the array has")
    return Message("gatestream", payload=payload, pixel_format=form, **array, **facts)


def _netgear(header: dict[str, Any], payload: bytes, limits: Limits) -> Message:
    port = header.get("port")
    facts = _facts(header.get("message"))
    facts["port"] = str(port) if isinstance(port, str | int) and len(str(port)) <= 8 else None
    if header["terminate_flag"] is True:
        return Message("netgear", payload=b"", end=True, **facts)
    compression = header.get("compression")
    if compression is False:
        return Message("netgear", payload=payload, **_array(header, payload, limits), **facts)
    if not isinstance(compression, dict):
        raise FrameError(f"NetGear compression {_short(compression)}", "false, or an object (vidgear 0.3.x)",
                         "use a newer vidgear, or jpeg_compression=False")
    if str(compression.get("colorspace")).upper() == "CMYK":
        raise FrameError("a NetGear JPEG in CMYK", "BGR, RGB or GRAY", "leave jpeg_compression_colorspace out")
    return Message("netgear", payload=payload, **facts)


def _facts(text: object) -> dict[str, Any]:
    """Name, capture time and sequence number, as a sender may put them into its message."""
    if isinstance(text, dict):
        return {"name": parse_camera_name(text.get("camera")), "captured_at": _time(text.get("captured_at")),
                "sequence": _number(text.get("sequence"))}
    return {"name": parse_camera_name(text)}


def _array(header: dict[str, Any], payload: bytes, limits: Limits) -> dict[str, Any]:
    """Encoding, shape and type of the raw array that the payload is."""
    dtype, shape = header.get("dtype"), header.get("shape")
    if dtype not in DTYPES:
        raise FrameError(f"pixels of type {_short(dtype)}", f"one of {', '.join(DTYPES)}", "convert the pictures")
    if (not isinstance(shape, list) or len(shape) not in (2, 3)
            or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape)
            or (len(shape) == 3 and shape[2] not in (1, 3, 4))):
        raise FrameError(f"an array of shape {_short(shape)}", "[H, W], or [H, W, C] of 1, 3 or 4 channels",
                         "send one picture at a time, channels last")
    _check_pixels(shape[0], shape[1], limits)
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if len(payload) != wanted:
        raise FrameError(f"{len(payload)} bytes of pixels", f"{wanted}, as {dtype} {shape} has",
                         "send C-order bytes of exactly the array that the header describes")
    return {"encoding": "raw", "shape": tuple(shape), "dtype": dtype}


def _check_pixels(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.pixels:
        raise FrameError(f"a picture of {width} x {height} pixels", f"{limits.pixels} pixels at most",
                         "scale it to the size of a camera image")


def _decompress(payload: bytes, limits: Limits, shrinkable: ShrinkFactor) -> Image:
    size_hw = parse_size_hw(payload)
    if size_hw is None:
        raise FrameError(f"{len(payload)} bytes that are no JPEG or PNG", "a whole picture", "check the sender")
    _check_pixels(*size_hw, limits)
    sides = size_hw[0] | size_hw[1]
    divisor = sides & -sides  # the largest power of two that divides both: a rest would shift the picture
    is_jpeg = payload[:2] == b"\xff\xd8"  # of other formats, OpenCV decodes all pixels first
    try:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8),
                             REDUCED[min(8, divisor, shrinkable(size_hw)) if is_jpeg else 1])
    except cv2.error as error:
        raise FrameError(f"a picture that cannot be decoded ({error.code})", "a whole picture",
                         "check the sender") from error
    if image is None:
        raise FrameError("a picture that cannot be decoded", "a whole picture", "check the sender")
    return np.asarray(image, np.uint8)


def _plane(array: NDArray[Any], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(array.reshape(array.shape[:2]), dtype)


def _time(value: object) -> float | None:
    """Unix time in seconds; None for what cannot be one."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11
    return float(value) if known else None  # type: ignore[arg-type]


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
