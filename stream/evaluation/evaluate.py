"""All measurements of a model on a dataset, through the very path that live use takes."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import engines
from engines.datasets import Media, open_dataset
from engines.errors import GatestreamError
from engines.model.contract import Contract
from stream.evaluation import epic_submission
from stream.evaluation.clips import ClipReport, evaluate_clips
from stream.evaluation.data import Selection, group_by_media, held_out_groups, is_trimmed, max_overlap, select
from stream.evaluation.play import concatenate_videos, join_clips, read_images, render_idle
from stream.evaluation.streams import StreamMeter, StreamReport, evaluate_stream
from stream.recognizer import Recognizer


class EvaluationReport(NamedTuple):
    """What came of `evaluate`."""

    contract: Contract
    selection: Selection
    clips: ClipReport
    stream: StreamReport | None  # None without streams, or idle footage that joins clips to one
    idles: Mapping[str, StreamReport]  # "idle", "rendered_idle": footage without gestures
    skipped: Sequence[tuple[str, str]]  # what could not be measured, and why

    def rejection(self, head: str) -> dict[str, float]:
        """AUROC of known labels against each kind of nothing: clips of no label, and idle footage."""
        clips = self.clips.heads[head]
        return {"clips": clips.rejection(),
                **{name: clips.rejection(part.record.windows(head)) for name, part in self.idles.items()}}

    def as_json(self) -> dict[str, Any]:
        """Everything, with None where there is nothing to measure."""
        parts = {"clips": self.clips, "stream": self.stream, **self.idles}
        found: dict[str, Any] = {name: part.as_json() for name, part in parts.items() if part is not None}
        found["calibration"] = {head: {when: curve.as_json() for when, curve in clips.calibration().items()}
                                for head, clips in self.clips.heads.items()}
        found["rejection"] = {head: self.rejection(head) for head in self.clips.heads}
        if breakdown := self.clips.breakdown(self.selection.rare):
            found["breakdown"] = breakdown
        found["dataset"] = {"name": self.selection.name, "problems": dict(self.selection.problems)}
        found["skipped"] = [{"what": what, "why": why} for what, why in self.skipped]
        return dict(json.loads(json.dumps(found), parse_constant=lambda _: None))  # NaN is null, as strict JSON has it

    def submit(self, path: Path, supervision: Sequence[int]) -> None:
        """Writes the EPIC-KITCHENS-100 submission of these clips. Raises as `write_submission` does."""
        epic_submission.write_submission(path, {
            one.segment.id: {
                head: epic_submission.by_class(scores_K, self.contract.heads[head], self.selection.classes[head])
                for head, scores_K in one.window.items() if head in self.selection.classes}
            for one in self.clips.outcomes}, supervision=supervision)


def evaluate(model: str, dataset: Path, *, fold: int | None = 0, idle: Sequence[Path] = (), engine: str = "auto",
             seed: int = 0, split: str | None = None, groups: Collection[str] = (), rendered_idle_s: float = 0.0,
             rounds: int = 1, strict: bool = False, kind: str = "auto", media: Path | None = None) -> EvaluationReport:
    """Evaluates a model on a dataset folder, read as `engines.datasets.open_dataset(dataset, kind, media=media)` does.
    fold: only this one, 0 all, None what the model's training left out (if the dataset has it and no groups are named);
    split, groups: only these clips; idle: videos without gestures, which join trimmed clips to a stream and are counted
    for false events; rendered_idle_s: seconds of rendered rooms without gestures; rounds: plays the joined stream so
    often without a reset; strict: stops at what cannot be read. Raises DatasetError when nothing is left."""
    loaded = engines.load(model).require_taught()
    data = open_dataset(dataset, kind, media=media)
    if fold is None and not groups:
        groups = held_out_groups(data, loaded.contract, split)
    selection = select(data, loaded.contract, split, [str(fold)] if fold else groups)
    slots = max_overlap(selection.segments) + 1
    with Recognizer(loaded, engines.compile(loaded, engine=engine, slots=slots)) as recognizer:
        return measure(recognizer, selection, idle=idle, seed=seed, rendered_idle_s=rendered_idle_s, rounds=rounds,
                       strict=strict)


def measure(recognizer: Recognizer, selection: Selection, *, idle: Sequence[Path] = (), seed: int = 0,
            rendered_idle_s: float = 0.0, rounds: int = 1, strict: bool = False) -> EvaluationReport:
    """As `evaluate`, with a recogniser and segments at hand."""
    footage, unread = _split_readable(idle, strict)
    with StreamMeter(recognizer) as meter:
        clips = evaluate_clips(recognizer, selection.segments, selection.background, strict=strict, meter=meter)
        lost = {what for what, _ in clips.skipped}
        trimmed = [one for together in group_by_media(selection.segments).values() if is_trimmed(together)
                   for one in together if one.id not in lost and selection.background not in one.labels.values()]
        if trimmed and footage:
            frames, truths = join_clips(trimmed, footage, seed, rounds=rounds)
            meter.rounds = rounds if not meter.streams else 1
            for picture, at in frames:
                meter.push(picture, at)
            meter.end(truths)
        stream = meter.report() if meter.streams else None
    idles = {"idle": evaluate_stream(recognizer, concatenate_videos(footage))} if footage else {}
    if rendered_idle_s:
        rooms = render_idle(rendered_idle_s, recognizer.contract.frame_rate, seed)
        idles["rendered_idle"] = evaluate_stream(recognizer, *rooms)
    return EvaluationReport(recognizer.contract, selection, clips, stream, idles, [*clips.skipped, *unread])


def _split_readable(paths: Sequence[Path], strict: bool) -> tuple[list[Path], list[tuple[str, str]]]:
    """The videos of which a picture can be read, and those of which none can, and why."""
    good, bad = [], []
    for path in paths:
        try:
            next(read_images(Media(path)))
            good.append(path)
        except GatestreamError as error:
            if strict:
                raise
            bad.append((str(path), error.got))
    return good, bad
