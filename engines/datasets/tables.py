"""Annotation files -> rows, and rows -> a Dataset's segments: what every reader needs, with faults named once.

A file that cannot be understood is a DatasetError; an item that cannot is a Problem, and is left out."""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engines.datasets.base import Dataset, Problem, Segment
from engines.datasets.kinds import ClassOrder
from engines.datasets.mirror import mirror_labels
from engines.decoding.paths import is_hidden, read_head
from engines.errors import DatasetError, UsageError

# What comes of a stranger's values where they are parsed.
BROKEN = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, SyntaxError, RecursionError, MemoryError)
_TIMESTAMP = re.compile(r"(\d+):(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a user may set, see `open_dataset`."""

    media: Path  # folder of the recordings
    order: ClassOrder = "sorted"
    rate: float | None = None  # frames per second of folders of frames


@dataclass(frozen=True, slots=True)
class Reader:
    """One format of annotations."""

    recognise: Callable[[Path], str]  # a folder -> the names of the files that this format has there, "" for another
    read: Callable[[Path, ReadOptions], Dataset]  # that folder; raises DatasetError for what cannot be understood
    expected_files: str  # that `recognise` looks for, for a message
    in_subfolder: bool = True  # may lie in a folder `annotations`, too


def read_text(path: Path, lines: int | None = None) -> str:
    """A file in UTF-8, or in UTF-16 by its byte-order mark; so many lines of it, if not all. Raises DatasetError."""
    encoding = "utf-16" if read_head(path, 2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        with path.open(encoding=encoding) as file:
            return "".join(islice(file, lines))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}, whose byte {error.start} is no UTF-8", "annotations in UTF-8",
                           f"convert the file, e.g. iconv -f latin1 -t utf-8 {path.name}") from error
    except OSError as error:
        raise DatasetError(f"{path} ({error.strerror})", "a readable file", "check the path") from error


def read_lines(path: Path) -> list[str]:
    """The lines that hold something, without the spaces around them."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def read_json(path: Path) -> Any:
    """Raises DatasetError with the place where the file stops being JSON."""
    try:
        return json.loads(read_text(path))
    except BROKEN as error:
        raise DatasetError(f"{path}, which is no JSON ({error})", "a whole JSON file", "get the file again") from error


def read_json_list(path: Path) -> list[Any]:
    """Raises DatasetError, also for anything but a list."""
    found = read_json(path)
    if not isinstance(found, list):
        raise DatasetError(f"{path}, which is no list", "a list of records", "get the file again")
    return found


def list_files(folder: Path, suffix: str) -> list[Path]:
    """The files with an ending that people have put in a folder."""
    return sorted(path for path in folder.glob(f"*.{suffix}") if path.is_file() and not is_hidden(path))


def read_header(path: Path) -> list[str]:
    """The column names of a CSV file; none where it is no text, as somebody else's file may be."""
    try:
        line = read_text(path, lines=1).strip()
    except DatasetError:
        return []
    return next(csv.reader([line], delimiter=_delimiter(line)), [])


