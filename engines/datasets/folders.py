"""Recordings in a folder for each class, as people collect their own.

    train/<class>/*.mp4, val/<class>/*.mp4              splits as given (validation, valid, test likewise)
    videos_train/<class>/*, videos_valid/<class>/*      a project of sense, with its project_config.json
    <class>/*.mp4                                       split here, a fifth of each class for validation
    any of them with folders of frames for videos, or <class>/<recording>/rgb/000000.png as TAO has it

Splitting is by recording: files of the same name under several classes, and cuts of one recording (`kitchen_clip3`,
`kitchen_000010_000020`), stay together. The split depends on names only, so it is the same on every machine."""

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from engines.datasets import tables
from engines.datasets.base import Dataset, Media, Segment
from engines.datasets.media import ASSUMED_RATE
from engines.decoding.paths import is_image, is_video, list_visible, normalise_label, printable

PROJECT = "project_config.json"
VALIDATION_SHARE = 0.2
_GIVEN = {"train": "train", "videos_train": "train", "training": "train", "val": "validation", "valid": "validation",
          "validation": "validation", "videos_valid": "validation", "test": "test", "testing": "test"}
_CUT = re.compile(r"(?:[_-](?:clip|part|cut|seg|segment)[_-]?\d+|_\d{4,}_\d{4,})$", re.IGNORECASE)
_BACKGROUNDS = ("background", "idle")


def recognise(folder: Path) -> str:
    given = [printable(path.name) for path in _folders(folder) if path.name.lower() in _GIVEN]
    if given:
        return f"{', '.join(given)}/<class>"
    found = [printable(path.name) for path in islice((path for path in _folders(folder) if any(_recordings(path))), 4)]
    return f"<class>/ ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})" if found else ""


def read(folder: Path, options: tables.ReadOptions) -> Dataset:
    """The folders of the classes are in `options.media`; `folder` may hold a project's settings only."""
    media, rate = options.media, options.rate
    given = {path: _GIVEN[path.name.lower()] for path in _folders(media) if path.name.lower() in _GIVEN}
    classes = [(split, path) for root, split in (given or {media: ""}).items() for path in _folders(root)]
    held = {path: list(_recordings(path, rate)) for _, path in classes}
    found = [(split, normalise_label(path.name), recording) for split, path in classes for recording in held[path]]
    labels = sorted({label for _, label, _ in found} | set(_stated(folder)))
    builder = tables.DatasetBuilder({"action": labels})
    for _, path in classes:
        shown = printable(path.relative_to(media))
        if not held[path]:
            deeper = next((inside for inside in path.glob("*/*") if is_video(inside)), None)
            builder.add_problem("class without a recording", shown, "" if deeper is None else
                                f"videos lie a folder deeper: {printable(deeper.relative_to(media))}")
        used = {recording.path.parent if recording.path.name == "rgb" else recording.path for recording in held[path]}
        for ignored in (inside for inside in list_visible(path) if held[path] and inside not in used):
            builder.add_problem("ignored", printable(ignored.relative_to(media)),
                                "a folder without images" if ignored.is_dir() else "no video by its name")
    for stray in filter(is_video, media.iterdir()):
        builder.add_problem("ignored", printable(stray.name), "a video in no class's folder")
    validation = set() if given else choose_validation([(label, _group(recording)) for _, label, recording in found])
    for split, label, recording in found:
        name = printable(f"{split}/{label}/{recording.path.name}".strip("/"))
        own = split or ("validation" if _group(recording) in validation else "train")
        # Where the splits are given, 1.mp4 here and 1.mp4 there need not come from one recording.
        group = name if split and not _CUT.search(recording.path.stem) else _group(recording)
        builder.add(own, Segment(name, recording, group=group, labels={"action": label}))
    background = next((label for label in labels if label.lower() in _BACKGROUNDS), None)
    title = "a sense project" if (folder / PROJECT).is_file() else "class folders"
    return builder.build(title, background=background, split_by_us=not given)


def choose_validation(recordings: list[tuple[str, str]], share: float = VALIDATION_SHARE) -> set[str]:
    """Groups for validation, of (label, group) pairs: about `share` of each class, at least one and never all."""
    groups_of = [{group for own, group in recordings if own == label} for label in sorted(dict(recordings))]
    chosen: set[str] = set()
    for groups in groups_of:
        wanted = min(max(1, round(share * len(groups))), len(groups) - 1)
        left = sorted(groups - chosen, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
        chosen |= set(left[:max(0, wanted - len(groups & chosen))])
    for groups in groups_of:  # another class may have taken this one's last
        if groups <= chosen:
            chosen.discard(min(groups))
    return chosen


def _group(recording: Media) -> str:
    return printable(_CUT.sub("", recording.path.parent.name if recording.path.name == "rgb" else
                              recording.path.stem if recording.rate is None else recording.path.name))


def _recordings(folder: Path, rate: float | None = None) -> Iterator[Media]:
    """Videos and folders of frames directly inside."""
    for path in list_visible(folder):
        if path.is_dir():
            frames = path / "rgb" if (path / "rgb").is_dir() else path
            if any(map(is_image, frames.iterdir())):
                yield Media(frames, rate or ASSUMED_RATE, None)
        elif is_video(path):
            yield Media(path)


def _folders(folder: Path) -> list[Path]:
    return [path for path in list_visible(folder) if path.is_dir()]


def _stated(folder: Path) -> list[str]:
    """Classes that a sense project lists."""
    settings = tables.read_json(folder / PROJECT) if (folder / PROJECT).is_file() else {}
    classes = settings.get("classes") if isinstance(settings, dict) else None
    return [str(name) for name in classes] if isinstance(classes, list | dict) else []


_READER = tables.Reader(recognise, read, "folders of videos or of frames named after classes, alone or under train/ "
                                         "and val/", in_subfolder=False)
READERS = {"folders": _READER, "sense": _READER}
