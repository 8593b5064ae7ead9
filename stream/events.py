"""Scores become events: one rule, used by training, evaluation, live streams and displays alike.

    idle ──activity >= close_below──► candidate ──activity >= open_above──► open ──quiet for close_after_s──► closed

* An event runs from the candidate's first active tick (activity >= close_below) to its last one. Its score is a mean
  over the active ticks, the n-th weighing n^1.5, because causal scores get better with time.
* It counts from when it has lasted min_duration_s with a score of at least min_score. It is then reported (`open`),
  and always closed. Other events are not reported; with report_unknown, those that lasted min_duration_s are, at their
  end, as "unknown".

What is active depends on what a head knows:

| head | activity | events |
| --- | --- | --- |
| with a label for "nothing" | 1 - p(background) of `now` | one at a time; its label may change |
| without one | the highest p of `window`, in the middle of the window's time | one at a time, of the label that leads |
| multi-label | p of `now`, of each label for itself | one of each label at a time |

* With background, an event's label is the one of the highest score so far: the event is reported again when that
  changes. Scores are those of `now`. Where `now` is a span of time, it may show too little of the action: scores are
  the mean of `now` and `window`, and an event opens when both are active; and as its last ticks show what comes after,
  the n-th weighs n. Two actions back to back: when the newest ticks favour one other label for
  split_after_s without a break, and those before them favoured their own label as long, the event is split there.
* Without, single frames are too uncertain to begin or end anything, and a window names what most of it shows: half a
  window after that began. So its scores count for the middle of its time. An event ends when its label's evidence fades
  for close_after_s, or when an event of another label, which has led without a break, counts.
* An event closes as "unknown" if its score has fallen below min_score by then (a movement that began like an action);
  not so one of a multi-label head, which can be nothing else.

Verb and noun heads together have events of their own: the label is the pair, and a pair's activity and score are
compared with the rule as the geometric mean of its two parts. An event's score is their product. Of multi-label heads,
see `stream/trackers.py`."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.model.contract import EventRule
from stream.clock import TIME_NOISE_S
from stream.frame import Event

UNKNOWN = "unknown"  # label of an event that no label fits well enough
GROWTH = 1.5  # the label of a stroke shows late; more than this would let a flicker at its end decide
SPAN_GROWTH = 1.0

Probs = NDArray[Any]  # calibrated probabilities of one head's labels, [K]; of several heads side by side
Label = tuple[int, ...]  # index of the label in each head


class _Evidence:
    """Mean of the probabilities since `started_at`, the n-th frame weighing n^growth.
    ends: of each head in the probabilities, where the next begins."""

    def __init__(self, started_at: float, ends: Sequence[int], growth: float = GROWTH) -> None:
        self.started_at = self.ended_at = started_at
        self._ends, self._growth = ends, growth
        self._frames = 0
        self._total = 0.0
        self._weighted_K: Probs = np.zeros(())

    def add(self, at: float, probs_K: Probs) -> None:
        self._frames += 1
        weight = self._frames**self._growth
        self._total += weight
        self._weighted_K = self._weighted_K + weight * probs_K
        self.ended_at = at

    @property
    def label(self) -> Label:
        return best_label(self._weighted_K, self._ends)

    @property
    def product(self) -> float:
        """Of the probabilities of the label's parts."""
        parts = np.split(self._weighted_K, self._ends[:-1])
        return prod(float(part.max()) / self._total for part in parts)

    @property
    def score(self) -> float:
        """Geometric mean of them."""
        return float(self.product ** (1 / len(self._ends)))

    def holds(self, lasted_s: float, score: float) -> bool:
        return self.ended_at - self.started_at >= lasted_s - TIME_NOISE_S and self.score >= score


