"""Frames of a segment at a frame rate and a size, picked by time as the live clock picks them.

    images_u8_NHWC = decode_segment(segment, rate=7.5, size_hw=(72, 96))           # BGR
    images_u8_NHWC = cache.frames(segment, rate=7.5, size_hw=(72, 96))     # the same, decoded once; frame_cache.py

A recording is laid on a grid of cells, each 1 / rate seconds long, from its first frame on. Of each cell the first
frame is used; a cell without one shows the image before. Overlapping segments so share their frames.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.datasets.base import Dataset, Media, Segment
from engines.datasets.media import images, number
from engines.errors import DatasetError
from engines.model.preprocess import fit

Images = NDArray[np.uint8]  # [N, H, W, 3], BGR
Load = Callable[[], NDArray[np.uint8] | None]
EARLY_CELLS = 0.15  # as the live clock has it: a frame this part of a cell too early still opens its cell
FAILED_GRABS = 50  # in a row; then the file has ended
_RUN_UP_S = (1.0, 10.0, math.inf)  # how long before a segment decoding starts, until its first cell is certain
_ROUNDING = 1e-6  # of a cell


class _UncertainError(Exception):
    """Decoding began too late to know what the first cell shows."""


def decode_segment(segment: Segment, rate: float, size_hw: tuple[int, int]) -> Images:
    """Decodes a segment, scaled to cover `size_hw` and centre-cropped: uint8 [N, H, W, 3], one each 1 / rate seconds.

    Raises DatasetError, which names the recording, when nothing of it decodes or it ends before the segment starts.
    """
    first, end = cell_range(segment, rate)
    return np.stack(list(_from(segment.media, rate, size_hw, first, end)))


def cell_range(segment: Segment, rate: float) -> tuple[int, int | None]:
    """First cell of a segment, and the one after its last (None: to the end of the recording)."""
    first = math.ceil(segment.start_s * rate - _ROUNDING)
    if segment.stop_s is None:
        return first, None
    return first, max(math.ceil(segment.stop_s * rate - _ROUNDING), first + 1)


def iterate_frames(media: Media, rate: float, size_hw: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """The images of all cells of a recording, [H, W, 3], one at a time. Raises DatasetError."""
    return _from(media, rate, size_hw, 0, None)


def whole(media: Media, size_hw: tuple[int, int]) -> tuple[Images, NDArray[np.float64]]:
    """Every frame of a recording that decodes, scaled to cover `size_hw` and centre-cropped, uint8 [N, H, W, 3], and
    its time from the first one's, [N] seconds. Raises DatasetError when none decodes."""
    found = [(fit(image, size_hw, size_hw), at_s) for at_s, load in _timed(media, 0.0) if (image := load()) is not None]
    if not found:
        raise DatasetError(f"{media.path}, of which no frame decodes", "a video or a folder of images",
                           "remove it or get it again")
    times_s = np.array([at_s for _, at_s in found])
    return np.stack([image for image, _ in found]), times_s - times_s[0]


def ends_early_error(media: Media, at_s: float) -> DatasetError:
    """The complaint about a segment that starts after its recording's end."""
    return DatasetError(f"{media.path}, which ends before {at_s:.2f} s", "a recording as long as its annotations say",
                        "get it again, or leave the segment out; see gatestream data check")


def _from(media: Media, rate: float, size_hw: tuple[int, int], first: int, end: int | None
          ) -> Iterator[NDArray[np.uint8]]:
    for run_up_s in _RUN_UP_S:
        start_s = first / rate - run_up_s
        try:
            yield from _cells(media, rate, size_hw, first, end, max(start_s, 0.0))
            return
        except _UncertainError:
            continue
    raise ends_early_error(media, first / rate)


def _cells(media: Media, rate: float, size_hw: tuple[int, int], first: int, end: int | None,
           start_s: float) -> Iterator[NDArray[np.uint8]]:
    """Images of the cells from `first` to before `end`, with decoding begun at `start_s` or soon before it.

    Raises _UncertainError, before anything is yielded, when frames that matter may lie before `start_s`.
    """
    shown: NDArray[np.uint8] | None = None
    latest, following = -1, first  # the newest cell that has a frame, and the next one to yield
    certain = start_s == 0  # else the first cell seen may have begun before
    seen = False
    for at_s, load in _timed(media, start_s):
        seen = True
        cell = math.floor(at_s * rate + EARLY_CELLS + _ROUNDING)
        if not certain and latest < 0:
            latest = cell
        if cell <= latest:
            continue
        image = load()
        if image is None:  # damaged: the next frame of this cell may do
            continue
        if end is not None and cell >= end and shown is not None:
            latest = cell
            break
        if not certain and shown is None and cell > first:
            raise _UncertainError
        before = shown
        shown, latest = fit(image, size_hw, size_hw), cell
        while following < cell and (end is None or following < end):  # cells that went by without a frame
            yield shown if before is None else before
            following += 1
        if cell == following and (end is None or cell < end):
            yield shown
            following += 1
    if shown is None:
        if start_s > 0:
            raise _UncertainError
        raise DatasetError(f"{media.path}, of which no frame decodes", "a video or a folder of images" if seen else
                           "a video that OpenCV can open, or a folder of images", "remove it or get it again")
    if following == first and latest < first:
        raise ends_early_error(media, first / rate)
    while end is not None and following < min(end, latest + 1):
        yield shown
        following += 1


