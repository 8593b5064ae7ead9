"""The process of one camera that the service opens itself: a webcam, a stream, a file. It sends what it sees.

    echo '{"source": "rtsp://...", "to": "ipc://...", "name": "cell-3"}' \\
        | python -m stream.service.ingress.camera_process

A process each, so that a driver or decoder that hangs or crashes costs its own camera only. What it is told comes over
stdin, because addresses may hold passwords and others can read a command line.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from engines.errors import FrameError, GatestreamError
from stream.frame import Frame
from stream.notices import ignore_terminal_signals, log_to_stderr, silence_decoders
from stream.service.ingress.sender import Sender
from stream.sources import open_source
from stream.sources.base import Source

log = logging.getLogger("gatestream.service")


def send_frames(source: Source, sender: Sender, most: int | None = None,
                goes_on: Callable[[], bool] = lambda: True) -> None:
    """Sends a source's pictures until it ends, `most` are sent, or `goes_on` says no. Recordings get times of today."""
    offset_s = 0.0 if source.info.live else time.time()
    for sent, frame in enumerate(item for item in source.frames() if isinstance(item, Frame)):
        if sent == most or not goes_on():
            return
        try:
            sender.send(frame.image_bgr, frame.captured_at + offset_s)
        except FrameError as error:
            log.warning("%s", error)


def main() -> int:
    """The process: ends with the source, at SIGTERM, or when the service is no more."""
    ignore_terminal_signals()
    silence_decoders()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    said = json.load(sys.stdin)
    service = os.getppid()
    with log_to_stderr():
        try:
            with (open_source(said["source"], camera=said["name"], policy="newest") as source,
                  Sender(said["to"], said["name"]) as sender):
                send_frames(source, sender, goes_on=lambda: os.getppid() == service)
        except KeyboardInterrupt:
            return 0
        except GatestreamError as error:
            log.error("camera %s: %s", said["name"], " ".join(str(error).split()))
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
