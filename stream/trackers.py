"""What turns the scores of one camera into events: a tracker for each head of a model's results."""

from dataclasses import replace

import numpy as np

from engines.model.contract import Contract, EventRule
from stream.events import EventTracker, Probs
from stream.frame import Event
from stream.scoring import PARTS, parts_of, result_heads


class PairTracker:
    """Actions of multi-label verb and noun heads: the events of both are followed, and a verb's noun is the one whose
    event overlaps it most. An action lasts as long as its verb; it is reported when a noun is there, and closed with
    its verb under the noun that is best then. The rest is as for `EventTracker`."""

    def __init__(self, contract: Contract, camera: str, head: str, rule: EventRule) -> None:
        self._head = head
        self._ends = [len(contract.heads[PARTS[0]])]
        self._trackers = [EventTracker(camera, part, contract.heads[part], None, rule, multi_label=True)
                          for part in PARTS]
        self.reset()

    @property
    def rule(self) -> EventRule:
        return self._trackers[0].rule

    @rule.setter
    def rule(self, rule: EventRule) -> None:
        for tracker in self._trackers:
            tracker.rule = rule

    def reset(self) -> None:
        """Drops the current events, if any."""
        for tracker in self._trackers:
            tracker.reset()
        self._verbs: dict[int | None, Event] = {}  # that are open, by number
        self._nouns: dict[int | None, Event] = {}  # that are open, or closed since an open verb began
        self._reported: set[int | None] = set()
        self._at = 0.0

    def update(self, captured_at: float, now_probs_K: Probs, window_probs_K: Probs) -> list[Event]:
        """Takes the scores of one tick, those of both heads side by side."""
        self._at = captured_at
        nows, windows = np.split(now_probs_K, self._ends), np.split(window_probs_K, self._ends)
        said = [tracker.update(captured_at, now_K, window_K)
                for tracker, now_K, window_K in zip(self._trackers, nows, windows, strict=True)]
        return self._pair(*said)

    def flush(self) -> list[Event]:
        """Ends the stream: closes the current events, if they count."""
        events = self._pair(*(tracker.flush() for tracker in self._trackers))
        self.reset()
        return events

    def _pair(self, verbs: list[Event], nouns: list[Event]) -> list[Event]:
        self._nouns |= {noun.number: noun for noun in nouns}
        self._verbs |= {verb.number: verb for verb in verbs}
        events = []
        for number, verb in list(self._verbs.items()):
            shared, noun = max(((self._overlap(verb, noun), noun) for noun in self._nouns.values()),
                               key=lambda one: one[0], default=(0.0, verb))
            if shared > 0 and (not verb.open or number not in self._reported):
                self._reported.add(number)
                events.append(replace(verb, head=self._head, label=f"{verb.label} {noun.label}",
                                      score=verb.score * noun.score,
                                      ended_at=self._at if verb.open else verb.ended_at))
            if not verb.open:
                del self._verbs[number]
                self._reported.discard(number)
        first = min((verb.started_at for verb in self._verbs.values()), default=self._at)
        self._nouns = {number: noun for number, noun in self._nouns.items() if noun.open or noun.ended_at >= first}
        return events

    def _overlap(self, verb: Event, noun: Event) -> float:
        """Intersection over union; what is open lasts until now."""
        starts = [one.started_at for one in (verb, noun)]
        ends = [self._at if one.open else one.ended_at for one in (verb, noun)]
        return max(0.0, min(ends) - max(starts)) / max(max(ends) - min(starts), 1e-9)


def event_trackers(contract: Contract, camera: str, rule: EventRule | None = None
                   ) -> dict[str, EventTracker | PairTracker]:
    """A tracker for each head of a model's results, by name. rule: None for the contract's."""
    found: dict[str, EventTracker | PairTracker] = {}
    for head in result_heads(contract):
        parts = parts_of(contract, head)
        if len(parts) > 1 and set(parts) <= set(contract.multi_label):
            found[head] = PairTracker(contract, camera, head, rule or contract.events)
        else:
            found[head] = EventTracker(camera, head, [contract.heads[part] for part in parts], contract.background,
                                       rule or contract.events, now_s=contract.now_s, window_s=contract.window_s,
                                       warm_s=contract.warm_s, multi_label=head in contract.multi_label)
    return found
