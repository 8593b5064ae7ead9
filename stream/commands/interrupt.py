"""Ctrl-C and SIGTERM from the first moment of a command on, before it has handlers of its own."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_received = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, so that files are finished whenever they come, and are remembered.

    In other threads than the main one, and for a signal that is ignored or handled by the caller, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    changed = [number for number, default in defaults.items() if signal.getsignal(number) is default]
    for number in changed:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, defaults[number])


def raise_if_interrupted() -> None:
    """Raises a KeyboardInterrupt that was swallowed: Python does so in destructors, libraries in C++ may."""
    if _received.is_set():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.set()
    raise KeyboardInterrupt
