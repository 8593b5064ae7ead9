"""The process of one camera that the service opens itself, a webcam, a stream or a file: sends its frames.

    echo '{"source": "rtsp://...", "to": "ipc://...", "name": "cell-3"}' \\
        | python -m stream.service.ingress.camera_process

A process each, so that a driver or decoder that hangs or crashes costs its own camera only. The request comes over
stdin, because addresses may hold passwords and other users can read a command line."""

import logging
import math
import signal
import sys
from contextlib import suppress

from engines.errors import FrameError
from stream.clock import unix_time
from stream.frame import Frame
from stream.service.ingress.sender import Sender
from stream.service.worker.processes import run_process
from stream.sources import open_source
from stream.sources.base import Source

log = logging.getLogger("gatestream.service")


def send_frames(source: Source, sender: Sender, most: int | None = None) -> None:
    """Sends a source's frames until it ends or `most` are sent; only those that the receiver wants, if it says so. What
    is no live camera is sent as if it began now, whether its times are those of a file or of the day of recording."""
    offset_s = 0.0 if source.info.live else None
    sent, latest_at, next_at, between = 0, math.inf, -math.inf, False
    for frame in source.frames():
        if sent == most:
            return
        if not isinstance(frame, Frame):
            continue
        if offset_s is None:
            offset_s = unix_time() - frame.captured_at
        at = frame.captured_at + offset_s
        wanted = not latest_at < at < next_at
        if not (wanted or between):
            continue
        try:
            answer = sender.send(frame.image_bgr, at, pixels=wanted) or {}
            sent, latest_at, next_at = sent + 1, at, answer.get("next_at") or -math.inf
            between = answer.get("between", False)
        except FrameError as error:
            log.warning("%s", error)


def _work(request: dict[str, str]) -> None:
    """Sends until the source ends or SIGTERM comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (suppress(KeyboardInterrupt),
          open_source(request["source"], camera=request["name"], policy="newest") as source,
          Sender(request["to"], request["name"], lossless=True) as sender):
        send_frames(source, sender)


if __name__ == "__main__":
    sys.exit(run_process(_work, lambda request: f"camera {request['name']}"))
