"""Which part of a dataset is learnt from, and which is left out to validate with; idle footage that is added to it."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engines.datasets.base import Dataset, Media, Segment
from engines.datasets.media import list_videos
from engines.errors import DatasetError, UsageError
from engines.model.contract import check_background
from engines.synthetic import BACKGROUND

log = logging.getLogger("gatestream.datasets")

IDLE = "idle"  # the kind of segments that `with_idle` adds


def select(data: Dataset, group: int = 0, labels: Collection[str] = (), idle: Iterable[Path] = (),
           idle_without: Collection[str] = (), required: bool = True) -> Dataset:
    """The dataset without a group (see `without_group`) and labels, with idle footage (see `with_idle`).
    required: raise UsageError for a group or label that is not there; else it is ignored, a group with a warning."""
    data = without_group(data, group, required)
    if not required:
        labels = set(labels) & {label for names in data.heads.values() for label in names}
    return with_idle(without_labels(data, labels), idle, idle_without, required)


def check_classes(heads: Mapping[str, Sequence[str]]) -> None:
    """Raises DatasetError for a head that has nothing to tell its one label from."""
    for head, labels in heads.items():
        if len(labels) < 2:
            state = f"is always {labels[0]!r}" if labels else "has no label"
            raise DatasetError(f"a dataset whose {head} {state}", "two labels or more",
                               "add recordings of another one, or of nothing in a folder called background")


def without_group(data: Dataset, group: int, required: bool = True) -> Dataset:
    """The dataset with the segments of this group, if it is not 0, moved from training to validation."""
    everything = data.splits.get("train", ())
    left_out = [segment for segment in everything if segment.group == str(group)]
    if not group:
        return data
    if not left_out:
        if required:
            raise UsageError(f"fold {group} of {data.name}, which has no such group", "the number of one of its groups",
                             "leave no fold out, or another one")
        log.warning("%s has no fold %s, which training left out: ignored", data.name, group)
        return data
    kept = [segment for segment in everything if segment.group != str(group)]
    return replace(data, splits={**data.splits, "train": kept,
                                 "validation": [*data.splits.get("validation", ()), *left_out]})


def without_labels(data: Dataset, labels: Collection[str]) -> Dataset:
    """The dataset without these labels and all that shows them. Raises UsageError for one that no head has."""
    known = {label for names in data.heads.values() for label in names if label != data.background}
    unknown = sorted(set(labels) - known)
    if unknown:
        raise UsageError(f"label {unknown[0]!r} to leave out", f"one of {', '.join(sorted(known)[:20])}",
                         "choose one of these")
    heads = {head: tuple(label for label in names if label not in labels) for head, names in data.heads.items()}
    splits = {split: [one for one in segments if not set(labels) & set(one.labels.values())]
              for split, segments in data.splits.items()}
    return replace(data, heads=heads, splits=splits)


def with_background(data: Dataset, label: str | None) -> Dataset:
    """The dataset with this label as the one that means "nothing"; None: as it is. Raises UsageError."""
    if label is None:
        return data
    check_background(label, {label for labels in data.heads.values() for label in labels}, data.name)
    return replace(data, background=label)


def with_idle(data: Dataset, folders: Iterable[Path], without: Collection[str] = (), required: bool = True) -> Dataset:
    """The dataset with the videos of some folders, which show nothing labelled: a head has a label for that then.
    without: names of videos to validate with instead. Raises DatasetError for a folder without videos; UsageError for
    such a name that no video has, if required."""
    found = list_videos(folders)
    if required and (unknown := sorted(set(without) - {path.stem for path in found})):
        raise UsageError(f"{unknown[0]!r} to leave out of the videos without actions",
                         f"one of {', '.join(path.stem for path in found[:20]) or 'some, in a folder of them'}",
                         "give its name without .mp4 or the like, and the folder with --idle")
    if not found:
        return data
    background = data.background or BACKGROUND
    heads = heads_with(data.heads, background)
    nothing = {head: background for head, labels in heads.items() if background in labels}
    idle = [Segment(f"{path.parent.name}/{path.name}", Media(path), labels=nothing, kind=IDLE) for path in found]
    parts = {"train": [one for one in idle if one.media.path.stem not in without],
             "validation": [one for one in idle if one.media.path.stem in without]}
    splits = {split: [*data.splits.get(split, ()), *parts.get(split, ())] for split in {**data.splits, **parts}}
    return replace(data, heads=heads, background=background, splits=splits)


def heads_with(heads: Mapping[str, tuple[str, ...]], background: str | None) -> dict[str, tuple[str, ...]]:
    """The heads, each with a label for background if none has it yet."""
    if background is None or any(background in labels for labels in heads.values()):
        return dict(heads)
    return {head: (*labels, background) for head, labels in heads.items()}
