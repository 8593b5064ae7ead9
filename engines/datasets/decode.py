"""Frames of a segment at a frame rate and a size, picked by time as the live clock picks them.

    images_u8_NHWC = decode_segment(segment, rate=7.5, size_hw=(72, 96))   # BGR
    images_u8_NHWC = cache.frames(segment, rate=7.5, size_hw=(72, 96))     # the same, decoded once; frame_cache.py

A recording is laid on a grid of cells, each 1 / rate seconds long, from its first frame on. Of each cell the first
frame is used; a cell without one shows the image before. Overlapping segments so share their frames.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from engines.datasets.base import Media, Segment
from engines.datasets.media import image_number, list_images
from engines.errors import DatasetError
from engines.model.preprocess import fit

Images = NDArray[np.uint8]  # [N, H, W, 3], BGR
Load = Callable[[], NDArray[np.uint8] | None]
EARLY_CELLS = 0.15  # as the live clock has it: a frame this part of a cell too early still opens its cell
MAX_FAILURES = 50  # packets in a row that do not decode; then the file has ended
_LEAD_S = 1.0  # decoding starts so long before a segment, at a keyframe: its first cell may show a frame before it
_ROUNDING = 1e-6  # of a cell
_FALLBACK_RATE = 30.0
MAX_UNREADABLE = 50  # segments in a row that cannot be read end a training


def decode_segment(segment: Segment, rate: float, size_hw: tuple[int, int]) -> Images:
    """Decodes a segment, scaled to cover `size_hw` and centre-cropped: uint8 [N, H, W, 3], one each 1 / rate seconds.

    Raises DatasetError, which names the recording, when nothing of it decodes or it ends before the segment starts.
    """
    first, end = cell_range(segment, rate)
    return np.stack(list(_decode_cells(segment.media, rate, size_hw, first, end)))


def cell_range(segment: Segment, rate: float) -> tuple[int, int | None]:
    """First cell of a segment, and the one after its last (None: to the end of the recording)."""
    first = math.ceil(segment.start_s * rate - _ROUNDING)
    if segment.stop_s is None:
        return first, None
    return first, max(math.ceil(segment.stop_s * rate - _ROUNDING), first + 1)


def iterate_frames(media: Media, rate: float, size_hw: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """The images of all cells of a recording, [H, W, 3], one at a time. Raises DatasetError."""
    return _decode_cells(media, rate, size_hw, 0, None)


@lru_cache(maxsize=65536)
def frame_size(media: Media) -> tuple[int, int]:
    """Height and width of a recording's first frame that decodes. Raises DatasetError."""
    for _, load in _timed(media, 0.0):
        if (image := load()) is not None:
            return image.shape[0], image.shape[1]
    raise DatasetError(f"{media.path}, of which no frame decodes", "a video, or a folder of images",
                       "remove it or get it again")


