"""The source seam: what the rest of `stream` sees of a camera, a file or a folder."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from stream.frame import Frame, Gap

Policy = Literal["auto", "every", "newest"]
SLICE_S = 0.1  # waits look up this often, so that `close` takes no lock and may come from a signal handler


@dataclass(frozen=True)
class SourceInfo:
    """What a source states when it is opened; None where it is unknown."""

    camera: str  # the name its frames carry
    live: bool  # frames cannot be had again, times are Unix time
    size_hw: tuple[int, int] | None  # pixels; None also when sizes differ
    fps: float | None  # nominal rate; None also when absurd
    frames: int | None  # a claim, for progress bars, never a limit


class Source(ABC):
    """A camera, file or folder, opened by its constructor.

        with open_source("clip.mp4") as source:
            for item in source.frames():        # Frame | Gap
                ...

    `frames` belongs to one thread; `close` may be called from any."""

    info: SourceInfo
    notes: Sequence[str] = ()
    """What a person should know of how this source is read, a line each; more may come while it is read."""
    lost: int = 0
    """Frames so far that could not be read or were overwritten by newer ones, those after the last frame included."""
    _closed = False

    @abstractmethod
    def frames(self) -> Iterator[Frame | Gap]:
        """Gives frames in order of time, once. Ends at the end of the stream or soon after `close`.
        Numbers leave room for what was lost: a frame's index is the one before + 1 + its `lost`.
        Raises SourceError when the stream stops and does not come back."""

    def close(self) -> None:
        """Ends `frames` soon, and releases the camera or file. May be called twice, also from a signal handler."""
        self._closed = True

    def _wait_until(self, due_s: float, now: Callable[[], float], sleep: Callable[[float], None]) -> bool:
        """Waits until `now()` is `due_s`; False when the source was closed meanwhile."""
        while not self._closed and (left_s := due_s - now()) > 0:
            sleep(min(left_s, SLICE_S))
        return not self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
