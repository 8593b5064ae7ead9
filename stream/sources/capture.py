"""The capture seam: a webcam through OpenCV, or a stream through PyAV, behind the same few calls."""

import math
from typing import Protocol

import cv2

from engines.decoding.images import as_bgr
from engines.decoding.silence import silence_opencv
from engines.decoding.times import RATE_RANGE
from engines.errors import FrameError
from stream.frame import Image, Picture


class Capture(Protocol):
    """Something that gives images one by one."""

    @property
    def size_hw(self) -> tuple[int, int] | None: ...

    @property
    def fps(self) -> float | None:
        """Nominal rate."""

    @property
    def paced(self) -> bool:
        """Whether frames come in bursts, each with its own time, and are to be given at these times."""

    def grab(self) -> bool:
        """Takes the next image; False when there is none now (end, damage, timeout)."""

    def retrieve(self) -> Picture | None:
        """The image taken by `grab`; None, or FrameError, when it cannot be decoded."""

    def position_s(self) -> float:
        """Time of the grabbed image on the stream's own clock, in seconds; NaN where it has none."""

    def release(self) -> None: ...


def retrieve_bgr(capture: Capture) -> Picture | None:
    """The frame just grabbed, as BGR or what makes it; None for one that cannot be decoded or used."""
    try:
        picture = capture.retrieve()
        return picture if picture is None or callable(picture) else as_bgr(picture)
    except FrameError:
        return None


class OpenCvCapture:
    """A webcam as a `Capture`. `opened` is False when there is nothing to read."""

    paced = False

    def __init__(self, index: int) -> None:
        silence_opencv()
        try:
            self._capture = cv2.VideoCapture(index, cv2.CAP_ANY)
            self.opened = self._capture.isOpened()
        except cv2.error:
            self.opened = False

    @property
    def size_hw(self) -> tuple[int, int] | None:
        height, width = self._get(cv2.CAP_PROP_FRAME_HEIGHT), self._get(cv2.CAP_PROP_FRAME_WIDTH)
        return (int(height), int(width)) if height >= 1 and width >= 1 else None

    @property
    def fps(self) -> float | None:
        fps = self._get(cv2.CAP_PROP_FPS)
        return fps if RATE_RANGE[0] <= fps <= RATE_RANGE[1] else None

    def _get(self, prop: int) -> float:
        try:
            return float(self._capture.get(prop))
        except cv2.error:
            return math.nan

    def grab(self) -> bool:
        try:
            return bool(self._capture.grab())
        except cv2.error:
            return False

    def retrieve(self) -> Image | None:
        try:
            good, image = self._capture.retrieve()
        except cv2.error:
            return None
        return image.astype("uint8", copy=False) if good and image is not None and image.size else None

    def position_s(self) -> float:
        return math.nan  # drivers disagree about what they count from

    def release(self) -> None:
        self._capture.release()
