"""Webcams, by number."""

from stream.sources.base import Policy
from stream.sources.capture import Capture, OpenCvCapture
from stream.sources.reader import Connect, LiveSource, Timeouts, Timing

TIMEOUTS = Timeouts(open_s=10.0, give_up_s=20.0)


class Webcam(LiveSource):
    """Webcam number `index` of this machine. Raises SourceError at once when there is none."""

    def __init__(self, index: int, camera: str | None = None, policy: Policy = "auto",
                 connect: Connect | None = None, timing: Timing | None = None) -> None:
        def open_webcam() -> Capture | None:
            capture = OpenCvCapture(index)
            return capture if capture.opened else None

        super().__init__(connect or open_webcam, f"webcam {index}", camera or str(index), TIMEOUTS, policy, timing)
