"""Annotated video: the camera's images with what was recognised, at a constant frame rate and true duration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from engines.errors import SinkError
from stream.frame import Frame, Image, Record
from stream.overlay import OverlayState, draw
from stream.sinks.base import Sink, output_path, sink_errors

CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
RATES = (1.0, 240.0)  # frames per second a header may claim and be believed
USUAL_RATE = 30.0
MAX_SIDE = 1920
MIN_SIDE = 16  # codecs work in blocks of this
MAX_HOLD_S = 5.0
RESERVE_BYTES = 32_000_000


class AnnotatedVideo(Sink):
    """Writes the images with their overlay so that the video lasts as long as the capture did.

    A frame is shown from its `captured_at` until the next one's: on the video's constant grid an image is
    repeated over a hole and left out where two meet. A pause longer than MAX_HOLD_S is cut to that length;
    when time runs backwards the video simply goes on. The first frame sets the size (longer side at most
    MAX_SIDE, even); later frames of another shape are fitted into it with black borders.

    path: .mp4, .m4v, .mov, .mkv (MPEG-4) or .avi (Motion JPEG); it appears when the video is finished,
    until then it is NAME.part.EXT beside it. frame_rate: of the source; USUAL_RATE where unknown or absurd.
    """

    def __init__(self, path: str | Path, frame_rate: float | None = None, background: str | None = None) -> None:
        self.path = output_path(path)
        if self.path.suffix.lower() not in CODECS:
            raise SinkError(f"video {self.path}", f"a name ending in {', '.join(CODECS)}", "rename the output")
        known = frame_rate is not None and RATES[0] <= frame_rate <= RATES[1]
        self.frame_rate = round(frame_rate, 3) if frame_rate and known else USUAL_RATE  # as files can state it
        self.part = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        with sink_errors("opening", self.part):
            self.part.write_bytes(b"")
        self._state = OverlayState(background=background)
        self._writer: cv2.VideoWriter | None = None
        self._size_hw = (0, 0)
        self._shown: Image | None = None  # the image written last
        self._written = 0
        self._last_time = 0.0
        self._position_s = 0.0  # of the newest frame in the video
        self._closed = False

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        self._state.update(records, frame)
        if frame is None or self._closed:
            return
        if self._writer is None:
            self._open(frame.image_bgr)
        else:
            step = frame.captured_at - self._last_time
            self._position_s += min(step, MAX_HOLD_S) if step >= 0 else 1 / self.frame_rate
        self._last_time = frame.captured_at
        place = round(self._position_s * self.frame_rate)
        if place < self._written:
            return
        self._check_space()
        if self._shown is not None:
            for _ in range(self._written, place):
                self._put(self._shown)
        self._shown = draw(_fit(frame.image_bgr, self._size_hw), self._state)
        self._put(self._shown)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._writer is None:
            with suppress(OSError):
                self.part.unlink()
            return
        with sink_errors("finishing", self.part):
            self._writer.release()
        self._check_readable()
        with sink_errors("renaming", self.part):
            os.replace(self.part, self.path)

    def _open(self, image: Image) -> None:
        height, width = image.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width))
        self._size_hw = (_even(height * scale), _even(width * scale))
        with sink_errors("opening", self.part):
            self._writer = cv2.VideoWriter(
                str(self.part), cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()]), self.frame_rate,
                (self._size_hw[1], self._size_hw[0]))
        if not self._writer.isOpened():
            raise SinkError(f"no {self.path.suffix} video of {self._size_hw[1]}x{self._size_hw[0]} at {self.frame_rate}"
                            " frames/s", "a kind of video this OpenCV can write", "try .avi")

    def _put(self, image: Image) -> None:
        assert self._writer is not None
        with sink_errors("writing", self.part):
            self._writer.write(image)
        self._written += 1

    def _check_space(self) -> None:
        """Stops while there is still room for the video's index, without which it could not be played."""
        with sink_errors("writing", self.part):
            free = shutil.disk_usage(self.part.parent).free
        if free < RESERVE_BYTES:
            raise SinkError(f"{free / 1e6:.0f} MB free for {self.path}", f"{RESERVE_BYTES / 1e6:.0f} MB to go on",
                            "free space on the disk; the video up to here is kept")

    def _check_readable(self) -> None:
        """OpenCV says nothing when writing fails, so the finished file is opened once."""
        reader = cv2.VideoCapture(str(self.part))
        frames = max(0, int(reader.get(cv2.CAP_PROP_FRAME_COUNT))) if reader.isOpened() else 0
        reader.release()
        if frames < self._written:
            raise SinkError(f"{self.part} holds {frames} of {self._written} frames", "room for the whole video",
                            "free space on the disk; what could be saved is in that file")


def _even(side: float) -> int:
    return max(MIN_SIDE, 2 * round(side / 2))


def _fit(image: Image, size_hw: tuple[int, int]) -> Image:
    """The image at this size; another shape is fitted in with black borders."""
    height, width = image.shape[:2]
    if (height, width) == size_hw:
        return image
    scale = min(size_hw[0] / height, size_hw[1] / width)
    inner_hw = (min(size_hw[0], max(1, round(height * scale))), min(size_hw[1], max(1, round(width * scale))))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (inner_hw[1], inner_hw[0]), interpolation=kind)
    if inner_hw == size_hw:
        return np.asarray(resized, dtype=np.uint8)
    top, left = (size_hw[0] - inner_hw[0]) // 2, (size_hw[1] - inner_hw[1]) // 2
    canvas = np.zeros((*size_hw, 3), dtype=np.uint8)
    canvas[top:top + inner_hw[0], left:left + inner_hw[1]] = resized
    return canvas
