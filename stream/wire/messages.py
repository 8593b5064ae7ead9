"""The messages of ZeroMQ cameras, and the replies to them.

    imagezmq    {"msg": ..., "dtype": ..., "shape": ...} + pixels, or {"msg": ...} + a JPEG
    NetGear     {"terminate_flag": false, "compression": ..., "message": ..., ...} + pixels or a JPEG
    gatestream  {"gatestream": 1, "camera": ..., ...} + pixels, a JPEG or a PNG; see `encode_header`

A message is a JSON header and a payload. Nothing here knows a socket: `parse` checks what a header claims against the
payload's length before anything is allocated, and `decode` decodes."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

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
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
           8: cv2.IMREAD_REDUCED_COLOR_8}
SEND = "send as imagezmq, NetGear or gatestream camera do"
ShrinkFactor = Callable[[tuple[int, int]], int]  # of a JPEG's [H, W]: by how much it may be smaller than it was sent


class PixelFormat(NamedTuple):
    """How raw pixels are laid out."""

    channels: int = 1
    bits: int = 8  # of each value; more than 8 are in two bytes, where they are not packed
    packing: Literal["", "p", "packed"] = ""  # GenICam's: a stream of bits; GigE Vision's: two values in three bytes
    bayer: int | None = None  # OpenCV's conversion
    rgb: bool = False


# By GenICam's names (PFNC, and those of GigE Vision and Basler before it), in lower case and without underscores.
_BAYER = {"mono": None, "bayerrg": cv2.COLOR_BayerRGGB2BGR, "bayergr": cv2.COLOR_BayerGRBG2BGR,
          "bayergb": cv2.COLOR_BayerGBRG2BGR, "bayerbg": cv2.COLOR_BayerBGGR2BGR}
PIXEL_FORMATS = {f"{order}{bits}{packed}": PixelFormat(len(order), bits, rgb=order.startswith("rgb"))
                 for order in ("bgr", "rgb", "bgra", "rgba") for bits in (8, 10, 12, 16) for packed in ("", "packed")}
PIXEL_FORMATS |= {f"{name}{bits}": PixelFormat(1, bits, "", code)
                  for name, code in _BAYER.items() for bits in (8, 10, 12, 14, 16)}
PIXEL_FORMATS |= {f"{name}{bits}{packing}": PixelFormat(1, bits, packing, code) for name, code in _BAYER.items()
                  for bits in (10, 12) for packing in get_args(Literal["p", "packed"])}


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
    pixel_format: str | None = None  # of PIXEL_FORMATS; None: BGR, grey or BGRA by the array's shape
    stride: int = 0  # bytes from one row to the next; 0: no more than a row has
    captured_at: float | None = None  # Unix time
    sequence: int | None = None
    end: bool = False  # the camera's stream is over
    alive: bool = False  # a sign of life of a process of the service's own, without a picture
    port: str | None = None  # of a NetGear sender among several, which the reply has to name
    bad_name: str | None = None  # text where the name would be, which is none
    jpeg: bytes = b""  # of the raw picture, where its sender made one, too

    @property
    def small(self) -> "Message":
        """The same picture as a JPEG, if there is one: to be kept and shown."""
        return replace(self, payload=self.jpeg, encoding="jpeg", jpeg=b"") if self.jpeg else self

    @property
    def is_text(self) -> bool:
        """Whether it has no picture: some imagezmq senders send words with a payload of one byte."""
        return self.protocol == "imagezmq" and self.encoding != "raw" and len(self.payload) < 16


def encode_header(camera: str, image_shape: Sequence[int] | None = None, *, encoding: Encoding = "jpeg",
                  dtype: str = "uint8", pixel_format: str | None = None, stride: int | None = None,
                  captured_at: float | None = None, sequence: int | None = None, end: bool = False,
                  alive: bool = False) -> bytes:
    """The header of our own form; the second part of the message is the payload: C-order bytes, a JPEG or a PNG.
    image_shape, dtype, pixel_format, stride (bytes from row to row): of raw pixels only."""
    header: dict[str, Any] = {"gatestream": VERSION, "camera": camera, "encoding": encoding}
    if encoding == "raw":
        header |= {"shape": list(image_shape or ()), "dtype": dtype, "pixel_format": pixel_format,
                   "stride": stride}
    header |= {"captured_at": captured_at, "sequence": sequence, "end": end or None,
               "alive": alive or None}
    return json.dumps({key: value for key, value in header.items() if value is not None}).encode()


def parse(parts: Sequence[bytes], limits: Limits) -> Message:
    """Parses the parts of a message. Raises FrameError."""
    own = len(parts) == 3 and parts[0].startswith(b'{"gatestream"')  # with a JPEG of the raw picture
    if not own and len(parts) not in (1, 2):
        raise FrameError(f"a message of {len(parts)} parts", "a JSON header and a payload", SEND)
    header = _header(parts[0])
    payload = parts[1] if len(parts) > 1 else b""
    if sum(map(len, parts[1:])) > limits.payload_bytes:
        raise FrameError(f"a payload of {len(payload)} bytes", f"{limits.payload_bytes} at most",
                         "compress the pictures, or allow larger messages")
    if "gatestream" in header:
        message = _ours(header, payload, limits)
        return replace(message, jpeg=parts[2]) if own and message.encoding == "raw" else message
    if "terminate_flag" in header:
        return _netgear(header, payload, limits)
    if "msg" in header and len(parts) == 2:
        array = _array(header, payload, limits) if "shape" in header or "dtype" in header else {}
        return Message("imagezmq", payload=payload, **array, **_facts(header["msg"]))
    raise FrameError(f"a header with {', '.join(map(repr, list(header)[:6])) or 'nothing'} in it",
                     "one of imagezmq, NetGear or gatestream", "send as one of these does")


def encode_reply(message: Message | None, prediction: bytes | None = None, error: str | None = None) -> bytes:
    """The reply to a waiting sender: its camera's latest prediction (JSON), if there is one, or the error.
    One form serves all of NetGear's modes; imagezmq passes any bytes on."""
    if message is not None and message.protocol == "netgear":
        data = json.dumps({"error": error}).encode() if error else prediction or b"null"
        port, kind = (message.port or "0").encode(), b"NoneType" if data == b"null" else b"dict"
        return b'{"port": "%s", "return_type": "%s", "data": %s}' % (port, kind, data)
    return f"ERROR: {error}".encode() if error else prediction or b"OK"


