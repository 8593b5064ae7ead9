"""The source seam: what the rest of `stream` sees of a camera, a file or a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from stream.frame import Frame, Gap

Policy = Literal["auto", "every", "newest"]


@dataclass(frozen=True)
class SourceInfo:
    """What a source says about itself when it is opened.

    camera: the name its frames carry; live: frames cannot be had again, times are Unix time;
    size_hw: pixels, None when unknown or when sizes differ; fps: nominal rate, None when unknown or absurd;
    frames: how many the source claims to have, None when unknown. A claim is for progress bars, never a limit.
    """

    camera: str
    live: bool
    size_hw: tuple[int, int] | None
    fps: float | None
    frames: int | None


class Source(ABC):
    """A camera, file or folder, opened by its constructor.

        with open_source("clip.mp4") as source:
            for item in source.frames():        # Frame | Gap
                ...

    lost: frames this source could not give (unreadable, damaged, overwritten by newer ones), counted so far.
    It includes those that were lost after the last frame, which no `Frame.lost` can tell of.
    """

    info: SourceInfo
    lost: int = 0

    @abstractmethod
    def frames(self) -> Iterator[Frame | Gap]:
        """Gives frames in order of time, once. Ends at the end of the stream or soon after `close`.

        Numbers leave room for what was lost: a frame's index is the one before + 1 + its `lost`.
        Raises SourceError when the stream stops and does not come back.
        """

    @abstractmethod
    def close(self) -> None:
        """Gives back what the source holds and ends `frames` soon.

        May be called twice, from another thread, and from a signal handler: it never waits for the reader.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