class _Names:
    """Makes the events of one head, or of several together."""

    def __init__(self, camera: str, head: str, labels: Sequence[Sequence[str]]) -> None:
        self._camera, self._head, self._labels = camera, head, labels

    def event(self, part: _Evidence, label: Label | None, *, opened: bool, number: int | None = None) -> Event:
        """label: None for unknown."""
        text = UNKNOWN if label is None else \
            " ".join(names[index] for names, index in zip(self._labels, label, strict=True))
        return Event(camera=self._camera, head=self._head, label=text, started_at=part.started_at,
                     ended_at=part.ended_at, score=part.product, open=opened, number=number)


class _OneEvent:
    """One event at a time, of a head with a label for background. ends, growth: as for `_Evidence`."""

    def __init__(self, names: _Names, ends: Sequence[int], growth: float) -> None:
        self._names, self._ends, self._growth = names, ends, growth
        self.reset()

    def reset(self) -> None:
        self._whole: _Evidence | None = None  # the current event
        self._before: _Evidence | None = None  # its part before another label took the lead
        self._rival: tuple[Label, _Evidence] | None = None  # that other label, and the part since
        self._opened = False
        self._reported: Label | None = None

    def update(self, rule: EventRule, at: float, activity: float, opening: float, probs_K: Probs) -> list[Event]:
        """opening: the activity that opens it, if it is enough; probs_K: without that of background."""
        if activity < rule.close_below:
            over = self._whole and at - self._whole.ended_at >= rule.close_after_s - TIME_NOISE_S
            return self.flush(rule) if over or not self._opened else []
        self._opened = self._opened or opening >= rule.open_above
        if self._whole is None:
            self._whole = self._evidence(at)
        else:
            self._follow_lead(self._whole, at, probs_K)
        self._whole.add(at, probs_K)
        return self._split(rule) + self._report(rule)

    def _evidence(self, at: float) -> _Evidence:
        return _Evidence(at, self._ends, self._growth)

    def flush(self, rule: EventRule) -> list[Event]:
        whole, reported, opened = self._whole, self._reported, self._opened
        self.reset()
        if whole is None:
            return []
        if reported is not None:
            label = whole.label if whole.score >= rule.min_score else None
            return [self._names.event(whole, label, opened=False)]
        return _unreported(self._names, rule, whole) if opened else []

    def _follow_lead(self, whole: _Evidence, at: float, probs_K: Probs) -> None:
        """Tracks a label that leads against the event's own."""
        leader = best_label(probs_K, self._ends)
        if self._rival is None or self._rival[0] != leader:
            if leader == (self._before or whole).label:
                self._before = self._rival = None
                return
            self._before, self._rival = copy(whole), (leader, self._evidence(at))
        self._rival[1].add(at, probs_K)

    def _split(self, rule: EventRule) -> list[Event]:
        if not (self._opened and self._before and self._rival
                and _holds_alone(rule, self._before) and _holds_alone(rule, self._rival[1])):
            return []
        closed = self._names.event(self._before, self._before.label, opened=False)
        self._whole, self._before, self._rival, self._reported = self._rival[1], None, None, None
        return [closed]

    def _report(self, rule: EventRule) -> list[Event]:
        whole = self._whole
        if whole is None or not self._opened or whole.label == self._reported:
            return []
        if self._reported is None and not whole.holds(rule.min_duration_s, rule.min_score):
            return []
        if self._reported is not None and self._before and _holds_alone(rule, self._before):
            return []  # either a split or a return to the old label will settle it
        self._reported = whole.label
        return [self._names.event(whole, whole.label, opened=True)]


def _holds_alone(rule: EventRule, part: _Evidence) -> bool:
    return part.holds(max(rule.split_after_s, rule.min_duration_s), rule.min_score)


def _unreported(names: _Names, rule: EventRule, part: _Evidence) -> list[Event]:
    """What comes of an opened event at its end that never counted."""
    if not (rule.report_unknown and part.holds(rule.min_duration_s, 0.0)):
        return []
    return [names.event(part, None, opened=False)]


