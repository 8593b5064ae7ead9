"""What a program says beside its results: lines of text, or of JSON where GATESTREAM_LOG=json is set."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

FORMAT = "GATESTREAM_LOG"  # environment variable, so that the processes of a service agree


class _Structured(logging.Formatter):
    """A JSON object a line, for programs that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        said = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
                "message": record.getMessage()}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows what the library logs, such as an engine that has to be built first."""
    logger, handler = logging.getLogger("gatestream"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Structured() if os.environ.get(FORMAT) == "json" else
                         logging.Formatter("gatestream: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def inheritable_stderr() -> TextIO | None:
    """Where a process that is started should say what is wrong; None for where ours does by itself."""
    try:
        sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return None
    return sys.stderr


def ignore_terminal_signals() -> None:
    """What a terminal sends to all its processes is the service's to answer, not that of those it has started."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def silence_decoders() -> None:
    """libjpeg and libpng write to file descriptor 2 about every broken picture, and know no switch: from now on it
    leads nowhere, and Python's own errors go where it led."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    for handler in logging.getLogger("gatestream").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
