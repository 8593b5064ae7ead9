"""Writes annotations in EPIC-KITCHENS-100's own files, which `epic.py` and other readers of that dataset take."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.datasets.epic import frame_number
from engines.errors import SinkError

_COLUMNS = ("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
            "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
            "all_noun_classes")


@dataclass(frozen=True, slots=True)
class Narration:
    """A labelled stretch of a video; seconds from its start. video_id: the person's name, `_` and a number."""

    narration_id: str
    person: str
    video_id: str
    start_s: float
    stop_s: float
    verb: str
    noun: str
    text: str


@dataclass(frozen=True, slots=True)
class Video:
    """What EPIC_100_video_info.csv tells of a video."""

    video_id: str
    seconds: float
    rate: float
    size_hw: tuple[int, int]


def write_annotations(folder: Path, narrations: Mapping[str, Sequence[Narration]], verbs: Sequence[str],
                      nouns: Sequence[str], categories: tuple[str, str], videos: Sequence[Video] = ()) -> None:
    """narrations: of each split; verbs, nouns: the classes in their order; categories: of verbs and nouns; videos: all
    of them, or none. Raises SinkError."""
    for split, found in narrations.items():
        _table(folder / f"EPIC_100_{split}.csv", _COLUMNS, [_row(one, verbs, nouns) for one in found])
    for head, labels, category in zip(("verb", "noun"), (verbs, nouns), categories, strict=True):
        _table(folder / f"EPIC_100_{head}_classes.csv", ("id", "key", "instances", "category"),
               [[number, label, [label], category] for number, label in enumerate(labels)])
    if videos:
        _table(folder / "EPIC_100_video_info.csv", ("video_id", "duration", "fps", "resolution"),
               [[video.video_id, video.seconds, video.rate, f"{video.size_hw[1]}x{video.size_hw[0]}"]
                for video in videos])


def _row(one: Narration, verbs: Sequence[str], nouns: Sequence[str]) -> list[object]:
    start_s, stop_s, noun = round(one.start_s, 2), round(one.stop_s, 2), nouns.index(one.noun)
    return [one.narration_id, one.person, one.video_id, f"{_stamp(start_s)}0", _stamp(start_s), _stamp(stop_s),
            frame_number(start_s, one.video_id), frame_number(stop_s, one.video_id), one.text, one.verb,
            verbs.index(one.verb), one.noun, noun, [one.noun], [noun]]


def _stamp(time_s: float) -> str:
    minutes, hundredths = divmod(round(time_s * 100), 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"


def _table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
    except OSError as error:
        raise unwritable(path, str(error.strerror)) from error


def unwritable(path: Path, why: str) -> SinkError:
    """The complaint about a file that cannot be written."""
    return SinkError(f"{path} ({why})", "a folder that can be written", "free some space or choose another folder")
