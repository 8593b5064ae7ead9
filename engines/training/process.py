"""What training sets for its whole process, and puts back."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from engines.errors import GatestreamError

# Of the GNU C library's malloc.h, and its defaults.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 1024, 65536


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Has the GNU C library keep what is freed inside, and give it back to the system afterwards; else does nothing.
    Getting each layer's maps from the system anew took a sixth of a training step. Not for two threads at once."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` inside; afterwards torch's generators go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def defer_interrupts() -> Iterator[Callable[[], bool]]:
    """Has Ctrl-C and SIGTERM wait: yields what says whether one came. A second one raises KeyboardInterrupt at once. In
    other threads than the main one, and for signals that are ignored, nothing changes."""
    came: list[int] = []

    def remember(number: int, _: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if here else {}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, remember)
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_interrupts(_: int) -> None:
    """In a loader worker: signals often go to a whole process group, and the main process ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load(items: Dataset[Any], workers: int, prefetch: int, order: Iterable[Any] | None = None) -> Iterator[Any]:
    """Items, in an order or as they come, by so many loader workers; one that is an error is raised, which torch would
    make another kind of on its way here."""
    # Its own generator: the loader draws from it.
    loader = DataLoader(items, batch_size=None, sampler=order, num_workers=workers, generator=torch.Generator(),
                        worker_init_fn=_ignore_interrupts,
                        prefetch_factor=prefetch if workers else None)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # OpenCV's threads do not survive the fork of a worker, which would wait for them for ever
    try:
        loaded = iter(loader)
    finally:
        cv2.setNumThreads(threads)
    for item in loaded:
        if isinstance(item, GatestreamError):
            raise item
        yield item
