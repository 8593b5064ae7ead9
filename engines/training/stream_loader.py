"""Endless, labelled training streams, and batches of them: each row is a stream, a batch is its next T frames.

A stream is what a head camera sees over hours, at the model's frame rate: a chain of sections, drawn at random. At some
iterations a row begins anew, from fresh state (a trimmed clip); else it continues. When it does, and which stream it
then is, are functions of seed, row and iteration. So a run that begins in the middle gets the same batches, and loader
workers, who share out the rows, are free to be any number.

Legend: B rows, T frames of a chunk, H W the input's size."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from engines.errors import DatasetError, GatestreamError
from engines.training.loss import Truth
from engines.training.process import load
from engines.training.sections import LabelledFrame, RecordedSections, RenderedSections
from engines.training.sources import TrainingSources

MOMENT_S = (0.6, 3.0)  # how long a moment of idle time lasts beside whole actions: about as long as they
# (row, iteration it begins at, generator of its own) -> its frames
OpenStream = Callable[[int, int, np.random.Generator], Iterator[LabelledFrame]]


@dataclass(frozen=True)
class SectionShares:
    """How often a stream shows what, where the sources have it."""

    idle: float = 0.13  # of all sections: recorded time without actions
    rendered_idle: float = 0.22  # of all sections: rendered hands without labelled actions
    rendered: float = 0.45  # of the others, for labels that can be drawn: rendered ones


class TrainingStream:
    """A stream for one row of a training batch, decided by `rng` alone.

        frames = TrainingStream(sources, (72, 96), 5.0, rng, SectionShares()).frames()

    rate: frames a second; strength, strict: see `Sections`, `RecordedSections`, whose DatasetError all methods raise.
    """

    def __init__(self, sources: TrainingSources, size_hw: tuple[int, int], rate: float, rng: np.random.Generator,
                 shares: SectionShares, strength: float = 1.0, strict: bool = False) -> None:
        self._sources, self._rate, self._rng, self._shares = sources, rate, rng, shares
        self._recorded = RecordedSections(sources, size_hw, rate, rng, strength, strict)
        self._rendered = RenderedSections(sources, size_hw, rate, rng, strength)
        drawable = set(sources.drawable.values())
        self._rendered_share = shares.rendered * len(drawable) / len(drawable | set(sources.actions))
        self._counted = 0

    def frames(self) -> Iterator[LabelledFrame]:
        """One section after another, for ever."""
        shares, rng = self._shares, self._rng
        while True:
            kind = rng.random()
            if kind < shares.idle and self._sources.idle:
                yield from self._recorded.idle(rng.uniform(1.5, 6.0))
            elif shares.idle <= kind < shares.idle + shares.rendered_idle and self._sources.renders_idle:
                yield from self._rendered.idle(rng.uniform(4.0, 12.0))
            elif self._chooses_rendered():
                yield from self._count_actions(self._rendered.performance(rng.uniform(4.0, 16.0)))
            else:
                yield from self._count_actions(self._recorded.action())

    def sparse(self, idle_s: tuple[float, float] = (4.0, 8.0)) -> Iterator[LabelledFrame]:
        """Single actions, each after a long time without any, for ever. Raises DatasetError for sources without."""
        if not (self._sources.idle or self._sources.renders_idle):
            raise DatasetError("recordings without time in which nothing is done", "some, or a background label",
                               "use recordings that are longer than their segments, or add idle footage")
        idle = self._recorded.idle if self._sources.idle else self._rendered.idle
        while True:
            left = round(self._rng.uniform(*idle_s) * self._rate)
            while left > 0:
                for frame in idle(left / self._rate):
                    left -= 1
                    yield frame
            yield from self._count_actions(
                self._rendered.performance(idle_s[1] + 4.0, idle_s) if self._chooses_rendered()
                else self._recorded.action(alone=True))

    def whole_actions(self, count: int, idle_share: float = 0.0) -> Iterator[LabelledFrame]:
        """Single actions, for ever: of each `count` frames, one from each of as many equal parts of it. In place of an
        `idle_share` of them, as many frames of idle time."""
        rng = self._rng
        idles = [sections.idle for sections, there in ((self._recorded, bool(self._sources.idle)),
                                                       (self._rendered, self._sources.renders_idle)) if there]
        while True:
            when = (np.arange(count) + rng.uniform(0, 1, count)) / count
            if idles and idle_share and rng.random() < idle_share:
                yield from idles[int(rng.integers(len(idles)))](rng.uniform(*MOMENT_S), when)
                continue
            sections = self._rendered if self._chooses_rendered() else self._recorded
            for k, frame in enumerate(self._count_actions(sections.whole_action(when))):
                yield frame._replace(progress=(k + 1) / count)

    def _chooses_rendered(self) -> bool:
        return bool(self._rng.random() < self._rendered_share) or not self._sources.actions

    def _count_actions(self, section: Iterable[LabelledFrame]) -> Iterator[LabelledFrame]:
        """The same frames, their actions counted through the whole stream."""
        first = self._counted
        for frame in section:
            if frame.gesture >= 0:
                self._counted = max(self._counted, first + frame.gesture + 1)
                frame = frame._replace(gesture=first + frame.gesture)
            yield frame


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
        return next(earlier for earlier in range(iteration, -1, -1) if self.begins(row, earlier))

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
    pixels, fresh, truths, names = zip(*(vars(piece).values() for piece in pieces), strict=True)
    truth = Truth(*(torch.cat(columns)[order] for columns in zip(*truths, strict=True)))
    named = list(chain.from_iterable(names))
    return Batch(torch.cat(pixels)[order], torch.cat(fresh)[order], truth, tuple(named[i] for i in order.tolist()))
