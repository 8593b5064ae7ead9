"""A program's log lines on stderr: text, or JSON where GATESTREAM_LOG=json is set; and what else may write there."""

import json
import logging
import math
import os
import signal
import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TextIO

from engines.decoding.silence import discard_writes

FORMAT = "GATESTREAM_LOG"  # environment variable, so that the processes of a service agree
MOST_NOTICES = 100  # a minute, of one kind


class _JsonFormatter(logging.Formatter):
    """A JSON object a line, for programs that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
                "message": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class NoticeLimiter:
    """Passes each notice once a minute, and no more than MOST_NOTICES different ones, whoever causes them."""

    def __init__(self) -> None:
        self._since, self._passed = -math.inf, set[Hashable]()

    def passes(self, key: Hashable, now: float) -> bool:
        """Whether a notice with this key may be logged. now: steady seconds."""
        if now - self._since > 60:
            self._since, self._passed = now, set()
        if key in self._passed or len(self._passed) >= MOST_NOTICES:
            return False
        self._passed.add(key)
        return True


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows what the library logs, such as an engine that has to be built first."""
    logger, handler = logging.getLogger("gatestream"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if os.environ.get(FORMAT) == "json" else
                         logging.Formatter("gatestream: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def inheritable_stderr() -> TextIO | None:
    """Our stderr, for a process that is started; None to let it inherit file descriptor 2."""
    try:
        sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return None
    return sys.stderr


def ignore_terminal_signals() -> None:
    """For processes that a service starts: the service alone answers what a terminal sends to all its processes."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def silence_decoders() -> None:
    """Discards file descriptor 2 from now on, Python's own errors excepted: libjpeg and libpng write there about every
    broken picture and have no switch."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    discard_writes(2)
    for handler in logging.getLogger("gatestream").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
