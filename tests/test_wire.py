"""What ZeroMQ cameras send: every form is understood, everything else is refused by name and costs nothing."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import contract
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import FrameError
from engines.model.preprocess import prepare, shrinkable
from stream.wire.messages import HEADER_BYTES, Limits, Message, decode, encode_header, encode_reply, parse

LIMITS = Limits(payload_bytes=1_000_000, pixels=100_000)
IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
SMOOTH = cv2.GaussianBlur(IMAGE, (0, 0), 3)
JPEG = cv2.imencode(".jpg", SMOOTH)[1].tobytes()
PNG = cv2.imencode(".png", IMAGE)[1].tobytes()


def raw(array: np.ndarray[Any, Any], **more: Any) -> list[bytes]:
    header = {"dtype": str(array.dtype), "shape": list(array.shape), **more}
    return [json.dumps(header).encode(), array.tobytes()]


def imagezmq(array: np.ndarray[Any, Any], msg: Any = "bench") -> list[bytes]:
    return raw(array, msg=msg)


def netgear(**changes: Any) -> bytes:
    header = {"terminate_flag": False, "compression": {"dct": True, "ups": False, "colorspace": "BGR"},
              "message": None, "pattern": "1", "dtype": "", "shape": "", **changes}
    return json.dumps(header).encode()


def ours(array: np.ndarray[Any, Any], pixel_format: str | None = None) -> list[bytes]:
    return [encode_header("bench", array.shape, encoding="raw", dtype=str(array.dtype), pixel_format=pixel_format),
            array.tobytes()]


@pytest.mark.parametrize(("parts", "expected"), [
    (imagezmq(IMAGE), IMAGE),
    (imagezmq(IMAGE[..., 0]), np.repeat(IMAGE[..., :1], 3, axis=2)),
    (imagezmq((IMAGE / 255).astype(np.float32)), IMAGE),
    (imagezmq(IMAGE.astype(np.uint16) * 257), IMAGE),
    (raw(IMAGE, terminate_flag=False, compression=False, message=None, pattern="1"), IMAGE),
    (ours(IMAGE), IMAGE),
    (ours(IMAGE, "bgr8"), IMAGE),
    (ours(IMAGE, "rgb8"), IMAGE[..., ::-1]),
    (ours(np.dstack([IMAGE, IMAGE[..., :1]]), "rgba8"), IMAGE[..., ::-1]),
    (ours(IMAGE[..., 0], "mono8"), np.repeat(IMAGE[..., :1], 3, axis=2)),
    (ours(IMAGE[..., 0].astype(np.uint16) << 2, "mono10"), np.repeat(IMAGE[..., :1], 3, axis=2)),
    (ours(IMAGE[..., 0].astype(np.uint16) << 4, "mono12"), np.repeat(IMAGE[..., :1], 3, axis=2)),
    (ours(IMAGE[..., 0].astype(np.uint16) << 8, "mono16"), np.repeat(IMAGE[..., :1], 3, axis=2)),
    ([encode_header("bench", encoding="png"), PNG], IMAGE),
    ([b'{"msg": "bench"}', PNG], IMAGE),
])
def test_every_form_gives_the_picture(parts: list[bytes], expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_array_equal(decode(parse(parts, LIMITS), LIMITS), expected)


def packed(values: np.ndarray[Any, Any], bits: int, packing: str) -> bytes:
    """Values of so many bits, one after the other: from the lowest bit on (p), or two in three bytes (Packed)."""
    flat = values.reshape(-1).astype(int)
    if packing == "p":
        stream = sum(int(value) << (bits * k) for k, value in enumerate(flat))
        return stream.to_bytes(-(-bits * len(flat) // 8), "little")
    low = bits - 8
    return b"".join(bytes([one >> low, one % (1 << low) | (other % (1 << low)) << 4, other >> low])
                    for one, other in flat.reshape(-1, 2))


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("packing", ["p", "Packed"])
def test_packed_pixels(packing: str, bits: int, pad: int) -> None:
    values = np.random.default_rng(1).integers(0, 1 << bits, (12, 16))
    rows = [packed(row, bits, packing) for row in values]
    header = {"gatestream": 1, "camera": "bench", "encoding": "raw", "shape": [12, 16],
              "pixel_format": f"Mono{bits}{packing}", **({"stride": len(rows[0]) + pad} if pad else {})}
    body = (bytes(pad)).join(rows)
    expected = np.repeat((values >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=2)
    for payload in (body, body + bytes(pad)):
        np.testing.assert_array_equal(decode(parse([json.dumps(header).encode(), payload], LIMITS), LIMITS), expected)
    with pytest.raises(FrameError, match="bytes of pixels"):
        parse([json.dumps(header).encode(), body[:-1]], LIMITS)


@pytest.mark.parametrize("name", ["BayerRG12p", "BayerRG12Packed", "BayerRG10p", "BayerRG12", "BayerRG16", "BayerRG8"])
def test_bayer_patterns_of_every_depth_and_packing(name: str) -> None:
    bits = int("".join(filter(str.isdigit, name)))
    tile = np.array([[200, 90], [90, 40]]) << (bits - 8)  # red, green; green, blue
    values = np.tile(tile, (6, 8))
    packing = name.partition(str(bits))[2]
    payload = (packed(values, bits, packing) if packing else
               values.astype(np.uint16 if bits > 8 else np.uint8).tobytes())
    header = encode_header("bench", values.shape, encoding="raw", pixel_format=name,
                           dtype="uint16" if bits > 8 else "uint8")
    image = decode(parse([header, payload], LIMITS), LIMITS)
    assert image[4:8, 4:12].reshape(-1, 3).tolist() == [[40, 90, 200]] * 32


@pytest.mark.parametrize(("name", "expected"), [
    ("RGB8Packed", IMAGE[..., ::-1]), ("BGR8Packed", IMAGE), ("RGB8", IMAGE[..., ::-1]), ("bgr8", IMAGE)])
@pytest.mark.parametrize("pad", [0, 7])
def test_colours_by_genicams_names_and_rows_with_a_stride(name: str, pad: int,
                                                          expected: np.ndarray[Any, Any]) -> None:
    rows = np.pad(IMAGE.reshape(12, -1), ((0, 0), (0, pad)))
    header = encode_header("bench", IMAGE.shape, encoding="raw", pixel_format=name, stride=rows.shape[1])
    short = {"gatestream": 1, "camera": "bench", "encoding": "raw", "shape": [12, 16], "pixel_format": name,
             "stride": rows.shape[1]}  # the format says the rest
    for said in (header, json.dumps(short).encode()):
        np.testing.assert_array_equal(decode(parse([said, rows.tobytes()], LIMITS), LIMITS), expected)
    wide = {**short, "pixel_format": name.replace("8", "16"), "stride": None}
    payload = (IMAGE.astype(np.uint16) * 257).tobytes()
    np.testing.assert_array_equal(decode(parse([json.dumps(wide).encode(), payload], LIMITS), LIMITS), expected)


@pytest.mark.parametrize("parts", [[b'{"msg": "bench"}', JPEG], [netgear(message="bench"), JPEG],
                                   [encode_header("bench"), JPEG]])
def test_jpegs_of_every_protocol(parts: list[bytes]) -> None:
    message = parse(parts, LIMITS)
    assert message.name == "bench"
    assert np.abs(decode(message, LIMITS).astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize("pattern", ["rg", "gr", "gb", "bg"])
def test_bayer_patterns_give_back_even_colours(pattern: str) -> None:
    blue, green, red = 40, 90, 200
    first = {"r": red, "g": green, "b": blue}
    second_row = {"rg": "gb", "gr": "bg", "gb": "rg", "bg": "gr"}[pattern]
    tile = np.array([[first[c] for c in pattern], [first[c] for c in second_row]], np.uint8)
    image = decode(parse(ours(np.tile(tile, (8, 8)), f"bayer_{pattern}8"), LIMITS), LIMITS)
    assert image[4:12, 4:12].reshape(-1, 3).tolist() == [[blue, green, red]] * 64


def test_the_colour_order_is_the_cameras_where_the_message_is_silent() -> None:
    message = parse(imagezmq(IMAGE), LIMITS)
    np.testing.assert_array_equal(decode(message, LIMITS, "RGB"), IMAGE[..., ::-1])


@pytest.mark.parametrize(("told", "name", "captured_at", "sequence"), [
    ("bench", "bench", None, None), (" bench ", "bench", None, None), (1732.5, None, None, None), (7, None, None, None),
    (None, None, None, None), (["bench", 1], None, None, None), ("a\nb", None, None, None),
    ("x" * 65, None, None, None),
    ({"camera": "bench", "captured_at": 1732.5, "sequence": 3}, "bench", 1732.5, 3),
    ({"captured_at": "soon", "sequence": -1}, None, None, None),
    ({"camera": "bench", "captured_at": 1e300, "sequence": True}, "bench", None, None),
])
def test_what_a_message_says_of_its_camera(told: Any, name: str | None, captured_at: float | None,
                                           sequence: int | None) -> None:
    for message in (parse(imagezmq(IMAGE, told), LIMITS), parse([netgear(message=told), JPEG], LIMITS)):
        assert (message.name, message.captured_at, message.sequence) == (name, captured_at, sequence)


def test_ends_and_words() -> None:
    assert parse([b'{"terminate_flag": true, "port": 5566}'], LIMITS).end
    assert parse([b'{"terminate_flag": true, "port": 5566}'], LIMITS).port == "5566"
    assert parse([encode_header("bench", end=True), b""], LIMITS).end
    assert parse([b'{"msg": "only words"}', b"0"], LIMITS).is_text
    assert not parse([b'{"msg": "bench"}', JPEG], LIMITS).is_text


@pytest.mark.parametrize(("parts", "says"), [
    ([], "0 parts"), ([b"{}"] * 3, "3 parts"), ([b"{}"], "nothing in it"), ([b'{"msg": 1}'], "'msg'"),
    ([b"hello", JPEG], "no JSON"), ([b"\xff\xfe", JPEG], "no JSON"), ([b"[1]", JPEG], "is list"),
    ([b"[" * 60_000, JPEG], "no JSON"), ([b'{"a": ' + b"9" * 60_000 + b"}", JPEG], "no JSON"),
    ([b" " * (HEADER_BYTES + 1), JPEG], "a header of 65537 bytes"),
    ([b'{"msg": "x"}', bytes(1_000_001)], "a payload of 1000001 bytes"),
    (raw(IMAGE, msg="x", dtype="object"), "type 'object'"), (raw(IMAGE, msg="x", dtype="<U9"), "type '<U9'"),
    (raw(IMAGE, msg="x", dtype=["uint8"]), "type \\['uint8'\\]"),
    (raw(IMAGE, msg="x", shape=[-12, -16, 3]), "shape"), (raw(IMAGE, msg="x", shape=[12.0, 16, 3]), "shape"),
    (raw(IMAGE, msg="x", shape=[True, 16, 3]), "shape"), (raw(IMAGE, msg="x", shape=[1 << 40, 1 << 40]), "pixels"),
    (raw(IMAGE, msg="x", shape=[12, 16, 2]), "shape"), (raw(IMAGE, msg="x", shape="(12,)"), "shape"),
    ([imagezmq(IMAGE)[0], b""], "0 bytes of pixels"),
    (raw(IMAGE, msg="x", shape=[12, 17, 3]), "576 bytes of pixels; wanted 612"),
    ([netgear(compression="zlib"), JPEG], "compression 'zlib'"),
    ([netgear(compression={"colorspace": "CMYK"}), JPEG], "CMYK"),
    ([b'{"gatestream": 2, "camera": "x"}', JPEG], "version 2"), ([b'{"gatestream": 1}', JPEG], "called None"),
    ([b'{"gatestream": 1, "camera": "x", "encoding": "gif"}', JPEG], "encoding 'gif'"),
    (ours(IMAGE, "yuv422"), "pixel format 'yuv422'"), (ours(IMAGE, "mono8"), "uint8 \\[12, 16, 3\\] as mono8"),
    (ours(IMAGE[..., 0], "mono12"), "wanted uint16"), (ours(IMAGE, "Mono12p"), "288 bytes|576 bytes|channels"),
    *[([encode_header("bench", IMAGE.shape, encoding="raw", stride=stride), IMAGE.tobytes()], says)  # type: ignore
      for stride, says in [(47, "a stride of 47"), (-48, "a stride of -48"), ("48", "a stride of '48'"),
                           (1 << 60, "a stride of"), (49, "576 bytes of pixels")]],
])
def test_what_is_refused(parts: list[bytes], says: str) -> None:
    with pytest.raises(FrameError, match=says):
        parse(parts, LIMITS)


def claiming(width: int, height: int) -> bytes:
    """A JPEG whose header claims this size."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + JPEG[at + 4:]


