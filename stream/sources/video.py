"""Video files: every frame counts, times come from the file's own timestamps (`engines.decoding.times`).

Damage: what the decoder cannot give, or marks as corrupt, is passed over and counted as lost. The header's claims of
length are never believed."""

import math
from collections.abc import Iterator
from pathlib import Path

import av.error

from engines.decoding.paths import printable
from engines.decoding.times import StreamTime
from engines.decoding.video import VideoReader, reason_of
from engines.errors import SourceError
from stream.frame import Frame, Gap
from stream.sources.base import Source, SourceInfo


class VideoFile(Source):
    """A video file, upright and deinterlaced.
    fps: play at this rate, instead of by the file's times; reader: read from this instead of opening `path`, which
    then only names it. Raises SourceError when nothing in it can be read as a picture."""

    def __init__(self, path: Path | str, camera: str | None = None, fps: float | None = None,
                 reader: VideoReader | None = None) -> None:
        self._fps = fps
        self._reader = reader or open_video(Path(path))
        self.notes = self._reader.notes
        self._started = False
        self.info = SourceInfo(camera or printable(Path(path).name), False, self._reader.size_hw,
                               fps or self._reader.rate or None, self._reader.count or None)

    def close(self) -> None:
        super().close()
        if not self._started:  # else `frames` does it: a reader belongs to one thread
            self._reader.close()

    def frames(self) -> Iterator[Frame | Gap]:
        if self._closed:
            return
        self._started = True
        chosen = StreamTime(self._fps) if self._fps else None
        index, unread = -1, 0
        try:
            for found in self._reader.frames():
                if self._closed:
                    return
                if found is None:
                    unread += 1
                    self.lost += 1
                    continue
                captured_at, missing = chosen.next(math.nan) if chosen else (found.at_s, found.missing)
                self.lost += max(missing - unread, 0)
                lost, unread = max(missing, unread), 0
                index += 1 + lost
                yield Frame(found.picture, captured_at, index, self.info.camera, lost)
        except av.error.FFmpegError as error:
            raise SourceError(f"{self._reader.name} breaks off ({reason_of(error)})", "a readable file",
                              "check the disk or the connection it comes from") from error
        finally:
            self._reader.close()


def open_video(path: Path) -> VideoReader:
    """Raises SourceError with what is wrong with the file."""
    name = printable(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SourceError(f"{name}: the file is empty", "a video file", "get it again")
        return VideoReader(path)
    except av.error.FFmpegError as error:
        raise SourceError(f"{name}: the file is no video, or its header is damaged or cut off ({reason_of(error)})",
                          "a video that FFmpeg can read (mp4, mkv, webm, avi, mov)",
                          "check that the file is complete, or convert it, e.g. with ffmpeg -i IN OUT.mp4") from error
    except OSError as error:
        raise SourceError(f"{name}: {error.strerror or error}", "a readable video file",
                          "check the permissions of the file") from error
