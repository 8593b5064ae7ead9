"""Labelled clips, each from a fresh stream: right when the last `window` score names the label."""

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from engines.datasets import Media, Segment
from engines.errors import DatasetError, FrameError, GatestreamError
from engines.model.contract import Contract
from stream.clock import TIME_NOISE_S
from stream.evaluation import metrics
from stream.evaluation.data import group_by_media, is_trimmed
from stream.evaluation.metrics import Array, Truth
from stream.evaluation.play import read_images
from stream.evaluation.streams import StreamMeter
from stream.recognizer import Recognizer
from stream.scoring import PARTS, Scores, ranks, without_label

TOPS = (1, 5)
UNSEEN = "unseen"  # the kind of clips of people who are not in training


class ClipScores(NamedTuple):
    """A clip and its last window scores, {head: probabilities [K]}."""

    segment: Segment
    window: Mapping[str, Array]


class HeadClips:
    """Clips that have a label of one head. Clips of the background count for calibration and rejection alone."""

    def __init__(self, outcomes: Sequence[ClipScores], head: str, contract: Contract, background: str | None) -> None:
        own = contract.heads[head]
        mine = [one for one in outcomes if head in one.segment.labels]
        chosen = [one for one in mine if one.segment.labels[head] != background]
        nothing = [one for one in mine if one.segment.labels[head] == background]
        self.labels = own + tuple(sorted({one.segment.labels[head] for one in chosen} - set(own)))
        """The model's labels, then those it does not have."""
        self.segments = [one.segment for one in chosen]
        self.scores_NK = np.array([one.window[head] for one in chosen]).reshape(-1, len(own))
        self.truth_N = np.array([self.labels.index(one.segment.labels[head]) for one in chosen], np.int64)
        self._nothing_NK = np.array([one.window[head] for one in nothing]).reshape(-1, len(own))
        self.background = own.index(background) if background in own else None
        self._temperature = contract.window_temperature.get(head, 1.0)
        self._multi_label = head in contract.multi_label
        near = group_by_media([one.segment for one in mine]) if self._multi_label else {}
        beside = [[other.labels[head] for other in near.get(one.segment.media, ()) if other.overlaps(one.segment)]
                  for one in chosen]
        self._asked_NK = np.array([[label == one.segment.labels[head] or label not in others for label in own]
                                   for one, others in zip(chosen, beside, strict=True)], bool).reshape(-1, len(own))

    @property
    def answers_N(self) -> Array:
        return ranks(self.scores_NK, 1)[:, 0]

    @cached_property
    def confusion(self) -> Array:
        """Truth by answer over `labels`."""
        return metrics.confusion(self.truth_N, self.answers_N, len(self.labels))

    def per_class(self) -> dict[str, float]:
        """Accuracy of each label that occurs."""
        found = zip(self.labels, metrics.per_class(self.confusion), strict=True)
        return {label: float(value) for label, value in found if value == value}

    def accuracy(self, keep: Array | None = None, top: int = 1) -> float:
        """Top-k accuracy, of the clips in the mask `keep` only if there is one."""
        rows = slice(None) if keep is None else keep
        return metrics.top_k(self.scores_NK[rows], self.truth_N[rows], top)

    def calibration(self) -> dict[str, metrics.Reliability]:
        """Reliability before and after temperature, of clips whose label the model has, background among them."""
        known = self.truth_N < self.scores_NK.shape[1]
        probs_NK, truth_N = self.scores_NK[known], self.truth_N[known]
        if self.background is not None or self._multi_label:
            probs_NK = np.concatenate([probs_NK, self._nothing_NK])
            nothing = -1 if self.background is None else self.background
            truth_N = np.r_[truth_N, np.full(len(self._nothing_NK), nothing)]
        before_NK = metrics.undo_temperature(probs_NK, self._temperature, self._multi_label)
        if not self._multi_label:
            return {"before": metrics.reliability(before_NK, truth_N), "after": metrics.reliability(probs_NK, truth_N)}
        asked_NK = np.ones(probs_NK.shape, bool)
        asked_NK[:np.count_nonzero(known)] = self._asked_NK[known]
        return {"before": metrics.reliability_of_each(before_NK, truth_N, asked_NK),
                "after": metrics.reliability_of_each(probs_NK, truth_N, asked_NK)}

    def rejection(self, nothing_NK: Array | None = None) -> float:
        """AUROC of telling clips of known labels from those of none by their highest probability of any label but
        background. nothing_NK: scores of something else that shows nothing, such as idle footage."""
        known = self.truth_N < self.scores_NK.shape[1]
        return metrics.auroc(self._likely(self.scores_NK[known]),
                             self._likely(self._nothing_NK if nothing_NK is None else nothing_NK))

    def as_json(self) -> dict[str, Any]:
        counts, per_class = dict(zip(self.labels, self.confusion.sum(axis=1).tolist(), strict=True)), self.per_class()
        return {"clips": len(self.segments), **{f"top{k}": self.accuracy(top=k) for k in TOPS},
                "mean_class_accuracy": metrics.mean_of_known(per_class.values()),
                "per_class": {label: {"clips": counts[label], "accuracy": share} for label, share in per_class.items()},
                "labels_unknown_to_the_model": list(self.labels[self.scores_NK.shape[1]:]),
                "confusion": {"labels": list(self.labels), "counts": self.confusion.tolist()}}

    def _likely(self, probs_NK: Array) -> Array:
        kept = probs_NK if self.background is None else np.delete(probs_NK, self.background, axis=1)
        return kept.max(axis=1) if len(kept) else np.zeros(0)


