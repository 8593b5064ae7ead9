"""Scores become events: one rule, used by training, evaluation, live streams and displays alike.

Activity is 1 - p(background) of the scores `now`. A head without background uses its `window` scores and their
top probability instead: with no class for "nothing", single frames are too uncertain to begin or end anything.

    idle ──activity >= close_below──► candidate ──activity >= open_above──► open ──quiet for close_after_s──► closed

* An event runs from the candidate's first active frame (activity >= close_below) to its last active frame.
* Its label has the highest mean probability over the active frames, the n-th weighing n^1.5, because causal scores
  get better with time. That mean is the event's score.
* It counts from when it has lasted min_duration_s with a score of at least min_score. It is then reported
  (`open`), reported again when its label changes, and always closed: as "unknown" if its score has fallen below
  min_score by then (a movement that began like an action). Other events are not reported; with report_unknown, those
  that lasted min_duration_s are, at their end, as "unknown".
* Two actions back to back: when the newest frames favour one other label for split_after_s without a break, and
  the frames before them favoured their own label as long, the event is split there.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.model.contract import EventRule
from stream.clock import TIME_NOISE_S
from stream.frame import Event

UNKNOWN = "unknown"  # label of an event that no label fits well enough

Probs = NDArray[Any]  # calibrated probabilities of one head's labels, [K]


class _Evidence:
    """Mean of the probabilities since `started_at`, the n-th frame weighing n^1.5."""

    GROWTH = 1.5  # the label of a stroke shows late; more than this would let a flicker at its end decide

    def __init__(self, started_at: float) -> None:
        self.started_at = self.ended_at = started_at
        self._frames = 0
        self._total = 0.0
        self._weighted_K: Probs = np.zeros(())

    def add(self, at: float, probs_K: Probs) -> None:
        self._frames += 1
        weight = self._frames**self.GROWTH
        self._total += weight
        self._weighted_K = self._weighted_K + weight * probs_K
        self.ended_at = at

    @property
    def label(self) -> int:
        return int(self._weighted_K.argmax())

    @property
    def score(self) -> float:
        return float(self._weighted_K.max()) / self._total

    def holds(self, lasted_s: float, score: float) -> bool:
        return self.ended_at - self.started_at >= lasted_s - TIME_NOISE_S and self.score >= score


class EventTracker:
    """Turns the scores of one head of one camera into events. All times come from the arguments."""

    def __init__(self, camera: str, head: str, labels: Sequence[str], background: str | None, rule: EventRule) -> None:
        self._camera, self._head, self._labels = camera, head, tuple(labels)
        self.rule = rule  # may be changed between two updates
        self._background = self._labels.index(background) if background in self._labels else None
        self.reset()

    def reset(self) -> None:
        """Drops the current event, if any."""
        self._whole: _Evidence | None = None  # the current event
        self._before: _Evidence | None = None  # its part before another label took the lead
        self._rival: tuple[int, _Evidence] | None = None  # that other label, and the part since
        self._opened = False
        self._reported: int | None = None

    def update(self, captured_at: float, now_probs_K: Probs, window_probs_K: Probs) -> list[Event]:
        """Takes the scores of one tick; returns events that opened, changed their label, or closed."""
        activity, probs_K = self._activity(now_probs_K, window_probs_K)
        if activity < self.rule.close_below:
            over = self._whole and captured_at - self._whole.ended_at >= self.rule.close_after_s - TIME_NOISE_S
            return self.flush() if over or not self._opened else []
        self._opened = self._opened or activity >= self.rule.open_above
        if self._whole is None:
            self._whole = _Evidence(captured_at)
        else:
            self._follow_lead(self._whole, captured_at, probs_K)
        self._whole.add(captured_at, probs_K)
        return self._split() + self._report()

    def flush(self) -> list[Event]:
        """Ends the stream: closes the current event, if it counts."""
        whole, reported, opened = self._whole, self._reported, self._opened
        self.reset()
        if whole is None:
            return []
        event = self._event(whole, opened=False)
        if reported is not None and whole.score >= self.rule.min_score:
            return [event]
        if reported is not None or (self.rule.report_unknown and opened and whole.holds(self.rule.min_duration_s, 0.0)):
            return [replace(event, label=UNKNOWN)]
        return []

    def _activity(self, now_probs_K: Probs, window_probs_K: Probs) -> tuple[float, Probs]:
        if self._background is None:
            return float(window_probs_K.max()), window_probs_K
        probs_K = now_probs_K.copy()
        probs_K[self._background] = 0
        return 1 - float(now_probs_K[self._background]), probs_K

    def _follow_lead(self, whole: _Evidence, at: float, probs_K: Probs) -> None:
        """Tracks a label that leads against the event's own."""
        leader = int(probs_K.argmax())
        if self._rival is None or self._rival[0] != leader:
            if leader == (self._before or whole).label:
                self._before = self._rival = None
                return
            self._before, self._rival = copy(whole), (leader, _Evidence(at))
        self._rival[1].add(at, probs_K)

    def _split(self) -> list[Event]:
        if not (self._opened and self._before and self._rival
                and self._holds_alone(self._before) and self._holds_alone(self._rival[1])):
            return []
        closed = self._event(self._before, opened=False)
        self._whole, self._before, self._rival, self._reported = self._rival[1], None, None, None
        return [closed]

    def _holds_alone(self, part: _Evidence) -> bool:
        return part.holds(max(self.rule.split_after_s, self.rule.min_duration_s), self.rule.min_score)

    def _report(self) -> list[Event]:
        whole = self._whole
        if whole is None or not self._opened or whole.label == self._reported:
            return []
        if self._reported is None and not whole.holds(self.rule.min_duration_s, self.rule.min_score):
            return []
        if self._reported is not None and self._before and self._holds_alone(self._before):
            return []  # either a split or a return to the old label will settle it
        self._reported = whole.label
        return [self._event(whole, opened=True)]

    def _event(self, part: _Evidence, *, opened: bool) -> Event:
        return Event(camera=self._camera, head=self._head, label=self._labels[part.label],
                     started_at=part.started_at, ended_at=part.ended_at, score=part.score, open=opened)


def detect_events(times: Iterable[float], now_probs_TK: Probs, window_probs_TK: Probs, *, labels: Sequence[str],
              background: str | None, rule: EventRule, camera: str = "0", head: str = "action") -> list[Event]:
    """The closed events of a recorded stream, T ticks long, through the same rule as live."""
    tracker = EventTracker(camera, head, labels, background, rule)
    events = [event for at, now_K, window_K in zip(times, now_probs_TK, window_probs_TK, strict=True)
              for event in tracker.update(float(at), now_K, window_K)]
    return [event for event in events + tracker.flush() if not event.open]
