"""Logged events as the annotation files of public datasets, to train from."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from engines.datasets.epic_files import Narration, write_annotations
from stream.evaluation.metrics import overlap
from stream.events import UNKNOWN
from stream.frame import Event
from stream.scoring import ACTION
from stream.sinks.base import sink_errors
from stream.sinks.log import LoggedEvent, clip_name


def find_narrations(found: Sequence[LoggedEvent], keep_unpaired: bool = False) -> tuple[list[Narration], int]:
    """EPIC-KITCHENS-100's narrations of events, of a video for each camera and run, and how many nouns are left out.
    Times count from a run's first frame, where a recording of it begins, else from the run's start. The events of heads
    `verb` and `noun` that overlap most make a narration; those of another head are verbs, and the head is the noun,
    but for the actions that a model makes of its verbs and nouns, which are left out.
    keep_unpaired: a noun that no verb overlaps most gets a narration of its own, with the verb "unknown"."""
    video_of = _name_videos(found)
    paired = {each.run for each in found if each.event.head == "verb"}  # whose actions are made of verbs and nouns
    nouns_of: dict[str, list[LoggedEvent]] = {}
    for each in found:
        if each.event.head == "noun":
            nouns_of.setdefault(video_of[each], []).append(each)
    narrations, used = list[Narration](), set[str]()
    for each in found:
        if each.event.head == "noun" or (each.event.head == ACTION and each.run in paired):
            continue
        named = each.event.head
        if named == "verb":
            noun = _find_noun(each.event, nouns_of.get(video_of[each], []))
            named = UNKNOWN if noun is None else noun.event.label
            used |= set() if noun is None else {noun.id}
        narrations.append(_narrate(each, video_of[each], each.event.label, named))
    unpaired = [each for each in found if each.event.head == "noun" and each.id not in used]
    if keep_unpaired:
        narrations += [_narrate(each, video_of[each], UNKNOWN, each.event.label) for each in unpaired]
    return narrations, 0 if keep_unpaired else len(unpaired)


def write_epic(folder: Path, narrations: Sequence[Narration]) -> list[str]:
    """EPIC-KITCHENS-100's files; returns the names of the videos. Raises SinkError."""
    verbs, nouns = (sorted({getattr(one, part) for one in narrations}) for part in ("verb", "noun"))
    with sink_errors("making", folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_annotations(folder, {"train": narrations}, verbs, nouns, ("verb", "noun"))
    return sorted({one.video_id for one in narrations})


def write_something(folder: Path, found: Sequence[LoggedEvent]) -> list[str]:
    """Something-Something V2's files, for the videos that a service keeps of events; returns their names."""
    labels = sorted({each.event.label for each in found})
    names = [Path(clip_name(each.id, each.event.camera, each.event.label)).stem for each in found]
    records = [{"id": name, "label": each.event.label, "template": each.event.label, "placeholders": []}
               for name, each in zip(names, found, strict=True)]
    tables = {"labels": {label: str(number) for number, label in enumerate(labels)}, "train": records}
    with sink_errors("writing", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            (folder / f"{name}.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    return names


def _name_videos(found: Sequence[LoggedEvent]) -> dict[LoggedEvent, str]:
    """The name of each event's video: its camera, `_`, the number of its run, or of several logs its place among the
    runs. Cameras whose names differ in nothing that such a name may hold are told apart."""
    runs = list(dict.fromkeys(each.run for each in found))
    several_logs = len({run.log for run in runs}) > 1
    numbers = {run: place if several_logs else run.id for place, run in enumerate(runs, 1)}
    people: dict[str, str] = {}
    for camera in dict.fromkeys(each.event.camera for each in found):
        person = re.sub(r"[^\w-]+", "-", camera).replace("_", "-") or "camera"
        taken = len([one for one in people.values() if one == person or re.fullmatch(f"{re.escape(person)}-b+", one)])
        people[camera] = f"{person}-{'b' * taken}" if taken else person
    return {each: f"{people[each.event.camera]}_{numbers[each.run]:02d}" for each in found}


def _narrate(each: LoggedEvent, video_id: str, verb: str, noun: str) -> Narration:
    start_s, stop_s = (max(0.0, at - each.run.origin) for at in (each.event.started_at, each.event.ended_at))
    return Narration(each.id, video_id.rpartition("_")[0], video_id, start_s, stop_s, verb, noun, f"{verb} {noun}")


def _find_noun(verb: Event, nouns: Sequence[LoggedEvent]) -> LoggedEvent | None:
    """The noun that overlaps a verb most."""
    found = max(nouns, key=lambda each: (overlap(verb, each.event), each.event.label), default=None)
    return found if found is not None and overlap(verb, found.event) > 0 else None
