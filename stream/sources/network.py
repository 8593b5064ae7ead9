"""RTSP and HTTP through FFmpeg. RTSP goes over TCP (OpenCV's default), so packets are not lost on the way."""

import cv2

from stream.sources.address import mask_secrets, parse_scheme
from stream.sources.base import Policy, Source
from stream.sources.capture import Capture, OpenCvCapture
from stream.sources.reader import LiveSource, Timeouts, Timing, connect_within
from stream.sources.video import VideoFile

OPEN_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0
TIMEOUTS = Timeouts(open_s=OPEN_TIMEOUT_S + 2, give_up_s=120.0)


def open_network(url: str, camera: str | None = None, policy: Policy = "auto",
                 timing: Timing | None = None) -> Source:
    """A network camera; or, when http answers with a video of stated length, that video as a file.

    The first connection is given TIMEOUTS.open_s; a camera lost later is reconnected, and given up after
    TIMEOUTS.give_up_s without a frame. Raises SourceError.
    """
    def connect() -> Capture | None:
        capture = OpenCvCapture(url, cv2.CAP_FFMPEG, [
            (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(OPEN_TIMEOUT_S * 1000)),
            (cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(READ_TIMEOUT_S * 1000))])
        return capture if capture.opened else None

    name = camera or mask_secrets(url)
    if parse_scheme(url) in ("http", "https"):
        capture = connect_within(TIMEOUTS.open_s, connect, mask_secrets(url))
        if capture.claimed_frames is not None:
            return VideoFile(mask_secrets(url), name, capture=capture)
        return LiveSource(connect, mask_secrets(url), name, TIMEOUTS, policy, timing, capture)
    return LiveSource(connect, mask_secrets(url), name, TIMEOUTS, policy, timing)
