"""Batches of trimmed clips: some frames spread over a segment, in an order that seed and epoch decide.

Legend: B clips, T frames of a clip, H W the input's size, K heads.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as Items

from engines.datasets.base import Segment
from engines.datasets.decode import MAX_UNREADABLE
from engines.errors import DatasetError, GatestreamError
from engines.training.loss import UNKNOWN
from engines.training.process import load

log = logging.getLogger("gatestream.training")
Images = NDArray[np.uint8]
# Segment, generator of its own -> frames at the input's size, uint8 [T, H, W, 3] BGR, and whether they are mirrored.
ReadClip = Callable[[Segment, np.random.Generator], tuple[Images, bool]]


@dataclass(frozen=True)
class ClipBatch:
    """Some clips, of the same size each."""

    pixels: Tensor  # uint8 [B, T, H, W, 3]
    labels: Tensor  # [B, K], UNKNOWN where a head has none
    names: tuple[str, ...]  # of the segments


@dataclass(frozen=True)
class ClipOrder:
    """Which clips each batch holds: every epoch is a permutation of all, whose rest that fills no batch is left out."""

    seed: int
    clips: int  # how many there are
    rows: int  # clips of a batch

    @property
    def batches_per_epoch(self) -> int:
        return max(1, self.clips // self.rows)

    def batches(self, first: int, end: int, rows: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        """(epoch, clip) of these rows of each batch; batches are counted through all epochs, from `first` to `end`."""
        for epoch in range(first // self.batches_per_epoch, -(-end // self.batches_per_epoch)):
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.clips)
            begin = epoch * self.batches_per_epoch
            for place in range(max(first - begin, 0), min(end - begin, self.batches_per_epoch)):
                yield [(epoch, int(shuffled[(place * self.rows + row) % self.clips])) for row in rows]


class Clip(NamedTuple):
    """What training sees of a segment."""

    pixels: Images  # uint8 [T, H, W, 3]
    labels: list[int]  # of each head, UNKNOWN where it has none
    name: str


class ClipDataset(Items["ClipBatch | GatestreamError"]):
    """Batches of clips by (epoch, number). In place of one that cannot be read the next is taken; a warning names it.

    strict: do not take another.
    """

    def __init__(self, segments: Sequence[Segment], heads: Mapping[str, tuple[str, ...]], read_clip: ReadClip,
                 seed: int, mirrored: Mapping[str, Mapping[str, str]], strict: bool = False) -> None:
        self._segments, self._heads, self._read_clip, self._seed = segments, heads, read_clip, seed
        self._mirrored, self._give_up = mirrored, 1 if strict else MAX_UNREADABLE

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> ClipBatch | GatestreamError:
        try:
            pixels, labels, names = zip(*(self.clip(*key) for key in keys), strict=True)
        except GatestreamError as error:
            return error
        return ClipBatch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), names)

    def clip(self, epoch: int, number: int) -> Clip:
        """Raises what reading the segment raised."""
        rng = np.random.default_rng((self._seed, epoch, number))
        for step in range(self._give_up):
            segment = self._segments[(number + step) % len(self._segments)]
            try:
                images, mirror = self._read_clip(segment, rng)
                return Clip(images, self.indices(segment, mirror), segment.id)
            except DatasetError as error:
                log.warning("skipped: %s", error)
                last = error
        raise last

    def indices(self, segment: Segment, mirror: bool = False) -> list[int]:
        """The label of each head, as it is in a mirror if asked."""
        found = []
        for head, labels in self._heads.items():
            label = segment.labels.get(head, "")
            if mirror:
                label = self._mirrored.get(head, {}).get(label, label)
            found.append(labels.index(label) if label in labels else UNKNOWN)
        return found

    def batches(self, keys: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[ClipBatch]:
        """A batch for each list of keys, made by so many loader workers. Raises what reading a clip raised."""
        return load(self, workers, prefetch=2, order=keys)


def can_mirror(segment: Segment, mirrored: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether all of a segment's labels have a name in a mirror."""
    return all(mirrored.get(head, {}).get(label, label) for head, label in segment.labels.items())
