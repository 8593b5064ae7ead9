"""The capture seam: cv2.VideoCapture behind four calls, its errors mapped and its messages silenced."""

import math
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import cv2

from engines.errors import FrameError
from stream.frame import Image
from stream.images import as_bgr
from stream.notices import discard_writes

FPS_RANGE = (0.1, 240.0)  # a nominal rate outside is a broken header, not a camera
_stderr = threading.Lock()


class Capture(Protocol):
    """Something that gives images one by one, with the stream time of the latest."""

    @property
    def size_hw(self) -> tuple[int, int] | None: ...

    @property
    def fps(self) -> float | None: ...

    @property
    def claimed_frames(self) -> int | None: ...

    def grab(self) -> bool:
        """Takes the next image; False when there is none now (end, damage, timeout)."""

    def retrieve(self) -> Image | None:
        """The image taken by `grab`, or None when it cannot be decoded."""

    def position_s(self) -> float:
        """Stream time of the grabbed image in seconds; unreliable, may be NaN."""

    def release(self) -> None: ...


def retrieve_bgr(capture: Capture) -> Image | None:
    """The frame just grabbed, as BGR; None for one that cannot be decoded or used."""
    image = capture.retrieve()
    try:
        return None if image is None else as_bgr(image)
    except FrameError:
        return None


def silence_opencv() -> None:
    """Keeps OpenCV and FFmpeg from writing to stderr, unless the user asked them to by environment."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Discards file descriptor 2 meanwhile: libpng and libjpeg write there themselves and have no switch."""
    with _stderr:
        try:
            saved = os.dup(2)
        except OSError:  # closed already: there is nobody to disturb
            saved = None
        try:
            if saved is not None:
                discard_writes(2)
            yield
        finally:
            if saved is not None:
                os.dup2(saved, 2)
                os.close(saved)


class OpenCvCapture:
    """A `Capture` over cv2.VideoCapture. `opened` is False when there is nothing to read."""

    def __init__(self, target: str | int, backend: int, options: Iterable[tuple[int, int]] = ()) -> None:
        silence_opencv()
        flat = [number for pair in options for number in pair]
        try:
            self._capture = cv2.VideoCapture(target, backend, flat)
            self.opened = self._capture.isOpened()
        except cv2.error:
            self.opened = False

    def _get(self, prop: int) -> float:
        try:
            return float(self._capture.get(prop))
        except cv2.error:
            return math.nan

    @property
    def size_hw(self) -> tuple[int, int] | None:
        height, width = self._get(cv2.CAP_PROP_FRAME_HEIGHT), self._get(cv2.CAP_PROP_FRAME_WIDTH)
        return (int(height), int(width)) if height >= 1 and width >= 1 else None

    @property
    def fps(self) -> float | None:
        fps = self._get(cv2.CAP_PROP_FPS)
        return fps if FPS_RANGE[0] <= fps <= FPS_RANGE[1] else None

    @property
    def claimed_frames(self) -> int | None:
        count = self._get(cv2.CAP_PROP_FRAME_COUNT)
        return int(count) if 1 <= count < 1e9 else None

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
        return self._get(cv2.CAP_PROP_POS_MSEC) / 1000

    def release(self) -> None:
        self._capture.release()
