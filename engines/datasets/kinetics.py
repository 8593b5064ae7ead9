"""Kinetics-400 and -600: one CSV for each split with `label,youtube_id,time_start,time_end,split`.

A recording is a cut of ten seconds, `<youtube_id>_<start>_<end>.mp4` with six digits each, in one folder or in folders
of its split or class. Classes are numbered by sorted name."""

from pathlib import Path

from engines.datasets import tables
from engines.datasets.base import Dataset, Segment
from engines.datasets.media import ASSUMED_RATE, RecordingIndex

_FOLDERS = ("train", "val", "validation", "validate", "test", "videos", "")
_COLUMNS = ("youtube_id", "time_start", "time_end")
_SPLITS = {"train": "train", "val": "validation", "validate": "validation", "validation": "validation",
           "test": "test", "holdout_test": "test"}


def recognise(folder: Path) -> str:
    return ", ".join(path.name for path in _files(folder))


def read(folder: Path, options: tables.ReadOptions) -> Dataset:
    rows = [(path, row) for path in _files(folder) for row in tables.read_csv(path, _COLUMNS)]
    labels = sorted({row["label"] for _, row in rows if row.get("label")})
    builder = tables.DatasetBuilder({"action": labels})
    index = RecordingIndex([options.media / name for name in _FOLDERS], options.rate or ASSUMED_RATE, deep=True)
    for path, row in rows:
        name = row["youtube_id"]
        stated = row.get("split") or path.stem.replace("-", "_").split("_")[-1]
        if not tables.is_name(name) or stated not in _SPLITS:
            builder.add_problem("no such split or name of a video", f"{path.name} {name}", repr(stated))
            continue
        try:
            start_s, stop_s = float(row["time_start"]), float(row["time_end"])
            clip = f"{name}_{round(start_s):06d}_{round(stop_s):06d}"
        except tables.BROKEN as error:
            builder.add_problem("broken row", name, str(error))
            continue
        if stop_s <= start_s:
            kind = "zero length" if stop_s == start_s else "stop before start"
            builder.add_problem(kind, name, f"from {start_s:g} to {stop_s:g} s")
            continue
        label = row.get("label")
        builder.add(_SPLITS[stated], Segment(clip, index.find(clip, name), group=name,
                                             labels={"action": label} if label else {}))
    return builder.build(f"Kinetics-{len(labels)}")


def _files(folder: Path) -> list[Path]:
    return [path for path in tables.list_files(folder, "csv") if {*_COLUMNS} <= {*tables.read_header(path)}]


READERS = {"kinetics": tables.Reader(recognise, read, "a CSV with the columns label, youtube_id, time_start, time_end")}
