"""Batches of endless streams: every row of a batch is a stream, a batch is its next T frames.

At some iterations a row begins anew, from fresh state (a trimmed clip); else it continues. When it does, and which
stream it then is, are functions of seed, row and iteration. So a run that begins in the middle gets the same batches,
and loader workers, who share out the rows, are free to be any number.

Legend: B rows, T frames of a chunk, H W the input's size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from engines.errors import GatestreamError
from engines.training.loss import Truth
from engines.training.process import load
from engines.training.sections import LabelledFrame

# (row, iteration it begins at, generator of its own) -> its frames
OpenStream = Callable[[int, int, np.random.Generator], Iterator[LabelledFrame]]


@dataclass(frozen=True)
class Batch:
    """One chunk of some rows: pixels uint8 [B, T, H, W, 3], whose rows are fresh [B], the truth [B, T], and a name
    for each row's frames."""

    pixels: Tensor
    fresh: Tensor
    truth: Truth
    names: tuple[str, ...]


@dataclass(frozen=True)
class StreamSchedule:
    """When rows begin anew: at the first iteration, and at a `fresh_share` of the others."""

    seed: int
    fresh_share: float

    def begins(self, row: int, iteration: int) -> bool:
        draw = np.random.default_rng((self.seed, row, iteration, 0)).random()
        return iteration == 0 or bool(draw < self.fresh_share)

    def began(self, row: int, iteration: int) -> int:
        """When the stream began that a row shows at an iteration."""
        while not self.begins(row, iteration):
            iteration -= 1
        return iteration

    def generator(self, row: int, began: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, row, began, 1))


class StreamLoader(IterableDataset["Batch | GatestreamError"]):
    """Batches of `rows`, each with the next `chunk` frames of its stream; a worker serves its share of the rows.

        for batch in StreamLoader(open_stream, StreamSchedule(0, 0.35), range(4), chunk=32).batches(0, 3600): ...
    """

    def __init__(self, open_stream: OpenStream, schedule: StreamSchedule, rows: Sequence[int], chunk: int,
                 workers: int = 0) -> None:
        self.rows, self._open, self._schedule, self._chunk = tuple(rows), open_stream, schedule, chunk
        self._workers, self._first, self._end = min(workers, len(self.rows)), 0, 0

    def __iter__(self) -> Iterator[Batch | GatestreamError]:
        worker = get_worker_info()
        try:
            yield from self._serve(self.rows if worker is None else self.rows[worker.id::worker.num_workers])
        except GatestreamError as error:
            yield error

    def _serve(self, rows: Sequence[int]) -> Iterator[Batch]:
        began = {row: self._schedule.began(row, self._first) for row in rows}
        streams = {row: self._begin(row, began[row]) for row in rows}
        for row, stream in streams.items():
            for _ in islice(stream, self._chunk * (self._first - began[row])):
                pass
        for iteration in range(self._first, self._end):
            for row in rows:
                if iteration > self._first and self._schedule.begins(row, iteration):
                    began[row], streams[row] = iteration, self._begin(row, iteration)
            yield collate([list(islice(streams[row], self._chunk)) for row in rows],
                          [began[row] == iteration for row in rows],
                          [f"row {row}, stream of iteration {began[row]}" for row in rows])

    def _begin(self, row: int, iteration: int) -> Iterator[LabelledFrame]:
        return self._open(row, iteration, self._schedule.generator(row, iteration))

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """Those of iteration `first` up to `end`, whatever the number of loader workers. Raises what they raise."""
        self._first, self._end = first, end
        parts = max(1, self._workers)
        served = [row for part in range(parts) for row in self.rows[part::parts]]
        order = torch.tensor([served.index(row) for row in self.rows])
        pieces = load(self, self._workers, prefetch=4)
        for _ in range(first, end):
            yield _join([next(pieces) for _ in range(parts)], order)


def collate(chunks: Sequence[Sequence[LabelledFrame]], fresh: Sequence[bool], names: Sequence[str]) -> Batch:
    """A batch of some rows' frames. Sources of frames that are named are added to the rows' names."""
    def column(of: Callable[[LabelledFrame], Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[of(frame) for frame in chunk] for chunk in chunks], dtype=dtype)

    pixels = torch.from_numpy(np.stack([np.stack([frame.image_bgr for frame in chunk]) for chunk in chunks]))
    nowhere = (float("nan"), float("nan"))
    truth = Truth(column(lambda f: f.label, torch.long), column(lambda f: f.progress, torch.float32),
                  column(lambda f: f.weight, torch.float32), column(lambda f: f.gesture, torch.long),
                  column(lambda f: f.tip_xy or nowhere, torch.float32))
    sources = [", ".join(dict.fromkeys(frame.source for frame in chunk if frame.source)) for chunk in chunks]
    return Batch(pixels, torch.tensor(list(fresh)), truth,
                 tuple(f"{name}: {source}" if source else name for name, source in zip(names, sources, strict=True)))


def _join(pieces: Sequence[Batch], order: Tensor) -> Batch:
    names = [name for piece in pieces for name in piece.names]
    truth = Truth(*(torch.cat(columns)[order] for columns in zip(*(piece.truth for piece in pieces), strict=True)))
    return Batch(torch.cat([piece.pixels for piece in pieces])[order],
                 torch.cat([piece.fresh for piece in pieces])[order], truth, tuple(names[i] for i in order.tolist()))
