"""Continuous streams: events against the truth, delays, false events, and frames one by one."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from engines.errors import FrameError
from stream.evaluation import metrics
from stream.evaluation.metrics import NAN, Truth
from stream.evaluation.record import ScoreRecord
from stream.events import UNKNOWN
from stream.frame import Event, Item, Picture
from stream.recognizer import Recognizer
from stream.scoring import result_heads

CAMERA = "stream"
IOU = 0.3  # at which events are paired for delays
IOUS = (0.1, 0.3, 0.5)


@dataclass
class HeadStream:
    """What came of one head of a stream."""

    truths: Sequence[Truth]
    events: Sequence[Event]
    reported_at: Sequence[float]  # when each event was first reported under its final label
    closed_at: Sequence[float]  # and when its end was
    seconds: float  # of footage
    precision: Mapping[str, float] = field(default_factory=dict)  # average over frames, of each label that occurs
    taken_back: Sequence[Event] = ()  # what closed as unknown, none of `events`
    named: Sequence[str] = ()  # the label that the window favoured at each truth's end, "" without scores
    rounds: int = 1  # how often the same truths follow one another

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """(truth, event) of the same label that overlap enough."""
        return metrics.match(self.truths, self.events, IOU)

    @property
    def delays_s(self) -> list[float]:
        """From each true end to the closing of the event that matches it."""
        return [self.closed_at[j] - self.truths[i].ended_at for i, j in self.pairs]

    @property
    def start_delays_s(self) -> list[float]:
        """From each true start to when the event that matches it was reported under its label."""
        return [self.reported_at[j] - self.truths[i].started_at for i, j in self.pairs]

    @cached_property
    def false_events(self) -> list[Event]:
        """Events that touch no labelled stretch."""
        return [self.events[j] for j in metrics.outside(self.truths, self.events)]

    @property
    def false_events_per_hour(self) -> float:
        """False events per hour of footage outside the labelled stretches."""
        idle_s = self.seconds - metrics.covered_s(self.truths)
        return 3600 * len(self.false_events) / idle_s if idle_s > 0 else NAN

    def over_time(self) -> list[dict[str, float]]:
        """Of each round: its minutes since the stream's reset, the share of truths that the window named right at
        their end, and the share that an event matched."""
        matched = {i for i, _ in self.pairs}
        of_round = np.array_split(np.arange(len(self.truths)), self.rounds)
        return [{"from_minute": self.truths[part[0]].started_at / 60, "to_minute": self.truths[part[-1]].ended_at / 60,
                 "named_right": float(np.mean([self.named[i] == self.truths[i].label for i in part])),
                 "matched": float(np.mean([i in matched for i in part]))} for part in of_round if len(part)]

    def as_json(self) -> dict[str, Any]:
        delays = metrics.percentiles(self.delays_s)
        return {"seconds": self.seconds, "gestures": len(self.truths), "events": len(self.events),
                "taken_back": len(self.taken_back), "matched": len(self.pairs),
                "f1": metrics.event_f1(self.truths, self.events, IOU), "delay_s": delays["median"],
                "events_per_minute": 60 * len(self.events) / self.seconds if self.seconds else NAN,
                "f1_at": {str(iou): metrics.event_f1(self.truths, self.events, iou) for iou in IOUS},
                "frame_map": metrics.mean_of_known(self.precision.values()), "average_precision": dict(self.precision),
                "delay_after_start_s": metrics.percentiles(self.start_delays_s), "delay_after_end_s": delays,
                "false_events": len(self.false_events), "false_events_per_hour": self.false_events_per_hour,
                **({"over_time": self.over_time()} if self.rounds > 1 else {})}


class StreamReport(NamedTuple):
    """What came of a stream: each head's outcome, and the full scores."""

    heads: Mapping[str, HeadStream]
    record: ScoreRecord

    @property
    def first(self) -> HeadStream:
        """The first head: of most models, the only one."""
        return next(iter(self.heads.values()))

    def as_json(self) -> dict[str, Any]:
        """The first head's figures; those of all heads where there are more."""
        heads = {head: one.as_json() for head, one in self.heads.items()}
        return {**self.first.as_json(), **({"heads": heads} if len(heads) > 1 else {})}