@pytest.mark.parametrize(("payload", "says"), [
    (b"", "0 bytes"), (b"0" * 200, "no JPEG"), (JPEG[:20], "no JPEG"), (claiming(65_000, 65_000), "65000 x 65000"),
    (b"\x89PNG\r\n\x1a\n" + bytes(60), "cannot be decoded"),
    (b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\xff" * 20, "pixels"),
])
def test_pictures_that_are_none(payload: bytes, says: str) -> None:
    message = parse([encode_header("bench"), payload], LIMITS)
    with pytest.raises(FrameError, match=says):
        decode(message, LIMITS)


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32), which=st.integers(0, 3), cuts=st.integers(1, 6))
def test_mutated_messages_are_pictures_or_refused(seed: int, which: int, cuts: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [imagezmq(IMAGE), [netgear(), JPEG], [encode_header("bench"), JPEG],
             ours(IMAGE[..., 0], "bayer_rg8")][which]
    spoilt = []
    for part in parts:
        changed = bytearray(part)
        for _ in range(cuts):
            at = int(rng.integers(len(changed) + 1))
            changed[at:at + int(rng.integers(4))] = rng.bytes(int(rng.integers(4)))
        spoilt.append(bytes(changed))
    try:
        image = decode(parse(spoilt, LIMITS), LIMITS)
    except FrameError:
        return
    assert image.ndim == 3
    assert image.shape[0] * image.shape[1] <= LIMITS.pixels


def test_answers_suit_whoever_asked() -> None:
    plain = parse(imagezmq(IMAGE), LIMITS)
    net = Message("netgear", None, b"", port="5566")
    said = {"type": "prediction", "camera": "bench"}
    assert encode_reply(plain) == b"OK"
    assert json.loads(encode_reply(plain, json.dumps(said).encode())) == said
    assert json.loads(encode_reply(net)) == {"port": "5566", "return_type": "NoneType", "data": None}
    assert json.loads(encode_reply(net, json.dumps(said).encode())) == {"port": "5566", "return_type": "dict",
                                                                        "data": said}
    assert encode_reply(None, error="a header that is no JSON").startswith(b"ERROR: a header")
    assert json.loads(encode_reply(net, json.dumps(said).encode(), "too fast"))["data"] == {"error": "too fast"}


@pytest.mark.parametrize(("size_hw", "by", "taken"), [
    ((480, 640), 2, 2), ((640, 480), 2, 2), ((1080, 1920), 4, 4), ((1280, 1600), 8, 8),
    ((750, 1000), 4, 2), ((751, 1000), 4, 1), ((286, 400), 1, 1), ((72, 96), 1, 1)])
def test_a_jpeg_is_decoded_no_larger_than_the_network_can_tell(size_hw: tuple[int, int], by: int, taken: int) -> None:
    to = contract(cover_hw=(72, 96), input_size_hw=(72, 96))
    assert shrinkable(size_hw, to) == by
    assert shrinkable(size_hw, to.model_copy(update={"resize_filter": "bilinear"})) == 1  # it would not have averaged
    noise = np.random.default_rng(1).integers(0, 256, (size_hw[0] // 8, size_hw[1] // 8, 3), np.uint8)
    picture = cv2.GaussianBlur(cv2.resize(noise, size_hw[::-1]), (0, 0), 8)
    limits = Limits(32_000_000, 40_000_000)
    for form in (".jpg", ".png"):
        message = Message("gatestream", "bench", cv2.imencode(form, picture)[1].tobytes())
        whole, small = decode(message, limits), decode(message, limits, shrinkable=lambda hw: shrinkable(hw, to))
        assert whole.shape[:2] == size_hw
        assert small.shape[0] == size_hw[0] // (taken if form == ".jpg" else 1)
        off = np.abs(prepare(whole, to).astype(int) - prepare(small, to))
        assert off.mean() < 0.5
        assert off.max() <= 3
