"""RTSP, HTTP and HLS through PyAV; RTSP over TCP, so packets are not lost on the way. And snapshots over HTTP."""

import math
import socket
import time
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

import av.error

from engines.decoding.images import decode_image
from engines.decoding.video import DecodedFrame, VideoReader, reason_of
from engines.errors import FrameError, SourceError
from stream.frame import Image, Picture
from stream.sources.address import mask_secrets, normalise, parse_scheme
from stream.sources.base import Policy, Source
from stream.sources.reader import Capture, LiveSource, Timeouts, Timing, connect_within
from stream.sources.video import VideoFile

TIMEOUT_S = 5.0  # to open, and between data
TIMEOUTS = Timeouts(open_s=2 * TIMEOUT_S + 1, give_up_s=120.0)
PACED = frozenset(("hls", "dash"))  # formats that come in segments
TIMED = PACED | {"rtsp", "mpegts", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}  # others' are made up
SNAPSHOT_EVERY_S = 0.1
LARGEST_SNAPSHOT = 50_000_000  # bytes


def open_network(url: str, camera: str | None = None, policy: Policy = "auto",
                 timing: Timing | None = None) -> Source:
    """A network camera; or, when http answers with a video of stated length, that video as a file.
    An address that gives one image is asked for it again and again. The first connection is given TIMEOUTS.open_s; a
    camera lost later is reconnected, and given up after TIMEOUTS.give_up_s without a frame. Raises SourceError."""
    url, shown = normalise(url), mask_secrets(url)
    capture = connect_within(TIMEOUTS.open_s, lambda: _connect(url, shown), shown)
    if isinstance(capture, StreamCapture) and parse_scheme(url) in ("http", "https") and capture.reader.seconds > 0:
        return VideoFile(shown, camera or shown, reader=capture.reader)
    source = LiveSource(lambda: _connect(url, shown), shown, camera or shown, TIMEOUTS, policy, timing, capture)
    if isinstance(capture, SnapshotCapture):
        source.notes.append(f"{shown} gives single images: it is asked for one {1 / SNAPSHOT_EVERY_S:g} times a second")
    return source


def _connect(url: str, shown: str) -> Capture:
    """Raises SourceError, with the cause as far as it can be known."""
    http = parse_scheme(url) in ("http", "https")
    try:
        options = {} if http else {"rtsp_flags": "prefer_tcp"}
        reader = VideoReader(url, options=options, timeout_s=(TIMEOUT_S, TIMEOUT_S), live=True, name=shown)
        if not reader.format.endswith("_pipe"):  # as formats of single images are called
            return StreamCapture(reader)
        reader.close()
        return SnapshotCapture(url)
    except (av.error.FFmpegError, SourceError, FrameError, OSError) as error:
        got, do = _explain(url, error)
        if http and not do:
            try:
                return SnapshotCapture(url)
            except (FrameError, OSError) as also:
                got, do = _explain(url, also)
        raise SourceError(f"{shown} cannot be opened: {got}", "a camera or stream that gives frames",
                          do or "check the address, and that it is switched on and reachable") from error


def _explain(url: str, error: Exception) -> tuple[str, str]:
    """What went wrong, and what to do; "" where that is unknown."""
    host = urlsplit(url).hostname or ""
    code = error.code if isinstance(error, urllib.error.HTTPError) else next(
        (code for kind, code in _HTTP_CODES if isinstance(error, kind)), 0)
    reason = getattr(error, "reason", error)
    if code in (401, 403):
        return f"it refuses the user or the password ({code})", "write them into the address: //user:password@host"
    if code == 404:
        return "it knows no such path (404)", "check the path in the address"
    if code:
        return f"it answers with an error ({code})", "check its own log, or try again later"
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused: nothing listens at that port", "check the port, and that it is switched on"
    if isinstance(reason, (TimeoutError, av.error.ExitError)):
        return f"no answer within {TIMEOUT_S:g} s", "check the address, and that it is switched on and reachable"
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"no host of the name {host}", "check the spelling of the address"
    if isinstance(error, FrameError):
        return error.got, "give the address of a stream or an image"
    return reason_of(error), ""


_HTTP_CODES = ((av.error.HTTPUnauthorizedError, 401), (av.error.HTTPForbiddenError, 403),
               (av.error.HTTPNotFoundError, 404), (av.error.HTTPError, 500))


class StreamCapture(Capture):
    """A stream as a `Capture`."""

    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader
        self.size_hw, self.fps = reader.size_hw, reader.rate or None
        self.paced = reader.format in PACED
        self._frames = reader.decoded()
        self._frame: DecodedFrame | None = None

    def grab(self) -> float | None:
        try:
            self._frame = next(self._frames)
        except (StopIteration, av.error.FFmpegError):
            return None
        return self._frame.stated_s if self._frame is not None and self.reader.format in TIMED else math.nan

    def retrieve(self) -> Picture | None:
        return None if self._frame is None else self._frame.picture

    def release(self) -> None:
        self.reader.close()


class SnapshotCapture(Capture):
    """An address that gives one image, as a `Capture`: it is requested again for each frame.
    Raises OSError where there is no answer, FrameError where it is no image."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if parts.username is not None:
            passwords.add_password(None, self._url, unquote(parts.username), unquote(parts.password or ""))
        self._opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords),
                                                   urllib.request.HTTPDigestAuthHandler(passwords))
        self._asked_s = -math.inf
        self._image: Image | None = self._request()
        self.size_hw = self._image.shape[0], self._image.shape[1]

    def _request(self) -> Image:
        with self._opener.open(self._url, timeout=TIMEOUT_S) as answer:
            data, kind = answer.read(LARGEST_SNAPSHOT), answer.headers.get_content_type()
        try:
            return decode_image(data, self._url)
        except FrameError as error:
            raise FrameError(f"it answers with {kind}, which is no video or image", error.wanted, error.do) from error

    def grab(self) -> float | None:
        time.sleep(max(self._asked_s + SNAPSHOT_EVERY_S - time.monotonic(), 0))
        self._asked_s = time.monotonic()
        try:
            self._image = self._request()
        except FrameError:
            self._image = None
        except OSError:
            return None
        return math.nan

    def retrieve(self) -> Image | None:
        return self._image

    def release(self) -> None:
        self._image = None