def encode_wish(next_at: float | None, limits: Limits, between: bool) -> bytes:
    """The reply to a process of the service's own: when its camera's next frame is wanted (its times; None: any), how
    large it may be, and whether JPEGs of those between are wanted, too, for videos."""
    return json.dumps({"next_at": next_at, "most_bytes": limits.payload_bytes, "between": between}).encode()


def decode(message: Message, limits: Limits, colour: Literal["BGR", "RGB"] = "BGR",
           shrinkable: ShrinkFactor = lambda _: 1) -> Image:
    """Decodes the picture of a message to BGR uint8 [H, W, 3]. Raises FrameError.
    colour: of raw arrays without a pixel format; shrinkable: 1, 2, 4 or 8, a smaller picture is decoded faster."""
    if message.encoding != "raw":
        return _decompress(message.payload, limits, shrinkable)
    form = PIXEL_FORMATS[message.pixel_format] if message.pixel_format else None
    array = _pixels(message, form)
    if form is None:
        reverse = colour == "RGB" and array.ndim == 3 and array.shape[2] > 1
    else:
        reverse = form.rgb
        if form.bits > 8 and not form.packing:
            array = np.minimum(array >> (form.bits - 8), 255).astype(np.uint8)
        if form.bayer is not None:
            array = np.asarray(cv2.cvtColor(np.ascontiguousarray(array.reshape(array.shape[:2])), form.bayer))
    image = as_bgr(array)
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
    facts["alive"] = header.get("alive") is True and not payload
    if facts["alive"] or (facts["end"] and not payload):
        return Message("gatestream", payload=b"", **facts)
    if encoding in ("jpeg", "png"):
        return Message("gatestream", payload=payload, encoding=encoding, **facts)
    if encoding != "raw":
        raise FrameError(f"encoding {_short(encoding)}", "jpeg, png or raw", "choose one of them")
    name, stride = header.get("pixel_format"), header.get("stride", 0)
    if name is None:
        return Message("gatestream", payload=payload, **_array(header, payload, limits, stride=stride), **facts)
    name = name.lower().replace("_", "") if isinstance(name, str) else ""
    if name not in PIXEL_FORMATS:
        raise FrameError(f"pixel format {_short(header['pixel_format'])}",
                         "one of GenICam's: Mono, BayerRG, GR, GB, BG, RGB, BGR, RGBa or BGRa, of 8 to 16 bits",
                         "set the camera to one of these, or convert the pictures")
    form = PIXEL_FORMATS[name]
    wanted = "uint16" if form.bits > 8 and not form.packing else "uint8"
    header = {"dtype": wanted} | header | ({"dtype": wanted} if form.packing else {})
    if form.channels > 1 and isinstance(header.get("shape"), list) and len(header["shape"]) == 2:
        header["shape"] = [*header["shape"], form.channels]
    array = _array(header, payload, limits, form, stride)
    channels = array["shape"][2] if len(array["shape"]) == 3 else 1
    if (array["dtype"], channels) != (wanted, form.channels):
        raise FrameError(f"{array['dtype']} {list(array['shape'])} as {header['pixel_format']}",
                         f"{wanted} of {form.channels} channels", "name the pixel format that the array has")
    return Message("gatestream", payload=payload, pixel_format=name, **array, **facts)


