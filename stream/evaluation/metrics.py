"""What "good" means, in numbers: pure functions on arrays, used by evaluation and by training's own checks.
Legend: N clips, T ticks of a stream, K labels of a head. A truth that is no label of the model (-1, or K
and above) is always wrong. Where there is nothing to count, the answer is NaN (None in JSON), never an exception."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.model.scores import probabilities
from stream.frame import Event
from stream.scoring import ranks, top_pairs

Array = NDArray[Any]
NAN = float("nan")
BINS = 15  # of the reliability curve, equally wide
COLUMNS = 64  # labels read at a time from scores that lie on disk


class Truth(NamedTuple):
    """A labelled stretch of a stream, in seconds."""

    label: str
    started_at: float
    ended_at: float


Stretch = Truth | Event


def top_k(scores_NK: Array, truth_N: Array, k: int) -> float:
    """Share of rows whose truth is among the k best labels."""
    right_N = (ranks(scores_NK, k) == np.asarray(truth_N)[:, None]).any(axis=1)
    return float(right_N.mean()) if len(right_N) else NAN


def top_k_pairs(first_NK: Array, second_NK: Array, first_N: Array, second_N: Array, k: int) -> float:
    """Share of rows whose pair of truths is among the k best pairs."""
    wanted_N2 = np.stack([first_N, second_N], axis=1)
    right_N = (top_pairs(first_NK, second_NK, k) == wanted_N2[:, None]).all(axis=2).any(axis=1)
    return float(right_N.mean()) if len(right_N) else NAN


def confusion(truth_N: Array, answer_N: Array, labels: int) -> Array:
    """How often truth (row) was answered by label (column), [labels, labels]. Both from 0 to labels - 1."""
    pairs = np.asarray(truth_N, np.int64) * labels + np.asarray(answer_N, np.int64)
    return np.asarray(np.bincount(pairs, minlength=labels * labels).reshape(labels, labels))


def per_class(confusion_KK: Array) -> Array:
    """Accuracy of each label, [K]; NaN for one that never was the truth."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diag(confusion_KK) / confusion_KK.sum(axis=1))


