"""An endless, labelled training stream: what a head camera sees over hours, at the model's frame rate.

It is a chain of sections, drawn at random: a recorded action, a rendered performance, recorded idle time, rendered
hands that do nothing labelled.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from engines.errors import DatasetError
from engines.training.sections import LabelledFrame, RecordedSections, RenderedSections
from engines.training.sources import TrainingSources

MOMENT_S = (0.6, 3.0)  # how long a moment of idle time lasts beside whole actions: about as long as they


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
