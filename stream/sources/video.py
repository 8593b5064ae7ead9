"""Video files: every frame counts, times come from the file's own timestamps.

Time rules (`StreamTime`): the first frame is at 0. A timestamp is used when it lies 1/480 s to ten minutes after
the frame before. When it does not (missing, stuck, running back, absurd), the frame follows the one before by the
nominal step: 1 / the header's rate, or 1/30 s when that is zero or absurd too. Two bad timestamps that agree
with each other are a timeline that began anew; it is followed from there on.

Damage: what the decoder cannot give is passed over, and counted as lost. When the frames so far came evenly, a
hole in their times shows how many are missing; in files of variable rate a hole is no loss. The header's claims of
length are never believed.
"""

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import cv2

from engines.errors import SourceError
from stream.frame import Frame, Gap
from stream.sources.base import Source, SourceInfo
from stream.sources.capture import Capture, OpenCvCapture, retrieve_bgr

FALLBACK_FPS = 30.0
SHORTEST_STEP_S = 1 / 480
LONGEST_STEP_S = 600.0
FAILED_GRABS = 50  # in a row; then the file has ended
EVEN_STEPS = 30  # how far back "evenly" looks
EVEN_SHARE = 0.9
FEWEST_STEPS = 3


class StreamTime:
    """Timestamps as found in files -> times that always rise, and the frames missing between them."""

    def __init__(self, fps: float | None) -> None:
        self.nominal_step_s = 1 / (fps or FALLBACK_FPS)
        self._origin_s = math.nan
        self._raw_s = math.nan
        self._time_s: float | None = None
        self._steps_s: deque[float] = deque(maxlen=EVEN_STEPS)

    def next(self, raw_s: float) -> tuple[float, int]:
        """Time of the next frame in seconds, and how many frames are missing before it."""
        if self._time_s is None:
            self._time_s, self._origin_s, self._raw_s = 0.0, raw_s, raw_s
            return 0.0, 0
        stamp_s, raw_step_s = raw_s - self._origin_s, raw_s - self._raw_s
        missing = 0
        if _believable(stamp_s - self._time_s):
            step_s = stamp_s - self._time_s
            missing = self._missing(step_s)
        elif _believable(raw_step_s):
            step_s = raw_step_s
            self._origin_s = raw_s - (self._time_s + step_s)
        else:
            step_s = self.nominal_step_s
            if not math.isfinite(self._origin_s):
                self._origin_s = raw_s - (self._time_s + step_s)
        self._raw_s = raw_s
        self._time_s += step_s
        self._steps_s.append(step_s / (missing + 1))
        return self._time_s, missing

    def _missing(self, step_s: float) -> int:
        if len(self._steps_s) < FEWEST_STEPS:
            return 0
        usual_s = sorted(self._steps_s)[len(self._steps_s) // 2]
        even = sum(abs(past_s - usual_s) <= 0.25 * usual_s for past_s in self._steps_s)
        return max(round(step_s / usual_s) - 1, 0) if even >= EVEN_SHARE * len(self._steps_s) else 0


def _believable(step_s: float) -> bool:
    return SHORTEST_STEP_S <= step_s <= LONGEST_STEP_S


class VideoFile(Source):
    """A video file through OpenCV (FFmpeg), upright when the file carries a rotation flag.

    fps: play at this rate, instead of by the file's times; capture: read from this instead of opening `path`, which
    then only names it.
    Raises SourceError when nothing in it can be read as a picture.
    """

    def __init__(self, path: Path | str, camera: str | None = None, fps: float | None = None,
                 capture: Capture | None = None) -> None:
        self._what, self._forced_fps = str(path), fps
        self._capture = capture or _open(Path(path))
        self._started = False
        self.info = SourceInfo(camera or Path(path).name, False, self._capture.size_hw, fps or self._capture.fps,
                               self._capture.claimed_frames)

    def close(self) -> None:
        super().close()
        if not self._started:  # else `frames` does it: FFmpeg must not lose a capture in the middle of a grab
            self._capture.release()

    def frames(self) -> Iterator[Frame | Gap]:
        if self._closed:
            return
        self._started = True
        time = StreamTime(self.info.fps)
        index = -1
        unread = failed_grabs = 0
        try:
            while not self._closed and failed_grabs < FAILED_GRABS:
                if not self._capture.grab():
                    failed_grabs += 1
                    continue
                failed_grabs = 0
                raw_s = math.nan if self._forced_fps else self._capture.position_s()
                image_bgr = retrieve_bgr(self._capture)
                if image_bgr is None:
                    unread += 1
                    self.lost += 1
                    continue
                captured_at, missing = time.next(raw_s)
                self.lost += max(missing - unread, 0)
                lost, unread = max(missing, unread), 0
                index += 1 + lost
                yield Frame(image_bgr, captured_at, index, self.info.camera, lost)
        finally:
            self._capture.release()
        if index < 0 and not self._closed:
            raise _unreadable(self._what, "not one picture in it can be decoded")


def _open(path: Path) -> Capture:
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}", "a readable video file",
                          "check the permissions of the file") from error
    if empty:
        raise _unreadable(str(path), "the file is empty")
    capture = OpenCvCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    if not capture.opened:
        raise _unreadable(str(path), "the file is no video, or its header is damaged or cut off")
    return capture


def _unreadable(what: str, why: str) -> SourceError:
    return SourceError(f"{what}: {why}", "a video that FFmpeg can read (mp4, mkv, webm, avi, mov)",
                       "check that the file is complete, or convert it, e.g. with ffmpeg -i IN OUT.mp4")
