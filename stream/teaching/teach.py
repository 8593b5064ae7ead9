"""Teaching by showing: a folder of recordings in, a model file out (`gatestream teach`)."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import engines
from engines.decoding.paths import printable
from engines.errors import DatasetError, GatestreamError, UsageError
from engines.hands import HAND_FEATURES, models_installed
from engines.model.contract import Contract, EventRule
from engines.model.file import Model, save, write_atomically
from engines.model.scores import probabilities
from engines.training import few_shot
from engines.training.few_shot import NO_BACKGROUND_SCORES, BackgroundScores, HeldOut, TeachReport
from engines.training.pooled_few_shot import forget, teach_pooled
from stream.events import detect_events
from stream.teaching.support_videos import FeatureExtractor, SupportVideo, find_videos

GOOD = 0.8  # of the recordings right when left out
MIN_RECORDINGS = 3  # of a label; with fewer there is a warning
OPEN_ABOVE = (0.9995, 0.999, 0.995, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
CLOSE_LOWER = 0.15  # than opening, at least
MIN_SCORE = (0.8, 0.7, 0.6, 0.5, 0.4)
DURATION_SHARE = 0.5  # of the shortest action seen, that an event has to last at most


class TeachResult(NamedTuple):
    """What teaching gave."""

    contract: Contract
    report: TeachReport
    skipped: list[tuple[str, str]]  # recordings left out, and why
    warnings: list[str]  # what to know before relying on it
    advice: list[str]  # what would help most, most first

    def as_json(self) -> dict[str, Any]:
        return {"type": "teach", "advice": self.advice, "model": self.contract.name,
                "hands": self.contract.looks_for_hands,
                "heads": {head: list(labels) for head, labels in self.contract.heads.items()},
                **self.report.as_json(), "skipped": [list(one) for one in self.skipped], "warnings": self.warnings}


def teach_folder(model: str, folder: Path, out: Path, *, idle: Sequence[Path] = (), head: str | None = None,
                 fresh: bool = False, strict: bool = False, fps: float | None = None, seed: int = 0,
                 engine: str = "auto", name: str | None = None, hands: bool = True, by: str | None = None,
                 note: Callable[[str], None] = lambda _: None) -> TeachResult:
    """Teaches a model the labels of a folder and writes it to `out`.
    folder: a folder for each label (background, idle, nothing: no action) with its recordings, videos or folders of
    images; idle: folders of footage without actions; head: which one learns, needed when there are several; fresh: know
    the folder's labels only; strict: stop at a recording that cannot be read, instead of leaving it out; fps: the rate
    of images; name: of the new model; hands: a base with pooled heads may look at hands, where
    their models are installed. A label that the model has already is taught further; a base with pooled heads is taught
    all labels at once; by: a regular expression: recordings in whose name it finds the same text (a person, a place)
    are left out together.
    Raises UsageError, DatasetError, SourceError, SinkError."""
    loaded = engines.load(model)
    head = check_head(loaded, head)
    if not loaded.contract.network.causal:
        raise UsageError(f"{loaded.contract.name}, which is bidirectional", "a causal model to teach",
                         "train or convert one with --causal")
    if by is not None and loaded.contract.pooling is None:
        raise UsageError(f"--by {by} for {loaded.contract.name}, which leaves out each recording by itself",
                         "a model with pooled heads, such as base", "leave it out, or teach base")
    loaded = prepare_model(loaded, head, fresh=fresh, hands=hands)
    background = few_shot.background_label(loaded.contract, head, fresh)
    videos = find_videos(folder, background, idle)
    clips, skipped = [], []
    with closing(engines.compile(loaded, engine=engine, slots=1)) as compiled:
        extractor = FeatureExtractor(loaded, compiled, fps)
        for i, video in enumerate(videos):
            note(f"watching {i + 1} of {len(videos)}: {printable(video.path.name)}")
            try:
                clips += extractor.extract(video, recording_name(video.path, folder), background)
            except GatestreamError as error:
                if strict:
                    raise
                skipped.append((printable(video.path), str(error)))
        if extractor.learns_from_rooms(videos, background):
            note("watching rendered rooms where nothing is done")
            clips += extractor.play_rendered(background)
    warnings = _check_counts(videos, {clip.recording for clip in clips}, folder, background)
    if loaded.contract.pooling is None:
        taught = few_shot.teach(loaded, clips, head, fresh=fresh, seed=seed, note=note)
    else:
        group_of = {clip.recording: group_name(clip.recording, by) for clip in clips}
        taught = teach_pooled(loaded, clips, head, background, seed=seed, group_of=group_of, note=note)
    if taught.report.pseudo_labels:
        warnings.append(f"the model carries no examples of {', '.join(taught.report.pseudo_labels)}: they are "
                        "protected by what its head says alone; add recordings of them to keep them at their best")
    note("choosing when an event opens")
    contract = taught.contract
    rule = event_rule(contract, head, taught.held_out, taught.background_scores)
    contract = Contract.model_validate({**contract.model_dump(), "events": rule, "name": name or file_name(out)})
    save(out, contract, taught.tensors, half=loaded.half, graph=loaded.graph)
    groups = {name: group_name(name, by) for name in {clip.recording for clip in clips}}
    grouped = 1 < len({*groups.values()}) < len(groups)
    return TeachResult(contract, taught.report, skipped, warnings, advise(contract, taught.report, grouped))


def advise(contract: Contract, report: TeachReport, grouped: bool) -> list[str]:
    """What would help the lesson most, in words. grouped: persons or places were left out as a whole."""
    advice = []
    if report.confusion and report.accuracy < GOOD:
        advice.append(f"{report.accuracy:.0%} is not enough to rely on: record each label more often, at more places, "
                      "and as it will look in use")
    if contract.background is None:
        advice.append("idle footage, as recordings of nothing: until it has seen some, whatever moves is taken for an "
                      "action")
    if not grouped:
        advice.append("recordings at another place or of another person: how it does there has not been asked")
    return advice


def write_report(result: TeachResult, path: Path) -> None:
    """Writes the result as JSON. Raises SinkError."""
    write_atomically(path, (json.dumps(result.as_json(), indent=2) + "\n").encode())


def event_rule(contract: Contract, head: str, held_out: Sequence[HeldOut],
               background_scores: BackgroundScores = NO_BACKGROUND_SCORES) -> EventRule:
    """The event rule with the best event F1 on the recordings left out.
    Of equal ones the model's own, then the strictest, as footage that nobody recorded may look like an action, too. A
    rule under which more stored moments of background could open an event than before is used if there is no other."""
    if not any(one.clip.ended for one in held_out):
        return contract.events
    own, labels = contract.events, contract.heads[head]
    lengths_s = [(one.clip.ended - one.clip.started) / contract.frame_rate for one in held_out if one.clip.ended]
    least_s = round(min(own.min_duration_s, DURATION_SHARE * min(lengths_s)), 3)
    lasting = own.model_copy(update={"min_duration_s": least_s})
    if contract.pooling is not None:  # single recordings say little of how scores rise and fall in a stream
        # What is shorter than an action and named otherwise is rather the beginning of it than another one.
        return lasting.model_copy(update={"split_after_s": round(float(np.median(lengths_s)), 3)})
    rules = [lasting, *(lasting.model_copy(update={"open_above": above, "min_score": score, "close_below": round(
                            min(own.close_below, above - CLOSE_LOWER), 3)})
                        for above, score in product(OPEN_ABOVE, MIN_SCORE))]
    most = (background_scores.before_N > own.open_above).sum()
    after_N = background_scores.after_N
    rules = [rule for rule in rules if (after_N > rule.open_above).sum() <= most] or rules[1:1 + len(MIN_SCORE)]
    now, window = contract.temperature.get(head, 1.0), contract.window_temperature.get(head, 1.0)
    scored = [(one.clip.label if one.clip.ended else None,
               probabilities(one.now_TK, now), probabilities(one.window_TK, window)) for one in held_out]

    def f1(rule: EventRule) -> float:
        right = total = 0
        for label, now_TK, window_TK in scored:
            times_s = (np.arange(len(now_TK)) / contract.frame_rate).tolist()
            events = detect_events(times_s, now_TK, window_TK, labels=labels, background=contract.background, rule=rule)
            right += any(event.label == label for event in events)
            total += len(events) + (label is not None)
        return 2 * right / total if total else 0.0

    return max(rules, key=f1)  # the first of equals


def file_name(path: Path) -> str:
    """A model's name, made of its file's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)[:64]


