"""Something-Something V1 and V2, and Jester, which V1's layout was made for.

    V2      {something-something-v2-,}{labels,train,validation,test}.json; recordings <id>.webm
    V1      something-something-v1-{labels,train,validation,test}.csv, jester-v1-...: semicolons, no header; a folder of
            numbered jpg files for each id. Re-packs with commas and a header are read, too.

V2 numbers its classes itself. V1 and Jester do not: most published code numbers them by sorted name ("sorted"), some
by line of the labels file ("lines"); a checkpoint knows only numbers, so choose its order."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from engines.datasets import folders, tables
from engines.datasets.base import Dataset, Segment
from engines.datasets.media import RecordingIndex
from engines.errors import DatasetError

RATE = 12.0  # frames per second of all three
Row = tuple[str, str | None]  # id, label
_SPLITS = ("train", "validation", "test")
_FILE = re.compile(r"(?i)(?:20bn-)?(?:(?:something-something|jester)-v(\d)-)?(train|validation|val|test|labels)")
_FOLDERS = ("videos", "frames", "rawframes", "20bn-something-something-v2", "20bn-something-something-v1",
            "20bn-jester-v1", "Train", "Validation", "Test", "")
_ID = ("video_id", "id", "video", "name", "folder")  # columns of re-packs
_LABEL = ("label", "label_name", "class", "class_name", "template", "gesture")


def recognise_v2(folder: Path) -> str:
    labels, splits = _files(folder, "json")
    return f"{labels.name}, {next(iter(splits.values())).name}" if labels and splits else ""


def recognise_v1(folder: Path) -> str:
    labels, splits = _files(folder, "csv")
    found = next(iter(splits.values()), None)
    own = found and ("-v1-" in found.name.lower() or labels or (_packed(found) and _fits(folder, found)))
    return found.name if found and own else ""


def _fits(folder: Path, packed: Path) -> bool:
    """Whether a file of so common a name is about recordings that are here, or no others are."""
    index = RecordingIndex([folder / name for name in _FOLDERS], RATE)
    try:
        return folders.recognise(folder) == "" or any(
            index.find(name).path.exists() for name, _ in islice(_rows(packed, "test"), 20))
    except DatasetError:
        return False


def read_v2(folder: Path, options: tables.ReadOptions) -> Dataset:
    labels, splits = _files(folder, "json")
    assert labels is not None  # else it was not recognised
    builder = tables.DatasetBuilder({"action": tables.order_by_number(tables.read_json(labels), labels)})
    index = RecordingIndex([options.media / name for name in _FOLDERS], RATE)
    for split, path in splits.items():
        for name, label in _items(builder, path, labelled=split != "test"):
            _take(builder, index, split, name, label, ".webm")
    return builder.build("Something-Something V2")


def read_v1(folder: Path, options: tables.ReadOptions) -> Dataset:
    listed, splits = _files(folder, "csv")
    rows = {split: list(_rows(path, split)) for split, path in splits.items()}
    if listed is not None:
        labels = tables.read_lines(listed)
    elif options.order == "lines":
        raise DatasetError(f"{folder} without a file of labels", "one, for classes in the order of its lines",
                           "get the labels file, or use the sorted order")
    else:
        labels = list(dict.fromkeys(label for _, label in rows.get("train", []) if label))
    builder = tables.DatasetBuilder({"action": sorted(labels) if options.order == "sorted" else labels})
    index = RecordingIndex([options.media / name for name in _FOLDERS], RATE)
    for split, items in rows.items():
        for name, label in items:
            _take(builder, index, split, name, None if split == "test" else label, "")
    jester = any("jester" in path.name.lower() for path in (*splits.values(), folder)) or "Swiping Left" in labels
    return builder.build("Jester" if jester else "Something-Something V1",
                         background="No gesture" if "No gesture" in labels else None)


def _take(builder: tables.DatasetBuilder, index: RecordingIndex, split: str, name: str, label: str | None,
          suffix: str) -> None:
    if not tables.is_name(name):
        builder.add_problem("no such name of a video", repr(name))
        return
    builder.add(split, Segment(name, index.find(name, suffix=suffix), group=name,
                                 labels={} if label is None else {"action": label}))


def _items(builder: tables.DatasetBuilder, path: Path, labelled: bool) -> Iterator[Row]:
    """Id and class of V2's records: the class is the template without its brackets."""
    for number, record in enumerate(tables.read_json_list(path)):
        name, template = (record.get(key) if isinstance(record, dict) else None for key in ("id", "template"))
        if not isinstance(name, str | int) or (labelled and not isinstance(template, str)):
            builder.add_problem("record without id or template", f"{path.name} {number}")
        else:
            yield str(name), re.sub(r"[\[\]]", "", template) if labelled and isinstance(template, str) else None


def _rows(path: Path, split: str) -> Iterator[Row]:
    """Id and class of a CSV file, native or re-packed. Raises DatasetError."""
    native = tables.read_lines(path)
    if not native:
        raise DatasetError(f"{path}, which is empty", "a row for each recording", "get the file again")
    if not _packed(path):
        for number, line in enumerate(native, 1):
            parts = [part.strip() for part in line.split(";")]
            if len(parts) != (1 if split == "test" else 2) and not (split == "test" and len(parts) == 2):
                raise DatasetError(f"{path}, whose line {number} has {len(parts)} parts ({line[:60]!r})",
                                   "id;class in each line", "get the file again")
            yield parts[0], parts[1] if len(parts) > 1 else None
        return
    rows = tables.read_csv(path)
    names, labels = (next((column for column in wanted for own in rows[:1] if column in own), None)
                     for wanted in (_ID, _LABEL))
    if names is None or (labels is None and split != "test"):
        raise DatasetError(f"{path} with the columns {', '.join(rows[0]) if rows else 'of no row'}",
                           f"an id ({', '.join(_ID)}) and a class ({', '.join(_LABEL)})", "rename the columns")
    for row in rows:
        yield row[names], row[labels] if labels else None


def _packed(path: Path) -> bool:
    """Whether a file is a re-pack: commas, and a first line that names its columns."""
    return any(column in _ID for column in tables.read_header(path))


def _files(folder: Path, suffix: str) -> tuple[Path | None, dict[str, Path]]:
    """The file of the labels and those of the splits, with their dataset's name in front or without, in any case."""
    version, found = "2" if suffix == "json" else "1", dict[str, Path]()
    for path in tables.list_files(folder, suffix):
        match = _FILE.fullmatch(path.stem)
        if match and match[1] in (None, version):
            found.setdefault("validation" if match[2].lower() == "val" else match[2].lower(), path)
    return found.get("labels"), {split: found[split] for split in _SPLITS if split in found}


_V1 = tables.Reader(recognise_v1, read_v1, "something-something-v1-*.csv, jester-v1-*.csv, or Train.csv and "
                                           "Validation.csv")
READERS = {"something-v2": tables.Reader(recognise_v2, read_v2, "labels.json and train.json (or "
                                                                "something-something-v2-*.json)"),
           "something-v1": _V1, "jester": _V1}