def _delimiter(header: str) -> str:
    """What spreadsheets put between columns: a comma, in many countries a semicolon, or a tab."""
    return max(",;\t", key=header.count)


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file with a header. Raises DatasetError for a missing column, an open quote or uneven rows."""
    text = read_text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(text.partition("\n")[0]))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DatasetError(f"{path}, broken near line {reader.line_num} ({error})", "a whole CSV file",
                           "get the file again") from error
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise DatasetError(f"{path} without the columns {', '.join(missing)}", f"{', '.join(columns)}",
                           "get the file again, or choose the right --kind")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise DatasetError(f"{path}, whose row {number} has {'more' if None in row else 'fewer'} fields than its "
                               "header", "as many fields in every row", "get the file again")
    return rows


def parse_timestamp(timestamp: str) -> float:
    """HH:MM:SS.cc -> seconds. Raises ValueError."""
    if (match := _TIMESTAMP.fullmatch(timestamp.strip())) is None:
        raise ValueError(f"{timestamp!r} is no HH:MM:SS.cc")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def is_name(name: object) -> bool:
    """Whether an id from a file may become part of a path: one plain name that leads nowhere else."""
    return isinstance(name, str) and re.fullmatch(r"(?!\.{1,2}$)[^/\\]{1,200}", name) is not None and name.isprintable()


def order_by_number(numbers: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """{name: number} -> names in the order of their numbers. Raises DatasetError unless they count from 0."""
    try:
        by_number = {int(number): name for name, number in numbers.items()}
    except BROKEN as error:
        raise DatasetError(f"{where} ({error})", "a number for each class name", "get the file again") from error
    if not by_number or sorted(by_number) != list(range(len(numbers))):
        raise DatasetError(f"{where}, whose {len(numbers)} classes are not numbered 0 to {len(numbers) - 1}",
                           "each number once", "get the file again")
    return tuple(by_number[number] for number in range(len(numbers)))


def read_labels(path: Path, sort: bool = False) -> tuple[str, ...]:
    """Class names in class order, from lines or from JSON {name: number}; sort: lines by name. Raises UsageError."""
    try:
        if read_text(path).lstrip().startswith("{"):
            return order_by_number(read_json(path), path)
        return tuple(sorted(read_lines(path)) if sort else read_lines(path))
    except DatasetError as error:
        raise UsageError(f"label file {error.got}", error.wanted, error.do) from error


class DatasetBuilder:
    """Collects segments and problems; what cannot be used is named and left out.
    heads: the labels that segments may carry."""

    def __init__(self, heads: Mapping[str, Sequence[str]]) -> None:
        self.heads = {head: tuple(labels) for head, labels in heads.items()}
        for head, labels in self.heads.items():
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice or not labels:
                raise DatasetError(f"{len(labels)} {head} classes, {len(twice)} of them twice ({', '.join(twice[:3])})",
                                   "one or more classes, each once", "repair the list of classes")
        self._known = {head: frozenset(labels) for head, labels in self.heads.items()}
        self.splits: dict[str, list[Segment]] = {}
        self.problems: list[Problem] = []
        self._split_of: dict[str, str] = {}

    def add_problem(self, kind: str, where: object, detail: str = "") -> None:
        self.problems.append(Problem(kind, str(where), detail))

    def add(self, split: str, segment: Segment) -> None:
        """Takes a segment into a split, unless something is wrong with it."""
        if fault := self._fault(split, segment):
            self.add_problem(fault[0], segment.id, fault[1])
            return
        self._split_of[segment.id] = split
        self.splits.setdefault(split, []).append(segment)

    def _fault(self, split: str, segment: Segment) -> tuple[str, str] | None:
        before = self._split_of.get(segment.id)
        if before is not None:
            return ("duplicate id", f"again in {split}") if before == split else \
                ("same id in two splits", f"{before} and {split}; kept in {before}")
        for head, label in segment.labels.items():
            if label not in self._known[head]:
                return "label outside the list", f"{head} {label!r}"
        stop_s = math.inf if segment.stop_s is None else segment.stop_s
        if not 0 <= segment.start_s < math.inf or math.isnan(stop_s):
            return "impossible times", f"from {segment.start_s:g} to {stop_s:g} s"
        if stop_s < segment.start_s:
            return "stop before start", f"from {segment.start_s:g} to {stop_s:g} s"
        if stop_s == segment.start_s:
            return "zero length", f"at {stop_s:g} s"
        return None

    def build(self, name: str, **facts: Any) -> Dataset:
        """The dataset, whose labels say what a mirror makes of them unless a fact does. Raises DatasetError where
        nothing usable came together."""
        if not any(self.splits.values()):
            reasons = "; ".join(f"{p.kind}: {p.where} {p.detail}".strip() for p in self.problems[:3])
            raise DatasetError(f"{name} without one usable item ({reasons or 'no rows'})", "labelled recordings",
                               "check the annotation files")
        mirrored = {head: mirror_labels(labels) for head, labels in self.heads.items()}
        return Dataset(name, self.heads, self.splits, problems=tuple(self.problems), **{"mirrored": mirrored} | facts)
