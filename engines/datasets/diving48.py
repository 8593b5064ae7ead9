"""Diving48: dives cut from competitions. `Diving48_V2_{train,test}.json` and `Diving48_vocab.json`.

A recording is `<vid_name>.mp4` (or a folder of frames, at the video's own rate); the recordings of one competition,
which share the name before the last underscore, are one group."""

from pathlib import Path

from engines.datasets import tables
from engines.datasets.base import Dataset, Segment
from engines.datasets.media import ASSUMED_RATE, RecordingIndex
from engines.errors import DatasetError

VOCABULARY = "Diving48_vocab.json"
_FOLDERS = ("rgb", "videos", "frames", "Diving48_rgb/rgb")


def recognise(folder: Path) -> str:
    found = _file(folder, "train") or _file(folder, "test")
    return f"{found.name}, {VOCABULARY}" if found and (folder / VOCABULARY).is_file() else ""


def read(folder: Path, options: tables.ReadOptions) -> Dataset:
    vocabulary = tables.read_json_list(folder / VOCABULARY)
    if not all(isinstance(parts, list) for parts in vocabulary):
        raise DatasetError(f"{folder / VOCABULARY}, which is no list of lists", "the parts of each class's name",
                           "get the file again")
    labels = ["+".join(map(str, parts)) for parts in vocabulary]
    builder = tables.DatasetBuilder({"action": labels})
    index = RecordingIndex([options.media / name for name in (*_FOLDERS, "")], options.rate or ASSUMED_RATE)
    for split in ("train", "test"):
        path = _file(folder, split)
        if path is None:
            builder.add_problem("no file for a split", f"Diving48_V2_{split}.json", f"{split} is left out")
            continue
        for number, record in enumerate(tables.read_json_list(path)):
            where = f"{path.name} {number}"
            try:
                name, label = record["vid_name"], int(record["label"])
                first, end = float(record["start_frame"]), float(record["end_frame"])
            except tables.BROKEN as error:
                builder.add_problem("broken record", where, f"{type(error).__name__} {error}")
                continue
            if not tables.is_name(name):
                builder.add_problem("no such name of a video", where, repr(name))
                continue
            recording = index.find(name)
            own_rate = recording.rate or ASSUMED_RATE
            # Every published start is 0: the recordings are cut already, and a whole one needs no rate.
            whole = first == 0 and end > 0 and recording.rate is None
            builder.add(split, Segment(name, recording, 0.0 if whole else first / own_rate,
                                       None if whole else end / own_rate,
                                       {"action": labels[label] if 0 <= label < len(labels) else f"class {label}"},
                                       group=name.rsplit("_", 1)[0]))
    return builder.build("Diving48")


def _file(folder: Path, split: str) -> Path | None:
    return next((path for version in ("V2_", "") if (path := folder / f"Diving48_{version}{split}.json").is_file()),
                None)


READERS = {"diving48": tables.Reader(recognise, read, "Diving48_V2_train.json (or Diving48_train.json) and "
                                                      "Diving48_vocab.json")}