class _LabelEvents:
    """Events of labels that are followed each for itself. alone: whether one at a time counts."""

    def __init__(self, names: _Names, alone: bool) -> None:
        self._names, self._alone = names, alone
        self._count = 0  # of events, where several may be open
        self.reset()

    def reset(self) -> None:
        self._parts: dict[Label, _Evidence] = {}  # of labels that are active, or have just been
        self._opened: set[Label] = set()
        self._reported: dict[Label, int | None] = {}  # with their numbers, where several may be open

    def update(self, rule: EventRule, at: float, active: Mapping[Label, Probs]) -> list[Event]:
        """active: the probabilities of the parts of each label that is; of one label at most, if `alone`."""
        events: list[Event] = []
        for label, part in list(self._parts.items()):
            if label in active:
                continue
            lost = bool(active) and self._alone and label not in self._reported  # the lead
            over = at - part.ended_at >= rule.close_after_s - TIME_NOISE_S
            if lost or over or label not in self._opened:
                events += self._close(rule, label)
        for label, probs_P in active.items():
            part = self._parts.setdefault(label, _Evidence(at, range(1, len(probs_P) + 1)))
            part.add(at, probs_P)
            if geometric_mean(probs_P) >= rule.open_above:
                self._opened.add(label)
            if self._begins_to_count(rule, label):
                others = [other for other in self._parts if other != label] if self._alone else []
                events += [event for other in others for event in self._close(rule, other)]
                self._reported[label] = self._next_number()
                events.append(self._names.event(part, label, opened=True, number=self._reported[label]))
        return events

    def flush(self, rule: EventRule, at: float, last_at: float) -> list[Event]:
        """at: time of the last update; last_at: when what was active then ends."""
        for label, part in self._parts.items():
            part.ended_at = last_at if part.ended_at == at else part.ended_at
            if self._begins_to_count(rule, label):
                self._reported[label] = self._next_number()
        return [event for label in list(self._parts) for event in self._close(rule, label)]

    def _close(self, rule: EventRule, label: Label) -> list[Event]:
        part, opened, reported = self._parts.pop(label), label in self._opened, label in self._reported
        number = self._reported.pop(label, None)
        self._opened.discard(label)
        if reported:
            known = not self._alone or part.score >= rule.min_score
            return [self._names.event(part, label if known else None, opened=False, number=number)]
        return _unreported(self._names, rule, part) if opened and self._alone else []

    def _begins_to_count(self, rule: EventRule, label: Label) -> bool:
        return (label in self._opened and label not in self._reported
                and self._parts[label].holds(rule.min_duration_s, rule.min_score))

    def _next_number(self) -> int | None:
        self._count += 1
        return None if self._alone else self._count


class Tracker(Protocol):
    """What turns scores into events."""

    def update(self, captured_at: float, now_probs_K: Probs, window_probs_K: Probs) -> list[Event]:
        """Takes the scores of one tick; returns events that opened, changed their label, or closed."""

    def flush(self) -> list[Event]:
        """Ends the stream: closes the current events, if they count."""


