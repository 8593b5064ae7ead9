"""Logged events as the annotation files of public datasets, to train from."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from engines.datasets.epic_files import Narration, write_annotations
from stream.evaluation.metrics import overlap
from stream.scoring import ACTION
from stream.sinks.base import sink_errors
from stream.sinks.log import LoggedEvent, Run, clip_name


def write_epic(folder: Path, found: Sequence[LoggedEvent], runs: Sequence[Run]) -> list[str]:
    """EPIC-KITCHENS-100's files; returns the names of the videos, one for each camera and run. Raises SinkError.
    Times count from a run's first frame, where a recording of it begins, else from the run's start. The events of heads
    `verb` and `noun` that overlap most make a narration; those of another head are verbs, and the head is the noun,
    but for the actions that a model makes of its verbs and nouns, which are left out."""
    origins = {run.id: run.origin for run in runs}
    paired = {each.run for each in found if each.event.head == "verb"}  # whose actions are made of verbs and nouns
    narrations = []
    for each in found:
        if each.event.head == "noun" or (each.event.head == ACTION and each.run in paired):
            continue
        person = re.sub(r"[^\w-]+", "-", each.event.camera).replace("_", "-") or "camera"
        video_id, start_s = f"{person}_{each.run:02d}", each.event.started_at - origins[each.run]
        stop_s, verb, noun = start_s + each.event.ended_at - each.event.started_at, each.event.label, _noun(each, found)
        narrations.append(Narration(each.id, person, video_id, max(0.0, start_s), max(0.0, stop_s), verb, noun,
                                    f"{verb} {noun}"))
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


def _noun(verb: LoggedEvent, found: Sequence[LoggedEvent]) -> str:
    if verb.event.head != "verb":
        return verb.event.head
    nouns = [(overlap(verb.event, each.event), each.event.label) for each in found
             if each.event.head == "noun" and (each.run, each.event.camera) == (verb.run, verb.event.camera)]
    shared, noun = max(nouns, default=(0.0, ""))
    return noun if shared > 0 else "unknown"
