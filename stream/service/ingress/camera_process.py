"""The process of one camera that the service opens itself, a webcam, a stream or a file: sends its frames.

    echo '{"source": "rtsp://...", "to": "ipc://...", "name": "cell-3"}' \\
        | python -m stream.service.ingress.camera_process

A process each, so that a driver or decoder that hangs or crashes costs its own camera only. The request comes over
stdin, because addresses may hold passwords and other users can read a command line."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from engines.errors import FrameError
from stream.frame import Frame
from stream.service.ingress.sender import Sender
from stream.service.worker.processes import run_process
from stream.sources import open_source
from stream.sources.base import Source

log = logging.getLogger("gatestream.service")


def send_frames(source: Source, sender: Sender, most: int | None = None,
                goes_on: Callable[[], bool] = lambda: True) -> None:
    """Sends a source's frames until it ends, `most` are sent, or `goes_on` is false. What is no live camera is sent as
    if it began now, whether its times are those of a file or of the day when it was recorded."""
    offset_s = 0.0 if source.info.live else None
    for sent, frame in enumerate(item for item in source.frames() if isinstance(item, Frame)):
        if sent == most or not goes_on():
            return
        if offset_s is None:
            offset_s = time.time() - frame.captured_at
        try:
            sender.send(frame.image_bgr, frame.captured_at + offset_s)
        except FrameError as error:
            log.warning("%s", error)


def _work(request: dict[str, str]) -> None:
    """Sends until the source ends, SIGTERM comes, or the service has ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    service = os.getppid()
    with (suppress(KeyboardInterrupt),
          open_source(request["source"], camera=request["name"], policy="newest") as source,
          Sender(request["to"], request["name"]) as sender):
        send_frames(source, sender, goes_on=lambda: os.getppid() == service)


if __name__ == "__main__":
    sys.exit(run_process(_work, lambda request: f"camera {request['name']}"))
