"""How fast recordings of a dataset are decoded on this machine. Imports no torch: its processes start quickly."""

import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import cycle, islice

import cv2
import numpy as np

from engines.datasets.base import Dataset, Segment
from engines.datasets.decode import decode_segment
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
