"""The process of one camera that the service opens itself, a webcam, a stream or a file: sends its frames.

    echo '{"source": "rtsp://...", "to": "ipc://...", "name": "cell-3"}' \\
        | python -m stream.service.ingress.camera_process

A process each, so that a driver or decoder that hangs or crashes costs its own camera only. The request comes over
stdin, because addresses may hold passwords and other users can read a command line."""

import logging
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from itertools import chain, repeat

import zmq

from engines.errors import SourceError
from stream.sender import Sender, send_frames
from stream.service.worker.processes import run_process
from stream.sources import open_source
from stream.sources.base import Source
from stream.wire.messages import encode_header

log = logging.getLogger("gatestream.service")

ALIVE_EVERY_S = 2.0  # between two signs of life
OPENS_AGAIN_S = (1.0, 2.0, 5.0)  # between two tries to open its source, times a random 0.5 to 1; the last is repeated


def open_patiently(source: str, camera: str) -> Source:
    """Opens a source, however often that has to be tried: another process for each try would cost a second of a core.
    Raises UsageError, and SourceError where a driver holds the last try still, as only the process's end helps then."""
    told = set[str]()
    for pause_s in chain(OPENS_AGAIN_S, repeat(OPENS_AGAIN_S[-1])):
        try:
            return open_source(source, camera=camera, policy="newest")
        except SourceError as error:
            if any(thread.name.startswith("opening ") for thread in threading.enumerate()):
                raise
            if error.got not in told:
                told.add(error.got)
                log.error("camera %s: %s; it is tried again", camera, " ".join(str(error).split()))
        time.sleep(pause_s * (0.5 + 0.5 * random.random()))
    raise AssertionError("it is tried for ever")


def show_life(address: str, camera: str, ended: threading.Event) -> None:
    """Sends signs of life until `ended`."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        while not ended.wait(ALIVE_EVERY_S):
            with suppress(zmq.Again):  # a receiver that is held up
                socket.send_multipart([b"", encode_header(camera, alive=True), b""], zmq.NOBLOCK)


def _work(request: dict[str, str]) -> None:
    """Sends until the source ends or SIGTERM comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    opened = threading.Event()
    threading.Thread(target=show_life, args=(request["to"], request["name"], opened), daemon=True).start()
    with (suppress(KeyboardInterrupt),
          open_patiently(request["source"], request["name"]) as source,
          Sender(request["to"], request["name"], lossless=True) as sender):
        opened.set()  # from now on its pictures show that it lives
        send_frames(source, sender)


if __name__ == "__main__":
    sys.exit(run_process(_work, lambda request: f"camera {request['name']}"))
