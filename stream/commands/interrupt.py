"""Ctrl-C, SIGTERM and SIGHUP: from the first moment of a command on, and the handlers it has of its own."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_received = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """They raise KeyboardInterrupt, so that files are finished whenever they come, and are remembered.
    In other threads than the main one, and for a signal that is ignored or handled by the caller, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    defaults = (signal.default_int_handler, signal.SIG_DFL)
    with handle_signals({number: _interrupt for number in ENDING if signal.getsignal(number) in defaults}):
        yield


@contextmanager
def handle_signals(handlers: Mapping[signal.Signals, Callable[..., object]]) -> Iterator[None]:
    """Sets handlers of signals, and those that were there before at the end. Main thread only."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_on_signals(close: Callable[[], object], stop: threading.Event) -> AbstractContextManager[None]:
    """They set `stop` and close the source; a second one raises KeyboardInterrupt. Main thread only."""
    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        close()

    return handle_signals({number: handle for number in ENDING if signal.getsignal(number) != signal.SIG_IGN})


def raise_if_interrupted() -> None:
    """Raises a KeyboardInterrupt that was swallowed: Python does so in destructors, libraries in C++ may."""
    if _received.is_set():
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    _received.set()
    raise KeyboardInterrupt
