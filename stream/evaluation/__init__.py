"""How good a model is, measured through the very path that live use takes: sources, clock, recogniser, events.

    data.py        which labelled stretches, in the model's own words
    play.py        what is played: recordings, clips joined by idle footage, rendered rooms
    record.py      the full scores of a stream, for trying other thresholds
    clips.py       each clip from a fresh stream; right when the last `window` score names its label
    streams.py     streams: events are matched with the truth; in idle footage every event is a false one
    thresholds.py  the event rule that keeps to a number of false events
    figures.py     pictures of all that; report.py puts numbers and pictures on one page
    evaluate       all of it together
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engines
from engines.datasets import Media, open_dataset
from engines.errors import GatestreamError
from engines.model.contract import Contract
from stream.evaluation import epic_submission, metrics
from stream.evaluation.clips import ClipReport, Skipped, evaluate_clips
from stream.evaluation.data import Chosen, choose, held_out_groups, is_trimmed, max_overlap, recordings
from stream.evaluation.play import Truth, concatenate_videos, joined, pictures, rendered_idle
from stream.evaluation.streams import IOU, StreamMeter, StreamReport, evaluate_stream
from stream.frame import Event
from stream.recognizer import Recognizer

__all__ = [
    "ClipReport",
    "Report",
    "StreamMeter",
    "StreamReport",
    "Truth",
    "choose",
    "concatenate_videos",
    "evaluate",
    "evaluate_clips",
    "evaluate_stream",
    "joined",
    "match",
    "measure",
    "rendered_idle",
]


@dataclass(frozen=True)
class Report:
    """What came of `evaluate`. stream: None without idle footage to join clips with or videos that are streams
    themselves; idle, rendered_idle: None without such footage."""

    contract: Contract
    chosen: Chosen
    clips: ClipReport
    stream: StreamReport | None = None
    idle: StreamReport | None = None
    rendered_idle: StreamReport | None = None
    skipped: Sequence[Skipped] = field(default=())

    @property
    def idles(self) -> dict[str, StreamReport]:
        """The footage without gestures, by kind."""
        parts = {"idle": self.idle, "rendered_idle": self.rendered_idle}
        return {name: part for name, part in parts.items() if part is not None}

    def rejection(self, head: str) -> dict[str, float]:
        """AUROC of known labels against each kind of nothing: clips of no label, and idle footage."""
        clips = self.clips.heads[head]
        return {"clips": clips.rejection(),
                **{name: clips.rejection(part.record.windows(head)) for name, part in self.idles.items()}}

    def as_json(self) -> dict[str, Any]:
        """Everything, with None for what cannot be said."""
        parts = {"clips": self.clips, "stream": self.stream, **self.idles}
        found: dict[str, Any] = {name: part.as_json() for name, part in parts.items() if part is not None}
        found["calibration"] = {head: {when: curve.as_json() for when, curve in clips.calibration().items()}
                                for head, clips in self.clips.heads.items()}
        found["rejection"] = {head: self.rejection(head) for head in self.clips.heads}
        breakdown = self.clips.breakdown(self.chosen.rare)
        if breakdown:
            found["breakdown"] = breakdown
        found["dataset"] = {"name": self.chosen.name, "problems": dict(self.chosen.problems)}
        found["skipped"] = [{"what": one.what, "why": one.why} for one in self.skipped]
        plain: dict[str, Any] = _without_nan(found)
        return plain

    def submit(self, path: Path, supervision: tuple[int, int, int]) -> None:
        """Writes the EPIC-KITCHENS-100 submission of these clips; see `stream.evaluation.epic_submission`."""
        epic_submission.write_submission(path, {
            one.segment.id: {
                head: epic_submission.by_class(scores_K, self.contract.heads[head], self.chosen.classes[head])
                for head, scores_K in one.window.items() if head in self.chosen.classes}
            for one in self.clips.outcomes}, supervision=supervision)


def evaluate(model: str, dataset: Path, *, fold: int | None = 0, idle: Sequence[Path] = (), engine: str = "auto",
             seed: int = 0, split: str | None = None, groups: Collection[str] = (), rendered_idle_s: float = 0.0,
             rounds: int = 1, strict: bool = False, kind: str = "auto", media: Path | None = None) -> Report:
    """Evaluates a model on a dataset folder: all its clips, or those of a split, of some groups, or of one fold; None:
    of what the model's training left out, if the dataset has it and no groups are named.

    kind, media: see `engines.datasets.open_dataset`.
    idle: videos without gestures, which join trimmed clips to a stream and are counted for false events;
    rendered_idle_s: seconds of rendered rooms without gestures; rounds: the joined stream so often on end, without a
    reset; strict: stop at what cannot be read.
    Raises DatasetError when nothing is left.
    """
    loaded = engines.load(model)
    data = open_dataset(dataset, kind, media=media)
    if fold is None and not groups:
        groups = held_out_groups(data, loaded.contract, split)
    chosen = choose(data, loaded.contract, split, [str(fold)] if fold else groups)
    slots = max_overlap(chosen.segments) + 1
    with Recognizer(loaded, engines.compile(loaded, engine=engine, slots=slots)) as recognizer:
        return measure(recognizer, chosen, idle=idle, seed=seed, rendered_idle_s=rendered_idle_s, rounds=rounds,
                       strict=strict)


def measure(recognizer: Recognizer, chosen: Chosen, *, idle: Sequence[Path] = (), seed: int = 0,
            rendered_idle_s: float = 0.0, rounds: int = 1, strict: bool = False) -> Report:
    """As `evaluate`, of a recogniser that is there and segments that are chosen."""
    contract = recognizer.contract
    footage, unread = _readable(idle, strict)
    with StreamMeter(recognizer) as meter:
        clips = evaluate_clips(recognizer, chosen.segments, chosen.background, strict=strict, meter=meter)
        lost = {one.what for one in clips.skipped}
        trimmed = [segment for together in recordings(chosen.segments).values() if is_trimmed(together)
                   for segment in together if segment.id not in lost
                   and chosen.background not in segment.labels.values()]
        if trimmed and footage:
            frames, truths = joined(trimmed, footage, seed, rounds=rounds)
            meter.rounds = rounds if not meter.streams else 1
            for image, at in frames:
                meter.push(image, at)
            meter.end(truths)
        stream = meter.report() if meter.streams else None
    quiet = evaluate_stream(recognizer, concatenate_videos(footage)) if footage else None
    rooms = rendered_idle(rendered_idle_s, contract.frame_rate, seed) if rendered_idle_s else []
    return Report(contract, chosen, clips, stream, quiet,
                  evaluate_stream(recognizer, *rooms) if rooms else None, [*clips.skipped, *unread])


def match(truths: Sequence[Truth], events: Sequence[Event], iou: float = IOU) -> list[tuple[Truth, Event]]:
    """Pairs of truth and event with the same label that overlap enough, best overlap first, each used once."""
    return [(truths[i], events[j]) for i, j in metrics.match(truths, events, iou)]


def _readable(paths: Sequence[Path], strict: bool) -> tuple[list[Path], list[Skipped]]:
    """The videos of which a picture can be read, and those of which none can."""
    good: list[Path] = []
    bad: list[Skipped] = []
    for path in paths:
        frames = pictures(Media(path))
        try:
            next(frames)
            good.append(path)
        except GatestreamError as error:
            if strict:
                raise
            bad.append(Skipped(str(path), error.got))
    return good, bad


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and value != value else value