class StreamMeter:
    """Plays streams, one after another on one time axis, and measures them. Use it in a `with` block."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer, contract = recognizer, recognizer.contract
        self._closed: dict[str, list[tuple[Event, float]]] = {head: [] for head in result_heads(contract)}
        self._reported: dict[tuple[str, float, str], float] = {}  # head, start, label: when first reported
        self._offset = self._first = self._at = self._seconds = 0.0
        self._running = False
        self.streams, self.rounds = 0, 1  # streams that had any images; rounds of the same truths in the only one
        self.truths: dict[str, list[Truth]] = {head: [] for head in result_heads(contract)}
        self.record = ScoreRecord(contract)
        recognizer.score_listeners[CAMERA] = self.record.append

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._recognizer.score_listeners.pop(CAMERA, None)
        self.record.close(keep=kind is None)

    def push(self, picture: Picture, at: float) -> None:
        """Takes the next picture of the current stream, at seconds of that stream; one that cannot be used is left out.
        """
        self._at = self._offset + at
        if not self._running:
            self._running, self._first = True, self._at
            self.streams += 1
        with suppress(FrameError):
            self._collect(self._recognizer.push(picture, self._at, CAMERA))

    def end(self, truths: Mapping[str, Sequence[Truth]] | None = None) -> None:
        """Ends the current stream, with its truths by head, in seconds of that stream."""
        self._collect(self._recognizer.flush(CAMERA))
        for head, stretches in (truths or {}).items():
            self.truths[head] += [Truth(one.label, one.started_at + self._offset, one.ended_at + self._offset)
                                  for one in stretches]
        self.record.end()
        if self._running:
            self._seconds += self._at - self._first
            self._offset = self._at + 2 * self._recognizer.contract.max_gap_s
        self._running = False

    def report(self) -> StreamReport:
        """What came of all streams so far."""
        return StreamReport({head: self._head(head) for head in self._closed}, self.record)

    def _collect(self, items: Sequence[Item]) -> None:
        for event in items:
            if isinstance(event, Event):
                self._reported.setdefault((event.head, event.started_at, event.label), self._at)
                if not event.open:
                    self._closed[event.head].append((event, self._at))

    def _head(self, head: str) -> HeadStream:
        labels, truths, precision = self.record.contract.heads.get(head, ()), self.truths[head], dict[str, float]()
        if labels:  # of pairs there are no scores of all
            found = metrics.average_precision(self.record.scores(head)[:, 0],
                                              metrics.frame_targets(self.record.times_T, truths, labels))
            precision = {label: float(value) for label, value in zip(labels, found, strict=True)
                         if label != self.record.contract.background and value == value}
        known = [(event, at) for event, at in self._closed[head] if event.label != UNKNOWN]
        reported = [self._reported[event.head, event.started_at, event.label] for event, _ in known]
        unknown = [event for event, _ in self._closed[head] if event.label == UNKNOWN]
        return HeadStream(truths, [event for event, _ in known], reported, [at for _, at in known], self._seconds,
                          precision, unknown, self._named_labels(head, truths), self.rounds)

    def _named_labels(self, head: str, truths: Sequence[Truth]) -> list[str]:
        """The label that the window favours at the last tick in each truth, background aside."""
        contract, times_T = self.record.contract, self.record.times_T
        labels = contract.heads.get(head, ())
        if not labels:
            return [""] * len(truths)
        ticks = np.searchsorted(times_T, [one.ended_at for one in truths], side="right") - 1
        seen = [tick >= 0 and times_T[tick] >= one.started_at for one, tick in zip(truths, ticks, strict=True)]
        window_NK = np.array(self.record.scores(head)[ticks[seen], 1])  # of these ticks only: all may be many
        if contract.background in labels:
            window_NK[:, labels.index(contract.background)] = -1
        best = iter(window_NK.argmax(axis=1))
        return [labels[int(next(best))] if there else "" for there in seen]


def evaluate_stream(recognizer: Recognizer, *streams: Iterable[tuple[Picture, float]],
                    truths: Mapping[str, Sequence[Truth]] | None = None) -> StreamReport:
    """Runs streams of (picture, seconds), each from fresh state. truths: by head, of the last of them."""
    with StreamMeter(recognizer) as meter:
        for number, frames in enumerate(streams, start=1):
            for picture, at in frames:
                meter.push(picture, at)
            meter.end(truths if number == len(streams) else None)
        return meter.report()
