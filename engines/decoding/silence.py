"""Keeps decoders written in C from writing to the terminal."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

_stderr = threading.Lock()


def silence_opencv() -> None:
    """Keeps OpenCV and FFmpeg from writing to stderr, unless the user asked them to by environment."""
    import cv2  # late: the command line's help needs `discard_writes` only

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Discards file descriptor 2 meanwhile: libpng and libjpeg write there themselves and have no switch."""
    with _stderr, ExitStack() as after:
        with suppress(OSError):  # closed already: there is nobody to disturb
            saved = os.dup(2)
            after.callback(os.close, saved)
            after.callback(os.dup2, saved, 2)
            discard_writes(2)
        yield


def discard_writes(fd: int) -> None:
    """Points a file descriptor of this process at nowhere. Raises OSError."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