def _netgear(header: dict[str, Any], payload: bytes, limits: Limits) -> Message:
    port = header.get("port")
    facts = _facts(header.get("message"))
    facts["port"] = str(port) if re.fullmatch(r"\d{1,5}", str(port)) else None
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
    facts: dict[str, Any] = {}
    if isinstance(text, dict):
        facts = {"captured_at": _time(text.get("captured_at")), "sequence": _number(text.get("sequence"))}
        text = text.get("camera")
    name = parse_camera_name(text)
    return facts | {"name": name, "bad_name": _short(text) if name is None and isinstance(text, str) and text else None}


def _array(header: dict[str, Any], payload: bytes, limits: Limits, form: PixelFormat | None = None,
           stride: object = 0) -> dict[str, Any]:
    """Encoding, shape, type and stride of the raw array that the payload is."""
    dtype, shape = header.get("dtype"), header.get("shape")
    if dtype not in DTYPES:
        raise FrameError(f"pixels of type {_short(dtype)}", f"one of {', '.join(DTYPES)}", "convert the pictures")
    if (not isinstance(shape, list) or len(shape) not in (2, 3)
            or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape)
            or (len(shape) == 3 and shape[2] not in (1, 3, 4))):
        raise FrameError(f"an array of shape {_short(shape)}", "[H, W], or [H, W, C] of 1, 3 or 4 channels",
                         "send one picture at a time, channels last")
    _check_pixels(shape[0], shape[1], limits)
    row = _row_bytes(shape[1:], dtype, form)
    wanted = full = _row_bytes([shape[0] * shape[1], *shape[2:]], dtype, form)
    if stride:
        if not isinstance(stride, int) or not row <= stride <= limits.payload_bytes:
            raise FrameError(f"a stride of {_short(stride)}", f"{row} bytes or more, as a row of {shape} has",
                             "send the bytes from one row to the next, or leave it out")
        wanted, full = stride * (shape[0] - 1) + row, stride * shape[0]
    if len(payload) not in (wanted, full):
        raise FrameError(f"{len(payload)} bytes of pixels", f"{wanted}, as {dtype} {shape} has",
                         "send C-order bytes of exactly the array that the header describes")
    return {"encoding": "raw", "shape": tuple(shape), "dtype": dtype, "stride": stride or 0}


def _row_bytes(shape: Sequence[int], dtype: str, form: PixelFormat | None) -> int:
    """Bytes of values side by side."""
    if form is None or not form.packing:
        return math.prod(shape) * np.dtype(dtype).itemsize
    return -(-math.prod(shape) * (form.bits if form.packing == "p" else 12) // 8)


def _pixels(message: Message, form: PixelFormat | None) -> NDArray[Any]:
    """The array of a raw picture, without what is between its rows; packed values as the eight highest bits of each."""
    raw, shape = np.frombuffer(message.payload, np.uint8), message.shape
    if message.stride:
        rows = np.zeros((shape[0], message.stride), np.uint8)
        rows.reshape(-1)[:len(raw)] = raw
        rows = rows[:, :_row_bytes(shape[1:], message.dtype, form)]
    else:
        rows = raw[None]
    if form is None or not form.packing:
        return np.ascontiguousarray(rows).reshape(-1).view(message.dtype).reshape(shape)
    value = np.arange(math.prod(shape) // len(rows))
    if form.packing == "packed":  # bits 4 to 11 of two values, with their lower ones in a byte between them
        return rows[:, value // 2 * 3 + value % 2 * 2].reshape(shape)
    bit = value * form.bits + form.bits - 8  # at which the highest eight begin
    pairs = np.pad(rows, ((0, 0), (0, 1))).astype(np.uint16)
    return ((pairs[:, bit // 8] | pairs[:, bit // 8 + 1] << 8) >> (bit % 8)).astype(np.uint8).reshape(shape)


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


def _time(value: object) -> float | None:
    """Unix time in seconds; None for what cannot be one."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11
    return float(value) if known else None  # type: ignore[arg-type]


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