def _timed(media: Media, start_s: float) -> Iterator[tuple[float, Load]]:
    """Time of each frame, and how to get it; from `start_s` or a little before."""
    if media.rate is not None:
        for at_s, path in stills(media):
            if at_s >= start_s:
                yield at_s, lambda path=path: _still(path)  # type: ignore[misc]
        return
    capture = open_video(media.path)
    try:
        if start_s > 0:
            capture.set(cv2.CAP_PROP_POS_MSEC, start_s * 1e3)
        step_s = 1 / (capture.get(cv2.CAP_PROP_FPS) or 30.0)
        before_s, failed = -math.inf, 0
        while failed < FAILED_GRABS:
            if not capture.grab():
                failed += 1
                continue
            failed = 0
            at_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            if at_s <= before_s:  # times that stand still or run back: the file's rate counts
                at_s = before_s + step_s
            before_s = at_s
            yield at_s, lambda: _picture(capture)
    finally:
        capture.release()


def open_video(path: Path) -> cv2.VideoCapture:
    """An open capture. Raises DatasetError."""
    alone = multiprocessing.parent_process() is None  # workers share the cores already
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [] if alone else [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        fault = "cannot be opened" if path.is_file() else "does not exist"
        raise DatasetError(f"{path}, which {fault}", "a video that OpenCV can open", "remove it or get it again")
    return capture


def stills(media: Media) -> list[tuple[float, Path]]:
    """Time and path of each image of a folder of frames, in order. Raises DatasetError."""
    assert media.rate is not None
    try:
        found = images(media.path)
    except OSError as error:
        raise DatasetError(f"{media.path} ({error.strerror})", "a folder of images", "check the path") from error
    if media.first is None:
        return [(place / media.rate, path) for place, path in enumerate(found)]
    return [((index - media.first) / media.rate, path) for path in found
            if (index := number(path)) is not None and index >= media.first]


def _still(path: Path) -> NDArray[np.uint8] | None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, np.uint8)


def _picture(capture: cv2.VideoCapture) -> NDArray[np.uint8] | None:
    ok, image = capture.retrieve()
    return np.asarray(image, np.uint8) if ok and image is not None else None


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """What `measure_decode_rate` measured. frames: decoded at the rate asked for; unreadable: segments left out."""

    frames: int
    seconds: float
    workers: int
    unreadable: int

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds


def measure_decode_rate(dataset: Dataset, rate: float, size_hw: tuple[int, int], workers: int = 1, seconds: float = 5.0,
                split: str = "train") -> DecodeRate:
    """Measures frames of `rate` and `size_hw` that `workers` processes decode in about `seconds`, without a cache.

    Segments are taken from all over the split (any split where it has none), again and again where there are few.
    Raises DatasetError where none of them can be decoded.
    """
    of = dataset.splits.get(split) or next(segments for segments in dataset.splits.values() if segments)
    spread = cycle(of[place] for place in np.random.default_rng(0).permutation(len(of)))
    decoded = unreadable = 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_idle, [0.2] * workers))  # every worker has started and imported what it needs
        started = time.perf_counter()
        waiting = {pool.submit(_count, segment, rate, size_hw) for segment in islice(spread, 2 * workers)}
        while (took := time.perf_counter() - started) < seconds or not decoded + unreadable:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                decoded += one.result()
                unreadable += one.result() == 0
            if unreadable >= len(of) and not decoded:
                raise DatasetError(f"{dataset.name}, of which nothing decodes", "recordings beside the annotations",
                                   "see gatestream data check")
            waiting |= {pool.submit(_count, segment, rate, size_hw) for segment in islice(spread, len(done))}
        pool.shutdown(wait=True, cancel_futures=True)
    return DecodeRate(decoded, took, workers, unreadable)


def _count(segment: Segment, rate: float, size_hw: tuple[int, int]) -> int:
    cv2.setNumThreads(1)
    try:
        return len(decode_segment(segment, rate, size_hw))
    except DatasetError:
        return 0


def _idle(seconds: float) -> None:
    time.sleep(seconds)
