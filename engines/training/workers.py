"""Loader workers that decode with OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
from torch.utils.data import DataLoader


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches, whose forked workers have one OpenCV thread each; this process keeps its threads.

    OpenCV's pool of threads does not survive a fork: a worker that used it would hang.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return iter(loader)
    finally:
        cv2.setNumThreads(threads)
