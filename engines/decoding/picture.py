"""A decoded frame -> the picture as a viewer would see it: whole lines, square pixels, upright, BGR."""

import struct
from collections.abc import Iterator
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
WIDEST = 4.0  # pixels wider or higher than that are a broken header


class _Graph:
    """A chain of FFmpeg's filters, built anew whenever the frames' form changes."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._form: object = None

    def pull_each(self, frame: av.VideoFrame | None, filters: list[tuple[str, str]]) -> Iterator[av.VideoFrame]:
        """What the filters give for a frame; None: what they still hold. Raises FFmpegError."""
        form = None if frame is None else (frame.width, frame.height, frame.format.name, int(frame.colorspace),
                                           int(frame.color_range), filters)
        if self._graph is not None and form != self._form:
            self._graph.push(None)
            yield from self._pull()
            self._graph = None
        if frame is None:
            return
        if self._graph is None:
            self._graph, self._form = av.filter.Graph(), form
            self._graph.link_nodes(
                self._graph.add_buffer(width=frame.width, height=frame.height, format=frame.format,
                                       time_base=frame.time_base or Fraction(1, av.time_base)),
                *(self._graph.add(name, arguments) for name, arguments in filters),
                self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        yield from self._pull()

    def _pull(self) -> Iterator[av.VideoFrame]:
        assert self._graph is not None
        while True:
            try:
                made = self._graph.pull()
            except (av.error.BlockingIOError, EOFError):
                return
            assert isinstance(made, av.VideoFrame)
            yield made


class Deinterlacer:
    """Frames in, frames out: from the first interlaced one on, one frame later and of whole lines. FFmpeg's bwdif.

    FFmpeg's scaler refuses interlaced frames.
    """

    def __init__(self) -> None:
        self._graph = _Graph()
        self._needed = False

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """None ends the stream, or a part of it. Raises FFmpegError."""
        self._needed = self._needed or (frame is not None and frame.interlaced_frame)
        if self._needed:
            yield from self._graph.pull_each(frame, [("bwdif", "mode=send_frame:deint=interlaced")])
        elif frame is not None:
            yield frame


class PictureConverter:
    """Converts frames of one stream. pixel_aspect: width of a pixel by its height, as the container states it."""

    def __init__(self, pixel_aspect: Fraction | None = None) -> None:
        aspect = float(pixel_aspect or 1)
        self._aspect = aspect if 1 / WIDEST <= aspect <= WIDEST and abs(aspect - 1) > SQUARE else 1.0
        self._graph = _Graph()

    def convert(self, frame: av.VideoFrame) -> Image:
        """BGR uint8 [H, W, 3]. No line of the picture gets lost: pixels that are not square are made larger.

        Raises FrameError where FFmpeg cannot convert it.
        """
        width = round(frame.width * max(self._aspect, 1.0))
        height = round(frame.height / min(self._aspect, 1.0))
        try:
            [made] = self._graph.pull_each(frame, [("scale", f"{width}:{height}:flags=bicubic"), ("format", "bgr24")])
            pixels = np.asarray(made.to_ndarray(), np.uint8)
        except (av.error.FFmpegError, ValueError) as error:
            raise FrameError(f"a frame of {frame.format.name} that FFmpeg does not convert ({error})",
                             "a picture", "convert the video, e.g. with ffmpeg -i IN OUT.mp4") from error
        return np.ascontiguousarray(_turn(pixels, _display_matrix(frame)))


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The signs of a, b, c, d: the pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    data: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # keyed by number
    if data is None or data.buffer_size < 20:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    return (a, 0, 0, d) if abs(a) + abs(d) >= abs(b) + abs(c) else (0, b, c, 0)


def _turn(pixels: Image, matrix: tuple[int, int, int, int]) -> Image:
    """Turned in steps of 90 degrees and mirrored, as the display matrix of ISO 14496-12 says."""
    a, b, c, d = matrix
    if b or c:
        pixels = pixels.transpose(1, 0, 2)
    flip_x, flip_y = a < 0 or c < 0, b < 0 or d < 0
    return pixels[::-1 if flip_y else 1, ::-1 if flip_x else 1]
