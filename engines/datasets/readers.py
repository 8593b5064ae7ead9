"""Finds out what a dataset is by its files, and reads it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from engines.datasets import diving48, egogestar, epic, folders, kinetics, something
from engines.datasets.base import Dataset
from engines.datasets.kinds import ClassOrder, DatasetKind
from engines.errors import DatasetError, UsageError

log = logging.getLogger("gatestream.datasets")

_ANNOTATIONS = ("annotations", "annotation", "labels", "label", "epic-kitchens-100-annotations")


@dataclass(frozen=True, slots=True)
class _Choices:
    """What a user may set: see `open_dataset`."""

    media: Path
    order: ClassOrder
    rate: float | None


@dataclass(frozen=True, slots=True)
class _Kind:
    recognise: Callable[[Path], str]
    read: Callable[[Path, _Choices], Dataset]
    expected_files: str


READERS = {
    "epic": _Kind(epic.recognise, lambda folder, of: epic.read(folder, of.media), epic.EXPECTED_FILES),
    "something-v2": _Kind(something.recognise_v2, lambda folder, of: something.read_v2(folder, of.media),
                          something.EXPECTED_FILES_V2),
    "diving48": _Kind(diving48.recognise, lambda folder, of: diving48.read(folder, of.media, of.rate),
                      diving48.EXPECTED_FILES),
    "kinetics": _Kind(kinetics.recognise, lambda folder, of: kinetics.read(folder, of.media, of.rate),
                      kinetics.EXPECTED_FILES),
    "something-v1": _Kind(something.recognise_v1, lambda folder, of: something.read_v1(folder, of.media, of.order),
                          something.EXPECTED_FILES_V1),
    "egogestar": _Kind(egogestar.recognise, lambda folder, of: egogestar.read(folder), egogestar.EXPECTED_FILES),
    "folders": _Kind(folders.recognise, lambda folder, of: folders.read(folder, of.media, of.rate),
                     folders.EXPECTED_FILES),
}
KINDS: tuple[str, ...] = get_args(DatasetKind)
ALIASES = {"jester": "something-v1", "sense": "folders"}


def open_dataset(path: str | os.PathLike[str], kind: str = "auto", *, media: str | os.PathLike[str] | None = None,
                 order: ClassOrder = "sorted", rate: float | None = None) -> Dataset:
    """Reads the annotations of a dataset; opens no recording.

    path: its folder, annotations in it or in `annotations/`; kind: one of KINDS; media: where the recordings are, when
    elsewhere; order: numbers of Something-Something V1's and Jester's classes (see `something.py`); rate: frames per
    second of folders of frames whose dataset does not fix it, 30 if not given. What is wrong with single items is in
    the dataset's `problems`. Raises UsageError for an unknown kind or no such folder, DatasetError for files that
    cannot be understood.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "the folder of a dataset", "check the path")
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r}", ", ".join(KINDS), "choose one of these")
    choices = _Choices(Path(media) if media else folder, order, rate)
    if not choices.media.is_dir():
        raise UsageError(f"{choices.media}: no such folder", "the folder of the recordings", "check the path")
    wanted = READERS if kind == "auto" else {name: READERS[name] for name in [ALIASES.get(kind, kind)]}
    for name, reader in wanted.items():
        for place in (folder, *(inside for part in _ANNOTATIONS if (inside := folder / part).is_dir())):
            found = reader.recognise(place)
            if found and not (name == "folders" and place != folder):
                dataset = replace(reader.read(place, choices), found=found)
                sizes = ", ".join(f"{len(segments)} {split}" for split, segments in dataset.splits.items())
                log.info("%s: %s, recognised by %s (%s)", folder, dataset.name, found, sizes)
                return dataset
    there = sorted(inside.name for inside in folder.iterdir())
    raise DatasetError(f"{folder} with {', '.join(there[:5]) or 'nothing'}{', ...' if len(there) > 5 else ''}",
                       "; or ".join(reader.expected_files for reader in wanted.values()),
                       "check the path, or see gatestream data check --help")
