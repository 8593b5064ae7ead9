"""Frames of a segment at a frame rate and a size, picked by time as the live clock picks them.

    images_u8_NHWC = decode_segment(segment, rate=7.5, size_hw=(72, 96))   # BGR
    images_u8_NHWC = cache.frames(segment, rate=7.5, size_hw=(72, 96))     # the same, decoded once; frame_cache.py

A recording is laid on a grid of cells, each 1 / rate seconds long, from its first frame on. Of each cell the first
frame is used; a cell without one shows the image before. Overlapping segments so share their frames."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import lru_cache, partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Media, Segment
from engines.decoding.images import Image, read_image
from engines.decoding.paths import image_number, list_images, printable
from engines.decoding.video import open_video
from engines.errors import DatasetError, FrameError, SourceError
from engines.model.preprocess import fit

Images = NDArray[np.uint8]  # [N, H, W, 3], BGR
Load = Callable[[], Image]  # raises FrameError
EARLY_CELLS = 0.15  # as the live clock has it: a frame this part of a cell too early still opens its cell
_LEAD_S = 1.0  # decoding starts so long before a segment, at a keyframe: its first cell may show a frame before it
_ROUNDING = 1e-6  # of a cell
MAX_UNREADABLE = 50  # segments in a row that cannot be read end a training


def decode_segment(segment: Segment, rate: float, size_hw: tuple[int, int]) -> Images:
    """Decodes a segment, scaled to cover `size_hw` and centre-cropped: uint8 [N, H, W, 3], one each 1 / rate seconds.
    Raises DatasetError, which names the recording, when nothing of it decodes or it ends before the segment starts."""
    first, end = cell_range(segment, rate)
    return np.stack(list(iterate_frames(segment.media, rate, size_hw, first, end)))


def cell_range(segment: Segment, rate: float) -> tuple[int, int | None]:
    """First cell of a segment, and the one after its last (None: to the end of the recording)."""
    first = math.ceil(segment.start_s * rate - _ROUNDING)
    return first, None if segment.stop_s is None else max(math.ceil(segment.stop_s * rate - _ROUNDING), first + 1)


@lru_cache(maxsize=65536)
def frame_size(media: Media) -> tuple[int, int]:
    """Height and width of a recording's first frame that decodes. Raises DatasetError."""
    for _, load in _timed(media, 0.0):
        with suppress(FrameError):
            height, width = load().shape[:2]
            return height, width
    raise _without_frames(media)


def frames_at(times_s: NDArray[np.float64], when_s: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of the frames at `times_s` are seen at these moments: the first one from each on, in the end the last."""
    return np.clip(np.searchsorted(times_s, when_s), 0, len(times_s) - 1)


def ends_early_error(media: Media, at_s: float) -> DatasetError:
    """The complaint about a segment that starts after its recording's end."""
    return DatasetError(f"{printable(media.path)}, which ends before {at_s:.2f} s",
                        "a recording as long as its annotations say",
                        "get it again, or leave the segment out; see gatestream data check")


def iterate_frames(media: Media, rate: float, size_hw: tuple[int, int], first: int = 0, end: int | None = None
                   ) -> Iterator[NDArray[np.uint8]]:
    """The images of a recording's cells from `first` to before `end`, [H, W, 3], one at a time. Raises DatasetError."""
    start_s = max(first / rate - _LEAD_S, 0.0)
    openings = _openings(media, rate, size_hw, start_s)
    opening = next(openings, None)
    if start_s > 0 and (opening is None or opening[0] > first):  # what the first cell shows lies farther back
        openings = _openings(media, rate, size_hw, 0.0)
        opening = next(openings, None)
    if opening is None:
        raise _without_frames(media)
    cell, shown = opening
    following = first
    for cell, image in chain([opening], openings):
        stop = cell if end is None else min(cell, end)
        yield from repeat(shown, stop - following)
        following, shown = max(following, stop), image
        if following == end:
            return
    if cell < first:
        raise ends_early_error(media, first / rate)
    yield shown


def _openings(media: Media, rate: float, size_hw: tuple[int, int], start_s: float
              ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each cell that has a frame, and the first one that decodes; the first cell seen may have begun before `start_s`:
    it is left out."""
    latest = -1 if start_s == 0 else None
    for at_s, load in _timed(media, start_s):
        cell = math.floor(at_s * rate + EARLY_CELLS + _ROUNDING)
        latest = cell if latest is None else latest
        if cell > latest:
            try:
                image = load()
            except FrameError:
                continue
            latest = cell
            yield cell, fit(image, size_hw, size_hw)


def _timed(media: Media, start_s: float) -> Iterator[tuple[float, Load]]:
    """Time of each frame, and how to get it; from `start_s` or a little before."""
    if media.rate is not None:
        yield from ((at_s, partial(read_image, path)) for at_s, path in stills(media) if at_s >= start_s)
        return
    try:
        with closing(open_video(media.path)) as video:
            yield from ((frame.at_s, frame.picture) for frame in video.frames(start_s) if frame is not None)
    except SourceError as error:
        raise DatasetError(error.got, error.wanted, error.do) from error


def _without_frames(media: Media) -> DatasetError:
    return DatasetError(f"{printable(media.path)}, of which no frame decodes", "a video or a folder of images",
                        "remove it or get it again")


def stills(media: Media) -> list[tuple[float, Path]]:
    """Time and path of each image of a folder of frames, in order. Raises DatasetError."""
    assert media.rate is not None
    try:
        found = list_images(media.path)
    except OSError as error:
        raise DatasetError(f"{printable(media.path)} ({error.strerror})", "a folder of images",
                           "check the path") from error
    if media.first is None:
        return [(place / media.rate, path) for place, path in enumerate(found)]
    return [((index - media.first) / media.rate, path) for path in found
            if (index := image_number(path)) is not None and index >= media.first]
