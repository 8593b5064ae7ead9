"""Policy "newest" for files: play at the file's own pace, as a camera would; who is late misses frames."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from stream.frame import Frame, Gap
from stream.sources.base import Source


class PacedSource(Source):
    """`source`, each frame not before its time. A frame whose successor is already due is lost, and counted."""

    def __init__(self, source: Source, now: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._source, self._now, self._sleep = source, now, sleep
        self._skipped = 0
        self.info, self.notes = source.info, source.notes

    def close(self) -> None:
        super().close()
        self._source.close()

    def frames(self) -> Iterator[Frame | Gap]:
        start_s, waiting = 0.0, None
        for item in chain(self._source.frames(), [None]):
            self.lost = self._source.lost + self._skipped
            if isinstance(item, Gap):
                yield item
                continue
            if waiting is not None:
                if item is not None and self._now() >= start_s + item.captured_at:
                    self._skipped += 1
                    self.lost += 1
                    waiting = replace(item, lost=item.lost + waiting.lost + 1)
                    continue
                if not self._wait_until(start_s + waiting.captured_at, self._now, self._sleep):
                    return
                yield waiting
            elif item is not None:
                start_s = self._now() - item.captured_at
            waiting = item
