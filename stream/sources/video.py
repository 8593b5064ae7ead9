"""Video files: every frame counts, times come from the file's own timestamps (`engines.decoding.times`).

Damage: what the decoder cannot give, or marks as corrupt, is passed over and counted as lost. The header's claims of
length are never believed."""

import math
from collections.abc import Iterator
from pathlib import Path

from engines.decoding.paths import printable
from engines.decoding.times import StreamTime
from engines.decoding.video import VideoReader, open_video
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
        finally:
            self._reader.close()
