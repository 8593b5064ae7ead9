"""Image files as a stream: natural order (img2 before img10), a fixed rate, unreadable ones passed over."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from engines.decoding.images import is_animated, read_image
from engines.decoding.paths import natural_key, printable
from engines.errors import FrameError, SourceError
from stream.frame import Frame, Gap
from stream.sources.base import Source, SourceInfo

DEFAULT_FPS = 30.0


class ImageFiles(Source):
    """Images in natural order, 1 / fps seconds apart. Sizes may differ; an unreadable image keeps its place in time.
    `frames` raises SourceError when not one of them can be read."""

    def __init__(self, paths: Sequence[Path], camera: str, fps: float | None = None) -> None:
        self._paths = sorted(paths, key=natural_key)
        self._fps = fps or DEFAULT_FPS
        self.info = SourceInfo(camera, False, None, self._fps, len(self._paths))
        if len(paths) == 1 and is_animated(self._paths[0]):
            self.notes = [f"{printable(paths[0])} is an animation, of which the first picture alone is read"]

    def frames(self) -> Iterator[Frame | Gap]:
        lost, refusal = 0, None
        for index, path in enumerate(self._paths):
            if self._closed:
                return
            try:
                image_bgr = read_image(path)
            except FrameError as error:
                lost, refusal = lost + 1, error
                self.lost += 1
                continue
            yield Frame(image_bgr, index / self._fps, index, self.info.camera, lost)
            lost = 0
        if self.lost == len(self._paths) and refusal is not None:
            raise SourceError(f"{len(self._paths)} images, none readable ({refusal.got})", refusal.wanted, refusal.do)
