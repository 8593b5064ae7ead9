"""EPIC-KITCHENS-100: verbs and nouns of 700 kitchen videos. Segments overlap, and unlabelled gaps are background.

Annotations (EPIC_100_*.csv) in the folder itself or in `annotations/`; recordings as the official download lays them
out, anywhere under the folder of the media:

    P01/videos/P01_01.MP4                     timestamps count
    P01/rgb_frames/P01_01/frame_0000000001.jpg   start_frame and stop_frame count, as file names; tars unpacked

Frame columns are not in the videos' own rate: files were extracted at 60 frames/s (videos P01_01, of EPIC-55) or 50
(videos P01_101, the extension). The pickles beside the CSV files hold the same and are never opened."""

import ast
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from engines.datasets import tables
from engines.datasets.base import Dataset, Media, Segment
from engines.decoding.paths import list_images
from engines.errors import DatasetError

_SPLITS = {"train": "train", "validation": "validation", "test": "test_timestamps"}
_UDA = {"train": "uda_source_train", "source_validation": "uda_source_val", "validation": "uda_target_val"}
_TIMES = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "start_frame",
          "stop_frame")
_LABELS = ("verb_class", "noun_class", "all_noun_classes")
_FRAMES_AGREE = 2  # frames between a timestamp and its column; published rows agree within one
_CORRECTED = {"P01_109", "P27_103"}  # frames published before this day were bad
_CORRECTED_ON = datetime(2020, 9, 26, tzinfo=UTC)


def frame_rate(video_id: str) -> float:
    """Frames per second at which the published frames of a video were extracted."""
    return 60.0 if len(video_id.split("_")[-1]) == 2 else 50.0


def frame_number(time_s: float, video_id: str) -> int:
    """The number in the frame columns for a time: counted down, 1 at least."""
    return max(1, int(time_s * frame_rate(video_id) + 1e-6))


def recognise(folder: Path) -> str:
    """The file that tells this kind, or ""."""
    names = [*_SPLITS.values(), *_UDA.values()]
    return next((f"EPIC_100_{name}.csv" for name in names if (folder / f"EPIC_100_{name}.csv").is_file()), "")


def read(folder: Path, options: tables.ReadOptions) -> Dataset:
    """The UDA challenge's files are read where the main ones are absent: `train` is its source, `validation` its
    target."""
    main = [split for split, name in _SPLITS.items() if (folder / f"EPIC_100_{name}.csv").is_file()]
    files = _SPLITS if main else _UDA
    builder = tables.DatasetBuilder({head: _classes(folder, head) for head in ("verb", "noun")})
    info, find = _info(folder / "EPIC_100_video_info.csv"), cache(partial(_find, builder, options.media))
    for split, name in files.items():
        path = folder / f"EPIC_100_{name}.csv"
        if not path.is_file():
            if split != "test":
                builder.add_problem("no file for a split", path.name, f"{split} is left out")
            continue
        unseen = {row["participant_id"] for row in
                  _optional(folder / f"EPIC_100_unseen_participant_ids_{split}.csv", ("participant_id",))}
        columns = _TIMES if split == "test" else (*_TIMES, *_LABELS)
        for row in tables.read_csv(path, columns):
            _take(builder, split, row, find, info, unseen)
    rare = {head: _tail(folder / f"EPIC_100_tail_{head}s.csv", head, labels) for head, labels in builder.heads.items()}
    return builder.build("EPIC-KITCHENS-100" + ("" if main else " UDA"), rare=rare)


def _take(builder: tables.DatasetBuilder, split: str, row: Mapping[str, str], find: Callable[..., Media],
          info: Mapping[str, tuple[float, float]], unseen: Collection[str]) -> None:
    """One row. narration_timestamp is not looked at: it is empty in some rows and says when somebody spoke."""
    name, video_id, person = row["narration_id"], row["video_id"], row["participant_id"]
    if not (tables.is_name(video_id) and tables.is_name(person) and "_" in video_id):
        builder.add_problem("no such name of a video", name, repr(video_id))
        return
    try:
        start_s, stop_s = tables.parse_timestamp(row["start_timestamp"]), tables.parse_timestamp(row["stop_timestamp"])
        first, last = int(row["start_frame"]), int(row["stop_frame"])
        labels = {} if split == "test" else _labels(builder, row)
    except tables.BROKEN as error:
        builder.add_problem("broken row", name, str(error))
        return
    if any(abs(frame_number(time_s, video_id) - frame) > _FRAMES_AGREE for time_s, frame in
           ((start_s, first), (stop_s, last))):
        builder.add_problem("frames disagree with timestamps", name,
                          f"{first} to {last}, but {start_s:g} to {stop_s:g} s at {frame_rate(video_id):g} frames/s")
    stated_s, stated_rate = info.get(video_id, (None, None))
    if info and stated_s is None:
        builder.add_problem("not in EPIC_100_video_info.csv", name, video_id)
    recording = find(person, video_id, stated_rate, stated_s)
    if recording.rate is not None:  # frames are files: the first and the last one named, both included
        assert recording.first is not None
        start_s = max(first - recording.first, 0) / recording.rate
        stop_s = max(last - recording.first + 1, 0) / recording.rate
    builder.add(split, Segment(name, recording, start_s, stop_s, labels, group=person,
                                 kind="unseen" if person in unseen else ""))


