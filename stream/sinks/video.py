"""Annotated video: the camera's images with what was recognised, at a constant frame rate and true duration."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import OutputContainer

from engines.errors import SinkError
from stream.frame import Frame, Image, Record
from stream.sinks.base import Sink, output_path, sink_errors
from stream.sinks.overlay import OverlayState, draw

H264 = ("libx264", "yuv420p", {"preset": "ultrafast", "crf": "21"})  # plays everywhere, browsers too
MJPEG = ("mjpeg", "yuvj420p", {"qscale": "3", "flags": "+qscale"})
KINDS = {".mp4": ("mp4", H264), ".m4v": ("mp4", H264), ".mov": ("mov", H264), ".mkv": ("matroska", H264),
         ".avi": ("avi", MJPEG)}
RATES = (1.0, 240.0)  # frames per second a header may claim and be believed
USUAL_RATE = 30.0
MAX_SIDE = 1920
MIN_SIDE = 16  # codecs work in blocks of this
MAX_HOLD_S = 5.0
RESERVE_BYTES = 32_000_000
TICKS = 1000  # a second, of the clock in `write_video`


class AnnotatedVideo(Sink):
    """Writes the images with their overlay so that the video lasts as long as the capture did.
    A frame is shown from its `captured_at` until the next one's: on the video's constant grid an image is
    repeated over a hole and left out where two meet. A pause longer than MAX_HOLD_S is cut to that length;
    when time runs backwards the video simply goes on. The first frame sets the size (longer side at most
    MAX_SIDE, even); later frames of another shape are fitted into it with black borders.

    path: .mp4, .m4v, .mov, .mkv (H.264) or .avi (Motion JPEG); it appears when the video is finished,
    until then it is NAME.part.EXT beside it. frame_rate: of the source; USUAL_RATE where unknown or absurd."""

    def __init__(self, path: str | Path, frame_rate: float | None = None, background: str | None = None) -> None:
        self.path = output_path(path)
        if self.path.suffix.lower() not in KINDS:
            raise SinkError(f"video {self.path}", f"a name ending in {', '.join(KINDS)}", "rename the output")
        known = frame_rate is not None and RATES[0] <= frame_rate <= RATES[1]
        self.frame_rate = round(frame_rate, 3) if frame_rate and known else USUAL_RATE  # as files can state it
        self.part = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        with sink_errors("opening", self.part):
            self.part.write_bytes(b"")
        self._state = OverlayState(background=background)
        self._video: OutputContainer | None = None
        self._stream: Any = None
        self._size_hw, self._written, self._closed = (0, 0), 0, False
        self._shown: Image | None = None  # the image written last
        self._last_time = self._position_s = 0.0  # capture time of the newest frame, and where it is in the video

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        self._state.update(records, frame)
        if frame is None or self._closed:
            return
        if self._video is None:
            self._open(frame.image_bgr)
        else:
            step = frame.captured_at - self._last_time
            self._position_s += min(step, MAX_HOLD_S) if step >= 0 else 1 / self.frame_rate
        self._last_time = frame.captured_at
        place = round(self._position_s * self.frame_rate)
        if place < self._written:
            return
        self._check_space()
        while self._shown is not None and self._written < place:
            self._put(self._shown)
        self._shown = _fit(draw(frame.image_bgr, self._state), self._size_hw)
        self._put(self._shown)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._video is None:
            with suppress(OSError):
                self.part.unlink()
            return
        with ffmpeg_errors("finishing", self.part), self._video:
            self._video.mux(self._stream.encode())
        with sink_errors("renaming", self.part):
            os.replace(self.part, self.path)

    def _open(self, image: Image) -> None:
        height, width = image.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width))
        self._size_hw = (_even(height * scale), _even(width * scale))
        form, (codec, pixels, options) = KINDS[self.path.suffix.lower()]
        with ffmpeg_errors("opening", self.part):
            self._video = av.open(self.part, "w", format=form)
            self._stream = self._video.add_stream(codec, Fraction(self.frame_rate).limit_denominator(1001),
                                                  options=options)
        self._stream.height, self._stream.width = self._size_hw
        self._stream.pix_fmt = pixels

    def _put(self, image: Image) -> None:
        assert self._video is not None
        picture = av.VideoFrame.from_ndarray(image, format="bgr24")
        picture.pts = self._written
        with ffmpeg_errors("writing", self.part):
            self._video.mux(self._stream.encode(picture))
        self._written += 1

    def _check_space(self) -> None:
        """Stops while there is still room for the video's index, without which it could not be played."""
        with sink_errors("writing", self.part):
            free = shutil.disk_usage(self.part.parent).free
        if free < RESERVE_BYTES:
            raise SinkError(f"{free / 1e6:.0f} MB free for {self.path}", f"{RESERVE_BYTES / 1e6:.0f} MB to go on",
                            "free space on the disk; the video up to here is kept")


def write_video(path: Path, images: Iterable[tuple[float, Image]], max_height: int | None = None) -> bool:
    """Writes H.264 in MP4, each picture at its own time (seconds, in order), in the size of the first.
    max_height: pixels, to which larger pictures are scaled. Until it is whole it is called NAME.part. Returns whether
    there was any picture. Nothing is left of a video that fails. Raises SinkError, and what `images` raises."""
    pictures = iter(images)
    first = next(pictures, None)
    if first is None:
        return False
    scale = min(1.0, max_height / first[1].shape[0]) if max_height else 1.0
    height, width = (max(2, round(side * scale) // 2 * 2) for side in first[1].shape[:2])
    part, last = path.with_name(f"{path.name}.part"), -1
    try:
        with ffmpeg_errors("writing", path):
            with av.open(part, "w", format="mp4", options={"movflags": "faststart"}) as video:
                stream: Any = video.add_stream("libx264", rate=TICKS, options={"preset": "veryfast", "crf": "23"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = Fraction(1, TICKS)
                for at, image in chain([first], pictures):
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
                    last = max(last + 1, round((at - first[0]) * TICKS))
                    frame.pts, frame.time_base = last, Fraction(1, TICKS)
                    video.mux(stream.encode(frame.reformat(width, height)))
                video.mux(stream.encode())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return True


@contextmanager
def ffmpeg_errors(what: str, path: Path) -> Iterator[None]:
    """FFmpeg's exceptions as SinkError."""
    with sink_errors(what, path):
        try:
            yield
        except av.FFmpegError as error:
            raise OSError(error.errno, error.strerror) from error


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
    (top, bottom), (left, right) = ((rest // 2, rest - rest // 2) for rest in np.subtract(size_hw, inner_hw).tolist())
    return np.asarray(cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT), np.uint8)
