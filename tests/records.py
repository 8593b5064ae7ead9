"""Records and pictures that tests of the sinks write, and a disk that is full."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from stream.frame import Event, Frame, Gap, HeadScores, Prediction, Summary

PREDICTION = Prediction("0", 12, 1.6, True, {"gesture": HeadScores((("left", 0.91), ("up", 0.04)), (("left", 0.88),))},
                        (0.1, 0.7, 0.9), {"total": 7.9, "engine": 6.2}, 0, 0)
GAP = Gap("0", 7.5, 3.2, "reset")
SUMMARY = Summary("0", 350, 120, 4, 0, 101.2, {"p50": 6.9, "p95": 8.1, "p99": 9.0})


def event(label: str = "left", start: float = 1.2, end: float = 2.1, *, camera: str = "0", head: str = "gesture",
          open: bool = False) -> Event:
    return Event(camera, head, label, start, end, 0.93, open)


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size_bytes`, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def grey(height: int = 120, width: int = 160, value: int = 128) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, dtype=np.uint8)


def frame(captured_at: float, image: NDArray[np.uint8] | None = None) -> Frame:
    return Frame(grey() if image is None else image, captured_at, 0, "0")