def frames_at(times_s: NDArray[np.float64], when_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of the frames at `times_s` are seen at these moments: the first one from each on, in the end the last."""
    return np.clip(np.searchsorted(times_s, when_s), 0, len(times_s) - 1)


def ends_early_error(media: Media, at_s: float) -> DatasetError:
    """The complaint about a segment that starts after its recording's end."""
    return DatasetError(f"{media.path}, which ends before {at_s:.2f} s", "a recording as long as its annotations say",
                        "get it again, or leave the segment out; see gatestream data check")


def _decode_cells(media: Media, rate: float, size_hw: tuple[int, int], first: int, end: int | None
                  ) -> Iterator[NDArray[np.uint8]]:
    """Images of the cells from `first` to before `end`."""
    start_s = max(first / rate - _LEAD_S, 0.0)
    openings = _openings(media, rate, size_hw, start_s)
    opening = next(openings, None)
    if start_s > 0 and (opening is None or opening[0] > first):  # what the first cell shows lies farther back
        openings = _openings(media, rate, size_hw, 0.0)
        opening = next(openings, None)
    if opening is None:
        raise DatasetError(f"{media.path}, of which no frame decodes", "a video or a folder of images",
                           "remove it or get it again")
    shown, following = None, first
    for cell, image in chain([opening], openings):
        latest = cell
        if shown is not None and end is not None and cell >= end:
            break
        for _ in range(following, cell if end is None else min(cell, end)):
            yield image if shown is None else shown
        shown, following = image, max(following, cell)
    if latest < first:
        raise ends_early_error(media, first / rate)
    for _ in range(following, latest + 1 if end is None else min(latest + 1, end)):
        assert shown is not None
        yield shown


def _openings(media: Media, rate: float, size_hw: tuple[int, int], start_s: float
              ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each cell that has a frame, and the first one that decodes; the first cell seen may have begun before `start_s`:
    it is left out."""
    latest = -1 if start_s == 0 else None
    for at_s, load in _timed(media, start_s):
        cell = math.floor(at_s * rate + EARLY_CELLS + _ROUNDING)
        latest = cell if latest is None else latest
        if cell > latest and (image := load()) is not None:
            latest = cell
            yield cell, fit(image, size_hw, size_hw)


def _timed(media: Media, start_s: float) -> Iterator[tuple[float, Load]]:
    """Time of each frame, and how to get it; from `start_s` or a little before."""
    if media.rate is not None:
        for at_s, path in stills(media):
            if at_s >= start_s:
                yield at_s, lambda path=path: read_still(path)  # type: ignore[misc]
        return
    with closing(VideoReader(media.path)) as video:
        yield from (found for found in video.frames(start_s) if found is not None)


class VideoReader:
    """An open video file. rate: frames per second that it states, 0 where it does not; seconds: how long it says it is,
    0 likewise. Raises DatasetError for a file that is none."""

    def __init__(self, path: Path) -> None:
        try:
            self._container = av.open(str(path), metadata_errors="ignore")
            self._stream = self._container.streams.video[0]
        except (av.error.FFmpegError, OSError, IndexError) as error:
            fault = "cannot be opened" if path.is_file() else "does not exist"
            raise DatasetError(f"{path}, which {fault}", "a video that FFmpeg can open",
                               "remove it or get it again") from error
        self._stream.thread_type = "AUTO"
        if multiprocessing.parent_process() is not None:
            self._stream.codec_context.thread_count = 1  # workers share the cores already
        self._reformatter = VideoReformatter()
        self.rate = float(self._stream.average_rate or 0)
        self.seconds = (self._stream.frames / self.rate if self._stream.frames and self.rate else
                        (self._container.duration or 0) / av.time_base)

    def close(self) -> None:
        self._container.close()

    def frames(self, start_s: float = 0.0) -> Iterator[tuple[float, Load] | None]:
        """Seconds from the recording's start, always rising, and picture of each frame, upright; None for what does
        not decode. From the keyframe at `start_s` or before, or from the start of a file that has no such places."""
        stream = self._stream
        origin, unit_s, step_s = stream.start_time or 0, float(stream.time_base or 0), 1 / (self.rate or _FALLBACK_RATE)
        guessed = self._container.format.name == "avi"  # has no times of presentation: those that FFmpeg makes up jump
        if start_s > 0:
            try:
                self._container.seek(origin + int(start_s / unit_s), stream=stream)
            except (av.error.FFmpegError, ZeroDivisionError):
                self._container.seek(0)
        before_s = -math.inf
        for frame in self._decoded():
            if frame is None:
                yield None
                continue
            stamp = frame.dts if guessed or frame.pts is None else frame.pts
            at_s = before_s if stamp is None else (stamp - origin) * unit_s
            if at_s <= before_s:  # times that stand still or run back, or none: the file's rate counts
                at_s = max(before_s + step_s, 0.0)
            before_s = at_s
            yield at_s, lambda frame=frame: self._picture(frame)  # type: ignore[misc]

    def _decoded(self) -> Iterator[av.VideoFrame | None]:
        packets, failures = self._container.demux(self._stream), 0
        while failures < MAX_FAILURES:
            try:
                packet = next(packets, None)
                found = [] if packet is None else packet.decode()
            except EOFError:
                return
            except av.error.FFmpegError:
                failures += 1
                packets = self._container.demux(self._stream)
                yield None
                continue
            if packet is None:
                return
            failures = 0 if found else failures
            yield from found

    def _picture(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """BGR, converted as OpenCV does, which live use reads files with."""
        made = self._reformatter.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC).to_ndarray()
        return np.ascontiguousarray(np.rot90(made, frame.rotation // 90), np.uint8)


def stills(media: Media) -> list[tuple[float, Path]]:
    """Time and path of each image of a folder of frames, in order. Raises DatasetError."""
    assert media.rate is not None
    try:
        found = list_images(media.path)
    except OSError as error:
        raise DatasetError(f"{media.path} ({error.strerror})", "a folder of images", "check the path") from error
    if media.first is None:
        return [(place / media.rate, path) for place, path in enumerate(found)]
    return [((index - media.first) / media.rate, path) for path in found
            if (index := image_number(path)) is not None and index >= media.first]


def read_still(path: Path) -> NDArray[np.uint8] | None:
    """An image file, BGR [H, W, 3]; None where it does not decode."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, np.uint8)
