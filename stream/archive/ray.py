"""Ray, started or joined. It reports to nobody, and listens on loopback where it is started for this machine alone."""

import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from typing import Any, TextIO

from engines.errors import imports_of


@cache
def _open_null() -> TextIO:
    """Never closed: what Ray's loggers take for the terminal, they write to until the process ends."""
    return open(os.devnull, "w", encoding="utf-8")


@contextmanager
def silence_ray() -> Iterator[TextIO]:
    """Nothing that Ray and its libraries print reaches the terminal meanwhile; our log lines do, and what is written to
    the stream that is given."""
    shown, logger = sys.stderr, logging.getLogger("gatestream")
    with ExitStack() as stack:
        null = _open_null()
        with suppress(OSError, ValueError, AttributeError):
            if shown.fileno() == 2:
                shown = stack.enter_context(os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace"))
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                stack.callback(handler.setStream, handler.stream)
                handler.setStream(shown)
        kept = os.dup(2)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        os.dup2(null.fileno(), 2)
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(redirect_stdout(null))
        stack.enter_context(redirect_stderr(null))
        yield shown


@contextmanager
def connect_ray(address: str | None, log_to_driver: bool = True) -> Iterator[Any]:
    """The module, connected to the cluster at an address, or to a new one of this machine if None.
    log_to_driver: show what its workers print. It is left as it was found. Raises UsageError without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with imports_of("cluster", "Ray", "a cluster"):
        ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    alone = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    terminated = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, configure_logging=False, log_to_driver=log_to_driver, **alone)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray puts its own there
    try:
        yield ray
    finally:
        ray.shutdown()