def mean_of_known(values: Iterable[float]) -> float:
    """The mean of what is not NaN: mean class accuracy, mAP."""
    known = [float(value) for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else NAN


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile."""
    return {"median": float(np.median(values)) if values else NAN,
            "p90": float(np.percentile(values, 90)) if values else NAN}


def overlap(one: Stretch, other: Stretch) -> float:
    """Temporal intersection over union; 0 for a stretch without length."""
    common = min(one.ended_at, other.ended_at) - max(one.started_at, other.started_at)
    union = max(one.ended_at, other.ended_at) - min(one.started_at, other.started_at)
    return max(common, 0.0) / union if union > 0 else 0.0


def match(truths: Sequence[Stretch], events: Sequence[Stretch], iou: float) -> list[tuple[int, int]]:
    """Pairs (truth, event) with the same label that overlap by `iou` at least, best overlap first, each used once."""
    by_label: dict[str, list[int]] = {}
    for j, event in enumerate(events):
        by_label.setdefault(event.label, []).append(j)
    pairs = sorted(((overlap(truth, events[j]), i, j) for i, truth in enumerate(truths)
                    for j in by_label.get(truth.label, ())
                    if truth.started_at < events[j].ended_at and events[j].started_at < truth.ended_at), reverse=True)
    left_truths, left_events = set(range(len(truths))), set(range(len(events)))
    found = []
    for shared, i, j in pairs:
        if shared >= iou and i in left_truths and j in left_events:
            left_truths.remove(i)
            left_events.remove(j)
            found.append((i, j))
    return found


def event_f1(truths: Sequence[Stretch], events: Sequence[Stretch], iou: float) -> float:
    """Harmonic mean of precision and recall of events at a temporal overlap."""
    total = len(truths) + len(events)
    return 2 * len(match(truths, events, iou)) / total if total else NAN


def union(stretches: Iterable[Stretch]) -> Array:
    """The time that any of the stretches covers, as stretches apart from each other in order, [n, 2] in seconds."""
    found: list[list[float]] = []
    for one in sorted(stretches, key=lambda stretch: stretch.started_at):
        if found and one.started_at <= found[-1][1]:
            found[-1][1] = max(found[-1][1], one.ended_at)
        else:
            found.append([one.started_at, one.ended_at])
    return np.array(found, np.float64).reshape(-1, 2)


def covered_s(stretches: Iterable[Stretch]) -> float:
    """Seconds covered by any of the stretches, overlaps counted once."""
    spans_n2 = union(stretches)
    return float((spans_n2[:, 1] - spans_n2[:, 0]).sum())


def outside(truths: Iterable[Stretch], events: Sequence[Stretch]) -> list[int]:
    """The events that share no time with any truth."""
    spans_n2 = union(truths)
    if not len(spans_n2):
        return list(range(len(events)))
    nexts = np.searchsorted(spans_n2[:, 1], [event.started_at for event in events], side="right")
    return [j for j, (event, i) in enumerate(zip(events, nexts, strict=True))
            if i == len(spans_n2) or spans_n2[i, 0] >= event.ended_at]


def frame_targets(times_T: Array, truths: Iterable[Stretch], labels: Sequence[str]) -> Array:
    """Which labels are true at each tick, bool [T, K]: several at a time where stretches overlap. times_T rise."""
    targets_TK = np.zeros((len(times_T), len(labels)), bool)
    index = {label: k for k, label in enumerate(labels)}
    for truth in truths:
        if truth.label in index:
            first, last = np.searchsorted(times_T, [truth.started_at, truth.ended_at])
            targets_TK[first:last, index[truth.label]] = True
    return targets_TK


def average_precision(scores_TK: Array, targets_TK: Array) -> Array:
    """Average precision of each label over all ticks, [K]; NaN for one that is never true."""
    from sklearn.metrics import average_precision_score

    found_K = np.full(targets_TK.shape[1], NAN)
    seen = np.flatnonzero(targets_TK.any(axis=0))
    for block in (seen[i:i + COLUMNS] for i in range(0, len(seen), COLUMNS)):
        columns = np.asarray(scores_TK[:, block])
        found_K[block] = [average_precision_score(targets_TK[:, k], columns[:, i]) for i, k in enumerate(block)]
    return found_K


def auroc(positive: Sequence[float] | Array, negative: Sequence[float] | Array) -> float:
    """How well a score separates positives from negatives: 1 always, 0.5 not at all."""
    from sklearn.metrics import roc_auc_score

    if not len(positive) or not len(negative):
        return NAN
    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    return float(roc_auc_score(truth, np.r_[np.asarray(positive), np.asarray(negative)]))


class Reliability(NamedTuple):
    """Confidence (highest probability) against accuracy in equally wide bins: counts, and means that are NaN in empty
    bins; all [bins]."""

    counts: Array
    confidence: Array
    accuracy: Array

    @property
    def ece(self) -> float:
        """Expected calibration error: |confidence - accuracy|, bins weighed by their counts."""
        full = self.counts > 0
        gaps = np.abs(self.confidence[full] - self.accuracy[full])
        return float(gaps @ self.counts[full] / self.counts.sum()) if full.any() else NAN

    def as_json(self) -> dict[str, Any]:
        return {"ece": self.ece, **{name: values.tolist() for name, values in self._asdict().items()}}


def reliability(probs_NK: Array, truth_N: Array, bins: int = BINS) -> Reliability:
    """Reliability of the best label of each row. A confidence on an edge counts in the bin below it."""
    best_N, right_N = probs_NK.max(axis=1), ranks(probs_NK, 1)[:, 0] == truth_N
    places_N = np.clip(np.ceil(best_N * bins).astype(int) - 1, 0, bins - 1)
    counts, confidence, accuracy = (np.bincount(places_N, weights, bins) for weights in (None, best_N, right_N))
    with np.errstate(invalid="ignore"):
        return Reliability(counts, confidence / counts, accuracy / counts)


def reliability_of_each(probs_NK: Array, truth_N: Array, asked_NK: Array, bins: int = BINS) -> Reliability:
    """Reliability of every label of each row for itself, of a multi-label head: confidence is its probability, accuracy
    how often it was true. asked_NK: which count; whether others are true is not known."""
    true_NK = np.asarray(truth_N)[:, None] == np.arange(probs_NK.shape[1])
    probs_M = probs_NK[asked_NK]
    return reliability(np.stack([probs_M, np.full(len(probs_M), -1.0)], axis=1), 1 - true_NK[asked_NK], bins)


def undo_temperature(probs_NK: Array, temperature: float, multi_label: bool = False) -> Array:
    """The probabilities had their logits been divided by 1 instead of by `temperature`."""
    tiny = np.finfo(np.float64).tiny
    logits_NK = np.log(np.maximum(probs_NK, tiny))
    if multi_label:
        logits_NK -= np.log(np.maximum(1 - probs_NK, tiny))
    return probabilities(logits_NK * temperature, 1.0, multi_label)


def lanes(stretches: Sequence[Stretch]) -> list[int]:
    """The first lane from 0 for each stretch, in order of their starts, in which it overlaps none before it."""
    found, ends = [0] * len(stretches), list[float]()
    for i in sorted(range(len(stretches)), key=lambda i: stretches[i].started_at):
        found[i] = next((lane for lane, end in enumerate(ends) if end <= stretches[i].started_at), len(ends))
        ends[found[i]:found[i] + 1] = [stretches[i].ended_at]
    return found
