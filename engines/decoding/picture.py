"""A decoded frame -> the picture as a viewer would see it: whole lines, square pixels, upright, BGR."""

import math
import struct
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import av.error
import av.filter
import numpy as np
from av.sidedata.sidedata import Type

from engines.decoding.images import Image
from engines.errors import FrameError

SQUARE = 0.02  # relative; pixels so nearly square are taken as square
UPRIGHT = (1, 0, 0, 1)
WIDEST = 4.0  # pixels wider or higher than that are a broken header


class _FilterChain:
    """FFmpeg's filters one after another, set up anew whenever the frames' form changes."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._form: object = None

    def fits(self, frame: av.VideoFrame) -> bool:
        """Whether a frame has the form of those before."""
        return self._form == self._form_of(frame)

    def push(self, frame: av.VideoFrame | None, filters: Iterable[tuple[str, str]]) -> None:
        """None: no more frames of this form. Raises FFmpegError."""
        if frame is not None and not self.fits(frame):
            self._graph, self._form = av.filter.Graph(), self._form_of(frame)
            self._graph.threads = 1  # more cost more than they bring
            self._graph.link_nodes(
                self._graph.add_buffer(width=frame.width, height=frame.height, format=frame.format,
                                       time_base=frame.time_base or Fraction(1, av.time_base)),
                *(self._graph.add(name, arguments) for name, arguments in filters),
                self._graph.add("buffersink")).configure()
        if self._graph is not None:
            self._graph.push(frame)

    def pull(self) -> av.VideoFrame | None:
        """A frame that has come through, None where there is none. Raises FFmpegError."""
        try:
            return None if self._graph is None else self._graph.vpull()
        except (av.error.BlockingIOError, EOFError):
            return None

    @staticmethod
    def _form_of(frame: av.VideoFrame) -> object:
        return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range


class Deinterlacer:
    """Frames in, frames out: from the first interlaced one on, one frame later and of whole lines. FFmpeg's bwdif.
    FFmpeg's scaler refuses interlaced frames."""

    FILTERS = (("bwdif", "mode=send_frame:deint=interlaced"),)

    def __init__(self) -> None:
        self._chain: _FilterChain | None = None

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """None ends the stream. Raises FFmpegError."""
        if self._chain is None and frame is not None and frame.interlaced_frame:
            self._chain = _FilterChain()
        if self._chain is None:
            if frame is not None:
                yield frame
            return
        if frame is not None and not self._chain.fits(frame):
            self._chain.push(None, self.FILTERS)
            yield from iter(self._chain.pull, None)
        self._chain.push(frame, self.FILTERS)
        yield from iter(self._chain.pull, None)


class PictureConverter:
    """Converts frames of one stream, in any thread. pixel_aspect: width of a pixel by its height, as the file says."""

    def __init__(self, pixel_aspect: Fraction | None = None) -> None:
        aspect = float(pixel_aspect or 1)
        self._aspect = aspect if 1 / WIDEST <= aspect <= WIDEST and abs(aspect - 1) > SQUARE else 1.0
        self._chain, self._lock = _FilterChain(), threading.Lock()
        self._matrix, self._rotation = UPRIGHT, math.nan

    def convert(self, frame: av.VideoFrame) -> Image:
        """BGR uint8 [H, W, 3]. No line of the picture gets lost: pixels that are not square are made larger.
        Raises FrameError where FFmpeg cannot convert it."""
        width = round(frame.width * max(self._aspect, 1.0))
        height = round(frame.height / min(self._aspect, 1.0))
        with self._lock:
            try:
                self._chain.push(frame, (("scale", f"{width}:{height}:flags=bicubic"), ("format", "bgr24")))
                if (made := self._chain.pull()) is None:
                    raise ValueError("no picture came")
                pixels = np.asarray(made.to_ndarray(), np.uint8)
            except (av.error.FFmpegError, ValueError) as error:
                raise FrameError(f"a frame of {frame.format.name} that FFmpeg does not convert ({error})",
                                 "a picture", "convert the video, e.g. with ffmpeg -i IN OUT.mp4") from error
            if frame.rotation != self._rotation:  # a frame whose side data are looked at is freed late: it costs much
                self._matrix, self._rotation = _display_matrix(frame), frame.rotation
            matrix = self._matrix
        return pixels if matrix == UPRIGHT else np.ascontiguousarray(_turn(pixels, matrix))


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The signs of a, b, c, d: the pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    data: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # keyed by number
    if data is None or data.buffer_size < 20:
        return UPRIGHT
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    return (a, 0, 0, d) if abs(a) + abs(d) >= abs(b) + abs(c) else (0, b, c, 0)


def _turn(pixels: Image, matrix: tuple[int, int, int, int]) -> Image:
    """Turned in steps of 90 degrees and mirrored, as the display matrix of ISO 14496-12 says."""
    a, b, c, d = matrix
    if b or c:
        pixels = pixels.transpose(1, 0, 2)
    flip_x, flip_y = a < 0 or c < 0, b < 0 or d < 0
    return pixels[::-1 if flip_y else 1, ::-1 if flip_x else 1]
