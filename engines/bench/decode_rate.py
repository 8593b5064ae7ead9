"""How fast recordings are decoded on this machine. Imports no torch: its processes start quickly.

    python -m engines.bench.decode_rate clip.mp4 ...     # frames per second of processor time, beside OpenCV's"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np

from engines.datasets.base import Dataset, Segment
from engines.datasets.decode import decode_segment
from engines.decoding.video import open_video
from engines.errors import DatasetError


@dataclass(frozen=True, slots=True)
class DecodeRate:
    frames: int  # decoded, at the rate asked for
    seconds: float
    workers: int  # processes
    unreadable: int  # segments left out

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds


def measure_decode_rate(dataset: Dataset, rate: float, size_hw: tuple[int, int], workers: int = 1,
                        seconds: float = 5.0) -> DecodeRate:
    """Measures frames of `rate` and `size_hw` that `workers` processes decode in about `seconds`, without a cache.
    Segments are taken from all over the training split (any where it has none), again and again where there are few.
    Raises DatasetError where none of them can be decoded."""
    of = dataset.splits.get("train") or next(segments for segments in dataset.splits.values() if segments)
    spread = cycle(of[place] for place in np.random.default_rng(0).permutation(len(of)))
    decoded = unreadable = 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        list(pool.map(_wait, [0.2] * workers))  # every worker has started and imported what it needs
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
    try:
        return len(decode_segment(segment, rate, size_hw))
    except DatasetError:
        return 0


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def compare_with_opencv(path: Path, rounds: int = 7) -> tuple[float, float]:
    """Frames per second of processor time of a video, each made a picture: here and by OpenCV, medians of turns."""
    def read() -> int:
        with closing(open_video(path)) as video:
            return sum(frame.picture().size > 0 for frame in video.frames() if frame is not None)

    def read_with_opencv() -> int:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        return sum(1 for _ in iter(lambda: capture.read()[0], False))

    rates: dict[Callable[[], int], list[float]] = {read: [], read_with_opencv: []}
    for _ in range(rounds):
        for way, found in rates.items():
            started = time.process_time()
            found.append(way() / (time.process_time() - started))
    return statistics.median(rates[read]), statistics.median(rates[read_with_opencv])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("{}: {:.0f} frames/s, OpenCV {:.0f}".format(name, *compare_with_opencv(Path(name))), flush=True)
