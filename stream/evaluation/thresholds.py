"""Finds the event rule with the best events among those that keep to a number of false events.
Scores are recorded once; every rule is tried on the record through `detect_events`, the live path's own lines.
False events are counted on footage without gestures, F1 on a stream with the truth."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import engines
from engines.errors import UsageError
from engines.model.contract import EventRule
from engines.model.file import bundled, save
from stream.evaluation import metrics
from stream.evaluation.record import ScoreRecord, ScoreSequence, find_events
from stream.evaluation.streams import IOU, StreamReport
from stream.events import UNKNOWN
from stream.frame import Event

VALUES: dict[str, tuple[float, ...]] = {  # all combinations are tried
    "open_above": (0.6, 0.8, 0.9, 0.97, 0.995, 0.999, 0.9995),
    "close_below": (0.3, 0.5, 0.75, 0.85, 0.95),
    "min_score": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    "min_duration_s": (0.3, 0.55, 0.8, 1.2, 1.6, 2.0),
}


class RuleTrial(NamedTuple):
    """A rule and what it gives."""

    rule: EventRule
    f1: float  # on the stream, mean over heads
    false_events_per_hour: float  # of idle footage

    def as_json(self) -> dict[str, Any]:
        return {"events": self.rule.model_dump(), "f1": self.f1, "false_events_per_hour": self.false_events_per_hour}


class RuleSearch(NamedTuple):
    """What was found: `best`, beside what the model had `before`."""

    before: RuleTrial
    best: RuleTrial
    limit_per_hour: float
    tried: int  # rules
    idle_s: float  # seconds of footage
    stream_s: float

    def as_json(self) -> dict[str, Any]:
        return {"max_false_events_per_hour": self.limit_per_hour, "idle_s": self.idle_s, "stream_s": self.stream_s,
                "rules_tried": self.tried, "before": self.before.as_json(), "chosen": self.best.as_json()}


def search_rules(stream: StreamReport | None, idles: Iterable[StreamReport], limit_per_hour: float) -> RuleSearch:
    """The best rule that keeps to the limit on the idle footage.
    Of equal ones, that with fewer false events, then the shorter wait. Raises UsageError without a stream, without idle
    footage, or when no rule that keeps to the limit finds a gesture."""
    quiet = [part for part in idles if part.first.seconds > 0]
    if stream is not None and not any(one.truths for one in stream.heads.values()):
        stream = None
    if stream is None or not quiet:
        raise UsageError("a limit of false events without " + ("idle footage" if stream else "a stream with gestures"),
                         "both", "give footage without gestures: --idle FOLDER, and --rendered-idle MINUTES for more")
    contract = stream.record.contract
    idle_s = sum(part.first.seconds for part in quiet)
    gestures = _active_ticks(stream.record)
    idle = [_active_ticks(part.record) for part in quiet]

    def events(part: Mapping[str, list[ScoreSequence]], rule: EventRule, head: str) -> Iterator[Event]:
        return (event for event in find_events(part[head], contract, head, rule) if event.label != UNKNOWN)

    def trial(rule: EventRule, too_many: int | None = None) -> RuleTrial | None:
        """None at `too_many` false events, when counting ends: most rules fail early."""
        found = (event for part, head in product(idle, contract.heads) for event in events(part, rule, head))
        false = sum(1 for _ in islice(found, too_many))
        if false == too_many:
            return None
        f1 = metrics.mean_of_known(metrics.event_f1(one.truths, list(events(gestures, rule, head)), IOU)
                                   for head, one in stream.heads.items() if one.truths and head in contract.heads)
        return RuleTrial(rule, f1, 3600 * false / idle_s)

    before = trial(contract.events)
    assert before is not None
    combinations = (dict(zip(VALUES, values, strict=True)) for values in product(*VALUES.values()))
    changed = (contract.events.model_copy(update=values) for values in combinations)
    rules = list(dict.fromkeys([contract.events, *(rule for rule in changed if rule.close_below <= rule.open_above)]))
    too_many = int(limit_per_hour * idle_s / 3600) + 1
    kept = [one for rule in rules if (one := trial(rule, too_many)) is not None and one.f1 > 0]
    if not kept:
        raise UsageError(f"{before.false_events_per_hour:.1f} false events per hour, and more than the limit with each "
                         f"of {len(rules)} rules that find a gesture", f"at most {limit_per_hour:g} per hour",
                         "allow more, or train with more such footage as background")
    best = max(kept, key=lambda one: (one.f1, -one.false_events_per_hour, -one.rule.min_duration_s))
    return RuleSearch(before, best, limit_per_hour, len(rules), idle_s, stream.first.seconds)


def write_rule(model: str | Path, found: RuleSearch, data: Mapping[str, Any], out: Path) -> None:
    """Writes `model` with the chosen rule as the model file `out`; the provenance says on what data and with what
    result it was chosen. Raises UsageError for the file of a bundled model, SinkError where it cannot be written."""
    refuse_bundled(out)
    loaded = engines.load(model)
    provenance = {**loaded.contract.provenance, "event_thresholds": {**found.as_json(), "data": dict(data)}}
    contract = loaded.contract.model_copy(update={"events": found.best.rule, "provenance": provenance})
    save(out, contract, loaded.tensors, half=loaded.half, graph=loaded.graph)


def refuse_bundled(out: Path) -> None:
    """Raises UsageError where `out` is the file of a bundled model."""
    if out.exists() and any(out.samefile(path) for path in bundled().values()):
        raise UsageError(f"--out {out}, a bundled model", "a file of your own", "choose another name")


def _active_ticks(record: ScoreRecord) -> dict[str, list[ScoreSequence]]:
    """The record without the ticks that no rule looks at: quiet ones but those up to the first that ends an event, of
    heads with background."""
    contract = record.contract
    floor = min(contract.events.close_below, *VALUES["close_below"])
    found: dict[str, list[ScoreSequence]] = {}
    for head, labels in contract.heads.items():
        if contract.background not in labels:
            found[head] = list(record.sequences(head))
            continue
        background = labels.index(contract.background)
        found[head] = []
        for run in record.sequences(head):
            active_T = floor <= 1 - run.now_TK[:, background]
            ends_T = np.maximum.accumulate(np.where(active_T, run.times_T + contract.events.close_after_s, -np.inf))
            goes_on_T = active_T | (run.times_T < ends_T)  # an event, after this tick
            kept = np.flatnonzero(active_T | np.r_[False, goes_on_T[:-1]])
            found[head].append(ScoreSequence(run.times_T[kept], run.now_TK[kept], run.window_TK[kept]))
    return found
