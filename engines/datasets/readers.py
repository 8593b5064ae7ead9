"""Finds out what a dataset is by its files, and reads it."""

import logging
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from engines.datasets.base import Dataset
from engines.datasets.kinds import DATASET_READERS, ClassOrder
from engines.datasets.tables import Reader, ReadOptions
from engines.decoding.paths import is_hidden, is_video, printable
from engines.errors import DatasetError, UsageError

log = logging.getLogger("gatestream.datasets")

_ANNOTATIONS = ("annotations", "annotation", "labels", "label", "epic-kitchens-100-annotations")


def open_dataset(path: str | os.PathLike[str], kind: str = "auto", *, media: str | os.PathLike[str] | None = None,
                 order: ClassOrder = "sorted", rate: float | None = None) -> Dataset:
    """Reads the annotations of a dataset; opens no recording.
    path: its folder, annotations in it or in `annotations/`; kind: one of DATASET_READERS, or auto for the first that
    recognises its files; media: where the recordings are, when elsewhere; order: numbers of Something-Something V1's
    and Jester's classes (see `something.py`); rate: frames per second of folders of frames whose dataset does not fix
    it, 30 if not given. What is wrong with single items is in the dataset's `problems`. Raises UsageError for an
    unknown kind or no such folder, DatasetError for files that cannot be understood."""
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "the folder of a dataset", "check the path")
    if kind not in ("auto", *DATASET_READERS):
        raise UsageError(f"kind {kind!r}", ", ".join(("auto", *DATASET_READERS)), "choose one of these")
    options = ReadOptions(Path(media) if media else folder, order, rate)
    if not options.media.is_dir():
        raise UsageError(f"{options.media}: no such folder", "the folder of the recordings", "check the path")
    readers: list[Reader] = [import_module(module).READERS[name] for name, module in DATASET_READERS.items()
                             if kind in ("auto", name)]
    for reader in readers:
        subfolders = [folder / name for name in _ANNOTATIONS if (folder / name).is_dir()] if reader.in_subfolder else []
        for place in (folder, *subfolders):
            if found := reader.recognise(place):
                dataset = replace(reader.read(place, options), found=found)
                sizes = ", ".join(f"{len(segments)} {split}" for split, segments in dataset.splits.items())
                log.info("%s: %s, recognised by %s (%s)", folder, dataset.name, found, sizes)
                return dataset
    there = sorted(printable(path.name) for path in folder.iterdir() if not is_hidden(path))
    got = f"{printable(folder)} with {', '.join(there[:5]) or 'nothing'}{', ...' if len(there) > 5 else ''}"
    inside = (path for depth in range(1, 5) for path in folder.glob("/".join("*" * depth)))
    if (video := next(filter(is_video, inside), None)) is not None:
        raise DatasetError(f"{got}; its videos lie at {printable(video.relative_to(folder))}",
                           "them right in a folder named after their class: class/video.mp4, or train/class/video.mp4",
                           f"move them, or name the folder {printable(video.parents[1])}")
    raise DatasetError(got, "; or ".join(dict.fromkeys(reader.expected_files for reader in readers)),
                       "check the path, or see gatestream data check --help")