@dataclass
class ClipReport:
    """What came of labelled clips. Fill `outcomes` first; the figures are of what is there when they are asked for."""

    contract: Contract
    background: str | None = None
    outcomes: list[ClipScores] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # what could not be measured, and why

    @cached_property
    def heads(self) -> dict[str, HeadClips]:
        return {head: HeadClips(self.outcomes, head, self.contract, self.background) for head in self.contract.heads}

    @property
    def first(self) -> HeadClips:
        """The first head: of most models, the only one."""
        return next(iter(self.heads.values()))

    def accuracy(self, kind: str | None = None) -> float:
        """Share of clips (of one kind) whose last window score names the first head's label."""
        clips = self.first
        return clips.accuracy(None if kind is None else np.array([one.kind == kind for one in clips.segments], bool))

    def actions(self) -> dict[str, Any]:
        """Accuracy of (verb, noun) pairs by the product of their scores; {} without such heads."""
        if not set(PARTS) <= set(self.heads):
            return {}
        verb, noun = self._pairs()
        return {"clips": len(verb.segments), **{f"top{k}": metrics.top_k_pairs(
            verb.scores_NK, noun.scores_NK, verb.truth_N, noun.truth_N, k) for k in TOPS}}

    def breakdown(self, rare: Mapping[str, Collection[str]]) -> dict[str, Any]:
        """Top-1 over rare labels and over people who are not in training (clips of kind "unseen"); {} without either.
        As EPIC-KITCHENS-100 defines them: an action is rare when its verb or its noun is."""
        if not set(PARTS) <= set(self.heads):
            return {}
        verb, noun = self._pairs()
        rare_verb, rare_noun = (np.array([one.labels[head] in rare.get(head, ()) for one in verb.segments], bool)
                                for head in PARTS)
        unseen = np.array([one.kind == UNSEEN for one in verb.segments], bool)

        def top1(verb_rows: Array, noun_rows: Array, rows: Array) -> dict[str, Any]:
            return {"clips": int(rows.sum()), "verb": verb.accuracy(verb_rows), "noun": noun.accuracy(noun_rows),
                    "action": metrics.top_k_pairs(verb.scores_NK[rows], noun.scores_NK[rows], verb.truth_N[rows],
                                                  noun.truth_N[rows], 1)}

        return {**({"tail": top1(rare_verb, rare_noun, rare_verb | rare_noun)} if rare else {}),
                **({"unseen": top1(unseen, unseen, unseen)} if unseen.any() else {})}

    def as_json(self) -> dict[str, Any]:
        first = self.first
        kinds = sorted({segment.kind for segment in first.segments if segment.kind})
        answers = zip(first.truth_N, first.answers_N, strict=True)
        wrong = [f"{first.labels[truth]} as {first.labels[answer]}" for truth, answer in answers if truth != answer]
        return {"clips": len(first.segments), "accuracy": self.accuracy(),
                "by_kind": {kind: self.accuracy(kind) for kind in kinds}, "wrong": wrong,
                "heads": {head: clips.as_json() for head, clips in self.heads.items()},
                **({"actions": actions} if (actions := self.actions()) else {})}

    def _pairs(self) -> list[HeadClips]:
        """Verb and noun of the clips that have both, row by row, without background: no pair has that."""
        both = [one for one in self.outcomes if all(
            one.segment.labels.get(head, self.background) != self.background for head in PARTS)]
        found = [HeadClips(both, head, self.contract, self.background) for head in PARTS]
        for part in found:
            part.scores_NK = without_label(part.scores_NK, part.background)
        return found


