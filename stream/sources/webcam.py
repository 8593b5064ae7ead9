"""Webcams, by number, through OpenCV."""

import math
from functools import partial

import cv2

from engines.decoding.images import as_bgr
from engines.decoding.silence import silence_opencv
from engines.decoding.times import RATE_RANGE
from stream.frame import Image
from stream.sources.base import Policy
from stream.sources.reader import Capture, Connect, LiveSource, Timeouts, Timing

TIMEOUTS = Timeouts(open_s=10.0, give_up_s=20.0)


class Webcam(LiveSource):
    """Webcam number `index` of this machine. Raises SourceError at once when there is none."""

    def __init__(self, index: int, camera: str | None = None, policy: Policy = "auto",
                 connect: Connect | None = None, timing: Timing | None = None) -> None:
        super().__init__(connect or partial(_open_webcam, index), f"webcam {index}", camera or str(index), TIMEOUTS,
                         policy, timing)


def _open_webcam(index: int) -> Capture | None:
    silence_opencv()
    try:
        capture = cv2.VideoCapture(index, cv2.CAP_ANY)
        return _OpenCvCapture(capture) if capture.isOpened() else None
    except cv2.error:
        return None


class _OpenCvCapture(Capture):
    """An open webcam as a `Capture`."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        height, width = capture.get(cv2.CAP_PROP_FRAME_HEIGHT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)
        self.size_hw = (int(height), int(width)) if height >= 1 and width >= 1 else None
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if RATE_RANGE[0] <= fps <= RATE_RANGE[1] else None

    def grab(self) -> float | None:
        try:
            return math.nan if self._capture.grab() else None  # drivers disagree about what they count from
        except cv2.error:
            return None

    def retrieve(self) -> Image | None:
        try:
            good, image = self._capture.retrieve()
        except cv2.error:
            return None
        return as_bgr(image) if good else None

    def release(self) -> None:
        self._capture.release()
