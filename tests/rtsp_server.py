"""An RTSP server that plays H.264 pictures over and over, by the clock on the wall. Runs in the system's Python, with
Debian's packages python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good, gstreamer1.0-plugins-bad.

    /usr/bin/python3 rtsp_server.py PICTURES RATE PORT SHIFT_S       # rtsp://127.0.0.1:PORT/live

PICTURES: each preceded by its length (4 bytes, big-endian); SHIFT_S: by how much it is ahead."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LAUNCH = ("( appsrc name=pictures is-live=true format=time do-timestamp=true "
          "caps=video/x-h264,stream-format=byte-stream,alignment=au ! h264parse ! rtph264pay name=pay0 pt=96 )")


def read_pictures(path: Path) -> list[bytes]:
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(data[4:4 + size])
        data = data[4 + size:]
    return found


def play(source: Any, pictures: list[bytes], rate: float, shift: int) -> None:
    number = int(time.time() * rate) + 1
    while True:
        time.sleep(max(0.0, number / rate - time.time()))
        picture = Gst.Buffer.new_wrapped(pictures[(number + shift) % len(pictures)])
        if source.emit("push-buffer", picture) != Gst.FlowReturn.OK:
            return
        number = max(number + 1, int(time.time() * rate))  # it may have been stopped


def main(path: str, rate: str, port: str, shift_s: str) -> None:
    Gst.init(None)
    pictures, server, factory = read_pictures(Path(path)), GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()

    def configure(_: object, media: Any) -> None:
        source = media.get_element().get_by_name("pictures")
        arguments = source, pictures, float(rate), round(float(rate) * float(shift_s))
        threading.Thread(target=play, args=arguments, daemon=True).start()

    factory.set_launch(LAUNCH)
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
