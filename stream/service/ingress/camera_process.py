"""The process of one camera that the service opens itself, a webcam, a stream or a file: sends its frames.

    echo '{"source": "rtsp://...", "to": "ipc://...", "name": "cell-3"}' \\
        | python -m stream.service.ingress.camera_process

A process each, so that a driver or decoder that hangs or crashes costs its own camera only. The request comes over
stdin, because addresses may hold passwords and other users can read a command line."""

import signal
import sys
from contextlib import suppress

from stream.sender import Sender, send_frames
from stream.service.worker.processes import run_process
from stream.sources import open_source


def _work(request: dict[str, str]) -> None:
    """Sends until the source ends or SIGTERM comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (suppress(KeyboardInterrupt),
          open_source(request["source"], camera=request["name"], policy="newest") as source,
          Sender(request["to"], request["name"], lossless=True) as sender):
        send_frames(source, sender)


if __name__ == "__main__":
    sys.exit(run_process(_work, lambda request: f"camera {request['name']}"))