def prepare_model(model: Model, head: str, *, fresh: bool, hands: bool) -> Model:
    """The model as recordings are played to it. Pooled heads begin anew, with hands where asked for and installed.
    Raises UsageError for a pooled head that would have to forget."""
    if model.contract.pooling is None:
        return model
    if not fresh and model.taught:
        raise UsageError(f"{model.contract.name}, which knows {', '.join(model.contract.heads[head])} but not their "
                         "recordings", "all recordings in one folder, old and new",
                         "put them together and teach base, or add --fresh to forget what it knows")
    return forget(model, head, HAND_FEATURES if hands and models_installed() else 0)


def check_head(model: Model, head: str | None) -> str:
    """The head that learns: the named one, or the only one. Raises UsageError."""
    if model.contract.multi_label:
        raise UsageError(f"lessons for {model.contract.name}, a multi-label model", "one of single labels",
                         "train it on the recordings, or choose another model")
    heads = list(model.contract.heads)
    if head is None and len(heads) == 1:
        return heads[0]
    if head not in heads:
        raise UsageError(f"head {head!r}" if head else f"{model.contract.name} without a head named",
                         f"one of {', '.join(heads)}", "choose one with --head")
    return head


def group_name(name: str, by: str | None) -> str:
    """What the pattern `by` finds in a recording's name (its first group, if it has one); the name if nothing.
    Raises UsageError for what is no regular expression."""
    try:
        match = re.search(by, name) if by else None
    except re.error as error:
        raise UsageError(f"--by {by} ({error})", "a regular expression, such as person[0-9]+", "correct it") from None
    return name if match is None else match[match.lastindex or 0]


def recording_name(path: Path, folder: Path) -> str:
    """A recording's name in reports: its path under the folder."""
    return printable(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _check_counts(videos: Sequence[SupportVideo], used: set[str], folder: Path, background: str) -> list[str]:
    """Warnings about labels with few recordings. Raises DatasetError for one of which none could be used."""
    asked = Counter(one.label for one in videos)
    usable = Counter(one.label for one in videos if recording_name(one.path, folder) in used)
    warnings = []
    for label in asked:
        if label != background and not usable[label]:
            raise DatasetError(f"label {label!r}, of whose {asked[label]} recordings none can be read",
                               f"{MIN_RECORDINGS} or more", "record it again, or remove its folder")
        if label != background and usable[label] < MIN_RECORDINGS:
            few = f"{usable[label]} recordings:" if usable[label] > 1 else \
                "one recording: it cannot be left out to be tested;"
            warnings.append(f"label {label!r} has {few} record {MIN_RECORDINGS} or more")
    return warnings
