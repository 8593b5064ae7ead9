"""Whether pictures look like what a camera films: one line for what a person would call broken."""

import numpy as np
from numpy.typing import NDArray

from engines.decoding.images import Image

SAMPLES = 24  # points of a picture across and down that are compared
NOISE = 2  # grey levels by which a picture may change and be the same
FROZEN_S = 60.0
PLAIN_S = 5.0  # of one colour for so long
RATE_AFTER_S = 10.0
RATE_DIFFERS = 0.2  # of the stated rate
HOLE_SHARE = 0.5  # of a recording without pictures, in one piece


class PictureMonitor:
    """Watches the pictures of one stream. Each kind of fault is noted once.

        monitor = PictureMonitor("desk.mp4", stated_rate=30.0, stated_s=600.0)
        for frame in frames:
            for line in monitor.add(frame.captured_at, frame.image_bgr): print(line)
        for line in monitor.finish(): print(line)

    stated_rate, stated_s: frames per second and length that the source states, None or 0 where it does not."""

    def __init__(self, name: str, stated_rate: float | None = None, stated_s: float | None = None) -> None:
        self._name, self._rate, self._stated_s = name, stated_rate or 0.0, stated_s or 0.0
        self._noted: set[str] = set()
        self._count = self._lost = self._looks = self._changes = 0
        self._first_s = self._latest_s = self._looked_s = self._changed_s = self._hole_s = 0.0
        self._plain = True
        self._sample: NDArray[np.int16] | None = None

    def add(self, at_s: float, image_bgr: Image | None, lost: int = 0) -> list[str]:
        """Takes the next picture, or None for one that nobody made, and its time in seconds; lost: frames that are
        missing before it."""
        if self._count == 0:
            self._first_s = self._latest_s = at_s
        if image_bgr is not None:
            self._look(at_s, image_bgr)
        self._hole_s = max(self._hole_s, at_s - self._latest_s)
        self._count, self._lost, self._latest_s = self._count + 1, self._lost + lost, at_s
        return self._note(self._plain and self._seconds >= PLAIN_S,
                          self._looked_s - self._changed_s >= FROZEN_S, self._seconds >= RATE_AFTER_S)

    def _look(self, at_s: float, image_bgr: Image) -> None:
        rows, columns = (np.linspace(0, size - 1, min(SAMPLES, size)).astype(int) for size in image_bgr.shape[:2])
        sample = image_bgr[np.ix_(rows, columns)].astype(np.int16)
        if self._sample is None or sample.shape != self._sample.shape or np.abs(sample - self._sample).max() > NOISE:
            self._sample, self._changed_s, self._changes = sample, at_s, self._changes + 1
        self._plain = self._plain and bool(np.ptp(sample, axis=(0, 1)).max() <= NOISE)
        self._looks, self._looked_s = self._looks + 1, at_s

    def finish(self, whole: bool = True) -> list[str]:
        """What can be said only at the end of a recording. whole: all of its frames were added, not some of them."""
        if not whole:
            return self._once("frozen", self._changes == 1 and self._looks > 2 and self._seconds >= 1,
                              f"at {self._looks} places it shows the same picture{', one colour' * self._plain}")
        few = self._count == 1 and self._stated_s >= 1
        lines = self._once("one picture", few, f"one picture in a video that states {self._stated_s:.1f} s")
        lines += self._once("hole", self._seconds > 2 and self._hole_s > HOLE_SHARE * self._seconds,
                            f"{self._hole_s:.1f} of its {self._seconds:.1f} s are without a picture, in one piece")
        return lines + self._note(self._plain, self._changes == 1 and self._looks > 1
                                  and self._seconds >= 1, self._seconds >= 1 and self._count >= 10)

    @property
    def _seconds(self) -> float:
        return self._latest_s - self._first_s

    def _note(self, plain: bool, frozen: bool, enough: bool) -> list[str]:
        colour = None if self._sample is None else tuple(self._sample[0, 0].tolist())
        lines = self._once("plain", plain and self._looks > 2, f"every picture so far is of one colour (BGR {colour})")
        lines += self._once("frozen", frozen and not plain,
                            f"the picture has not changed for {self._looked_s - self._changed_s:.0f} s")
        rate = (self._count + self._lost - 1) / self._seconds if enough and self._seconds > 0 else self._rate
        return lines + self._once("rate", self._rate > 0 and abs(rate - self._rate) > RATE_DIFFERS * self._rate,
                                  f"{rate:.3g} frames a second come, where {self._rate:.3g} are stated")

    def _once(self, kind: str, so: bool, text: str) -> list[str]:
        if not so or kind in self._noted:
            return []
        self._noted.add(kind)
        return [f"{self._name}: {text}"]