class EventTracker:
    """Turns the scores of one head of one camera, or of several heads together, into events. All times come from the
    arguments.

    head: name of the events; labels: of the head, or of each of several; background: the label that means "nothing", in
    the heads that have it; now_s, window_s: from the first to the last frame of a moment's scores, in the middle of
    which they count, and of a full window; warm_s: what of that has been seen before the first update after a reset;
    multi_label: whether labels are true each for itself (of one head)."""

    def __init__(self, camera: str, head: str, labels: Sequence[str] | Sequence[Sequence[str]], background: str | None,
                 rule: EventRule, *, now_s: float = 0.0, window_s: float = 0.0, warm_s: float = 0.0,
                 multi_label: bool = False) -> None:
        of_heads = [[str(name) for name in each] for each in ([labels] if isinstance(labels[0], str) else labels)]
        self.rule = rule  # may be changed between two updates
        self._ends = np.cumsum([len(each) for each in of_heads]).tolist()
        self._background = [end - len(each) + each.index(background) for end, each in
                            zip(self._ends, of_heads, strict=True) if background in each]
        self._multi_label, self._now_s, self._window_s, self._warm_s = multi_label, now_s, window_s, warm_s
        names = _Names(camera, head, of_heads)
        self._one = _OneEvent(names, self._ends, SPAN_GROWTH if now_s else GROWTH)
        self._labels = _LabelEvents(names, alone=not multi_label)
        self.reset()

    def reset(self) -> None:
        """Drops the current events, if any."""
        self._one.reset()
        self._labels.reset()
        self._first_at: float | None = None  # of the updates since
        self._last_at = self._counted_at = 0.0  # of the latest: its time, and the time that its scores count for

    def update(self, captured_at: float, now_probs_K: Probs, window_probs_K: Probs) -> list[Event]:
        """Takes the scores of one tick, those of several heads side by side; returns events that opened, changed their
        label, or closed."""
        first = self._first_at is None
        self._first_at = captured_at if self._first_at is None else self._first_at
        seen_s = captured_at - self._first_at + self._warm_s
        if self._background:
            activity = opening = geometric_mean(1 - now_probs_K[self._background])
            probs_K = now_probs_K.copy()
            if self._now_s:
                opening = min(activity, geometric_mean(1 - window_probs_K[self._background]))
                probs_K = (now_probs_K + window_probs_K) / 2
            probs_K[self._background] = 0
            return self._one.update(self.rule, captured_at - min(seen_s, self._now_s) / 2, activity, opening, probs_K)
        self._last_at = self._counted_at = captured_at
        if self._multi_label:
            return self._labels.update(self.rule, captured_at, self._active(now_probs_K))
        self._counted_at = captured_at - (seen_s if first else min(seen_s, self._window_s) / 2)
        return self._labels.update(self.rule, self._counted_at, self._active(window_probs_K))

    def _active(self, probs_K: Probs) -> dict[Label, Probs]:
        """The labels that are active by themselves: one at most, of a multi-label head, any number."""
        if self._multi_label:
            return {(int(k),): probs_K[k:k + 1] for k in np.flatnonzero(probs_K >= self.rule.close_below)}
        parts_P = np.array([part.max() for part in np.split(probs_K, self._ends[:-1])])
        leads = geometric_mean(parts_P) >= self.rule.close_below
        return {best_label(probs_K, self._ends): parts_P} if leads else {}

    def flush(self) -> list[Event]:
        """Ends the stream: closes the current events, if they count. What has no background lasts to the end."""
        events = self._one.flush(self.rule) + self._labels.flush(self.rule, self._counted_at, self._last_at)
        self.reset()
        return events


def best_label(probs_K: Probs, ends: Sequence[int]) -> Label:
    """The best label of each head, of whose probabilities side by side `ends` says where the next begins."""
    return tuple(int(part.argmax()) for part in np.split(probs_K, ends[:-1]))


def geometric_mean(values: Probs) -> float:
    """Of a few probabilities."""
    return float(values.prod() ** (1 / len(values)))


def detect_events(times: Iterable[float], now_probs_TK: Probs, window_probs_TK: Probs, *, labels: Sequence[str],
                  background: str | None, rule: EventRule, camera: str = "0", head: str = "action",
                  **options: Any) -> list[Event]:
    """The closed events of a recorded stream, T ticks long, through the same rule as live.
    options: those of `EventTracker`."""
    return track_all(EventTracker(camera, head, labels, background, rule, **options), times, now_probs_TK,
                     window_probs_TK)


def track_all(tracker: Tracker, times: Iterable[float], now_probs_TK: Probs, window_probs_TK: Probs
              ) -> list[Event]:
    """The closed events of a recorded stream, T ticks long."""
    events = [event for at, now_K, window_K in zip(times, now_probs_TK, window_probs_TK, strict=True)
              for event in tracker.update(float(at), now_K, window_K)]
    return [event for event in events + tracker.flush() if not event.open]
