"""What a program says beside its results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def notices_on_stderr() -> Iterator[None]:
    """Shows what the library logs, such as an engine that has to be built first."""
    logger, handler = logging.getLogger("gatestream"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("gatestream: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