def _labels(builder: tables.DatasetBuilder, row: Mapping[str, str]) -> dict[str, str]:
    """Class names of a row; classes outside the list stay as numbers, for the complaint. Raises ValueError."""
    numbers = {"verb": int(row["verb_class"]), "noun": int(row["noun_class"])}
    every = ast.literal_eval(row["all_noun_classes"])
    if not isinstance(every, list) or not every or every[0] != numbers["noun"]:
        builder.add_problem("nouns disagree", row["narration_id"], f"class {numbers['noun']}, all {every}")
    return {head: builder.heads[head][n] if 0 <= n < len(builder.heads[head]) else f"class {n}"
            for head, n in numbers.items()}


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    path = folder / f"EPIC_100_{head}_classes.csv"
    rows = tables.read_csv(path, ("id", "key"))
    if len({row["key"] for row in rows}) != len(rows):
        raise DatasetError(f"{path}, which names a class twice", "each key once", "get the file again")
    return tables.order_by_number({row["key"]: row["id"] for row in rows}, path)


def _optional(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a file that may be missing."""
    return tables.read_csv(path, columns) if path.is_file() else []


def _info(path: Path) -> dict[str, tuple[float, float]]:
    """{video: (duration in s, frames/s)} as EPIC_100_video_info.csv has it; empty without that file."""
    try:
        return {row["video_id"]: (float(row["duration"]), float(row["fps"]))
                for row in _optional(path, ("video_id", "duration", "fps"))}
    except ValueError as error:
        raise DatasetError(f"{path} ({error})", "durations and rates in numbers", "get the file again") from error


def _tail(path: Path, head: str, labels: Sequence[str]) -> frozenset[str]:
    """The rare labels of a head, of which a file has the numbers."""
    numbers = [row[head] for row in _optional(path, (head,))]
    if not all(number.isdecimal() and int(number) < len(labels) for number in numbers):
        raise DatasetError(f"{path} with numbers of no class", f"numbers from 0 to {len(labels) - 1}",
                           "get the file again")
    return frozenset(labels[int(number)] for number in numbers)


def _find(builder: tables.DatasetBuilder, media: Path, person: str, video_id: str, stated_rate: float | None,
          stated_s: float | None) -> Media:
    """The recording of a video, as a file before one as frames; where it should be, if there is none."""
    roots = [media / name for name in ("", "EPIC-KITCHENS", "videos", "EPIC_KITCHENS_100")]
    for path in (root / folder / f"{video_id}{suffix}" for root in roots for suffix in (".MP4", ".mp4")
                 for folder in (f"{person}/videos", person, "")):
        if path.is_file():
            return Media(path, stated_rate=stated_rate, stated_s=stated_s)
    for path in (root / folder / video_id for root in roots for folder in (f"{person}/rgb_frames", person, "")):
        if path.is_dir():
            frames = list_images(path) if video_id in _CORRECTED else []
            if frames and os.path.getmtime(frames[0]) < _CORRECTED_ON.timestamp():
                builder.add_problem("frames older than their correction", path,
                                    "corrected on 26 September 2020: get them again with --errata")
            return Media(path, frame_rate(video_id), 1)
        tar = path.with_name(f"{video_id}.tar")
        if tar.is_file():
            builder.add_problem("tar not unpacked", tar, f"unpack it into {path}")
    return Media(media / person / "videos" / f"{video_id}.MP4", None, 1, stated_rate, stated_s)


READERS = {"epic": tables.Reader(recognise, read, "EPIC_100_train.csv, EPIC_100_validation.csv or "
                                                  "EPIC_100_uda_*.csv")}