def evaluate_clips(recognizer: Recognizer, segments: Sequence[Segment], background: str | None = None, *,
                   strict: bool = False, meter: StreamMeter | None = None) -> ClipReport:
    """Runs every segment from a fresh stream, decoding each recording once.
    Segments that overlap run beside each other, so the recogniser needs as many slots, and one more with a meter: it
    plays recordings that are longer than their one segment as whole streams too, with their segments as the truth.
    background: the label that means "nothing". What cannot be read is skipped and named; strict: it raises."""
    report = ClipReport(recognizer.contract, background)
    for media, together in group_by_media(segments).items():
        stream = None if is_trimmed(together) else meter
        try:
            found = _play(recognizer, media, together, background, stream)
            silent = [segment for segment in together if id(segment) not in {id(one.segment) for one in found}]
            if silent and strict:
                raise DatasetError(f"{silent[0].id}, which gave no prediction", "a clip of a few frames in its video",
                                   "leave it out of the dataset")
            report.outcomes += found
            report.skipped += [(segment.id, "not one frame of it is in its recording") for segment in silent]
        except GatestreamError as error:
            if strict:
                raise
            report.skipped += [(segment.id, error.got) for segment in together]
    return report


def _play(recognizer: Recognizer, media: Media, segments: Sequence[Segment],
          background: str | None, meter: StreamMeter | None) -> list[ClipScores]:
    """The last scores of each segment of one recording that has any, each played on a camera of its own."""
    in_order = sorted(segments, key=lambda segment: segment.start_s)
    segment_of = {f"clip {number}": segment for number, segment in enumerate(in_order)}
    stop_of = {camera: math.inf if one.stop_s is None else one.stop_s for camera, one in segment_of.items()}
    waiting, running = deque(segment_of), deque[str]()
    last: dict[str, Scores] = {}

    def on_scores(camera: str, _at: float, _steps: int, scores: Scores) -> None:
        last[camera] = scores

    recognizer.score_listeners |= {camera: partial(on_scores, camera) for camera in segment_of}
    at = 0.0
    try:
        for picture, at in read_images(media):
            for camera in [one for one in running if at >= stop_of[one] - TIME_NOISE_S]:
                running.remove(camera)
                recognizer.reset(camera)
            while waiting and segment_of[waiting[0]].start_s <= at + TIME_NOISE_S:
                running.append(waiting.popleft())
            if not (waiting or running or meter):
                break
            with suppress(FrameError):  # a picture that cannot be used is left out
                for camera in running:
                    recognizer.push(picture, at, camera)
            if meter is not None:
                meter.push(picture, at)
    finally:
        for camera in running:
            recognizer.reset(camera)
        for camera in segment_of:
            del recognizer.score_listeners[camera]
        if meter is not None:
            meter.end(_truths(segments, at, background))
    return [ClipScores(segment, last[camera].window) for camera, segment in segment_of.items() if camera in last]


def _truths(segments: Iterable[Segment], end_s: float, background: str | None) -> dict[str, list[Truth]]:
    truths: dict[str, list[Truth]] = {}
    for segment in segments:
        for head, label in segment.labels.items():
            stop_s = end_s if segment.stop_s is None else min(segment.stop_s, end_s)
            if label != background and stop_s > segment.start_s:
                truths.setdefault(head, []).append(Truth(label, segment.start_s, stop_s))
    return truths
