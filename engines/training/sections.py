"""A labelled frame of a training stream, and what the makers of its sections share."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.errors import DatasetError
from engines.synthetic import Pose, Scene
from engines.training.sources import MARGIN, TrainingSources
from engines.training.stream_augment import Augmentation

Image = NDArray[np.uint8]
T = TypeVar("T")
GRACE_FRAMES = 2  # frames after an action's end in which either answer is right


class LabelledFrame(NamedTuple):
    """One frame and its truth."""

    image_bgr: Image
    label: int  # index of a truth, see `TrainingSources`
    progress: float = 0.0  # share of the action already seen, 0..1
    weight: float = 1.0  # how much this frame's answer counts
    gesture: int = -1  # number of the action in its stream (in its section, until a stream counts it), -1 outside
    tip_xy: tuple[float, float] | None = None  # fingertip as a fraction of the frame, None where unknown or out of view
    source: str = ""  # the recording it is of


class Sections:
    """Makes sections of one stream: frames of `size_hw` at `rate` a second, decided by `rng`.

    strength: of the augmentation; 0 shows recordings as they are, but for mirrors.
    """

    def __init__(self, sources: TrainingSources, size_hw: tuple[int, int], rate: float, rng: np.random.Generator,
                 strength: float = 1.0) -> None:
        self._sources, self._size_hw, self._rate, self._rng, self._strength = sources, size_hw, rate, rng, strength

    def _frame_count(self, seconds: float) -> int:
        return max(1, round(seconds * self._rate))

    def _speed(self, slowest: float, fastest: float) -> float:
        return float(np.exp(self._rng.uniform(np.log(slowest), np.log(fastest))))

    def _augmentation(self, mirror: bool = False) -> Augmentation:
        """One camera, light and lens; another place may shine through."""
        place = self._other_place()
        mix = None if place is None else np.ascontiguousarray(place[:self._size_hw[0], :self._size_hw[1]])
        return Augmentation(self._rng, self._size_hw, self._strength, mirror, mix)

    def _other_place(self) -> Image | None:
        """A place of another recording or a rendered one, larger than the input; None without any."""
        if not (self._sources.places and self._strength):
            return None
        segment = choose(self._sources.places, self._rng)
        if segment is not None:
            try:
                return self._sources.place(segment, self._size_hw, self._rng)
            except DatasetError:
                pass  # it is named where it is to be shown itself
        height, width = self._size_hw
        return Scene(self._rng, (round(height * MARGIN), round(width * MARGIN))).draw(Pose(None), 0.0)


def choose(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of them, each as likely."""
    return options[int(rng.integers(len(options)))]
