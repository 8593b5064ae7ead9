"""Examines a dataset before hours are spent on it: annotations first, then every recording.

    report = check(open_dataset(folder), shorter_than_s=2.0)
    report.problems          # missing, unreadable, short, inconsistent, ..., one record each
    report.groups()          # {"missing": [Problem, ...], ...}, the most frequent first

Of a video the header is read, the last frames are decoded, and a few from all over it looked at; if deep, all."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

from engines.datasets.base import Dataset, Media, Problem, Segment
from engines.datasets.decode import stills
from engines.decoding.images import read_image
from engines.decoding.paths import printable, similar_labels
from engines.decoding.sanity import PictureMonitor
from engines.decoding.video import open_video
from engines.errors import DatasetError, FrameError, SourceError

_RATES_AGREE = 0.02  # relative difference between a video's rate and the one stated
_TIMES_AGREE_S = 0.25  # between a recording's length and a stated one; timestamps are rounded, audio is longer
_TAIL_S = 2.0  # before a video's stated end, in which its last frame is expected
_LOOKS = 4  # places of a video, or images of a folder, that are looked at unless all are
_LISTED = 10  # items of a group of problems in the JSON

BY_HAND = ("class folders", "a sense project")  # datasets whose splits somebody has made at home

Progress = Callable[[int, int], None]  # recordings done, of how many


@dataclass(frozen=True, slots=True)
class Recording:
    """What is found in a recording."""

    seconds: float = 0.0  # 0 where unknown
    rate: float = 0.0
    size_hw: tuple[int, int] = (0, 0)
    fault: str = ""  # "missing", "unreadable", or "damaged" where some frames decode and others do not
    detail: str = ""
    notes: tuple[str, ...] = ()  # what is unusual about its pictures or times

    @property
    def usable(self) -> bool:
        return self.fault in ("", "damaged")


@dataclass(frozen=True)
class Report:
    """What is found in a dataset."""

    dataset: Dataset
    counts: dict[str, dict[str, dict[str, int]]]  # {split: {head: {label: segments}}}
    recordings: int  # how many there are
    readable: int  # of them
    seconds: float  # of all readable ones
    problems: tuple[Problem, ...]
    unusable: frozenset[str]  # ids of segments whose recording cannot be read

    def groups(self) -> dict[str, list[Problem]]:
        """Problems by kind, the most frequent kind first."""
        counted = Counter(problem.kind for problem in self.problems)
        return {kind: [problem for problem in self.problems if problem.kind == kind]
                for kind in sorted(counted, key=lambda kind: (-counted[kind], kind))}

    def as_json(self) -> dict[str, object]:
        """Everything but the segments, for a program."""
        return {"dataset": self.dataset.name, "found": self.dataset.found,
                "splits": {split: len(segments) for split, segments in self.dataset.splits.items()},
                "counts": self.counts, "recordings": self.recordings, "readable": self.readable,
                "seconds": round(self.seconds, 3),
                "problems": {kind: {"count": len(found), "first": [[p.where, p.detail] for p in found[:_LISTED]]}
                             for kind, found in self.groups().items()}}


def check(dataset: Dataset, shorter_than_s: float = 0.0, deep: bool = False,
          progress: Progress = lambda _, __: None) -> Report:
    """Examines every recording of a dataset. shorter_than_s: segments below it are "short".
    Raises nothing for what is wrong with single recordings: that is what the report is about."""
    media = list(dict.fromkeys(segment.media for segments in dataset.splits.values() for segment in segments))
    seen: dict[Media, Recording] = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda one: inspect_recording(one, deep), media)
        for done, (one, recording) in enumerate(zip(media, found, strict=True), 1):
            seen[one] = recording
            progress(done, len(media))
    problems = [*dataset.problems, *_labels(dataset), *_recordings(seen), *_lengths(dataset, seen, shorter_than_s),
                *_twins(dataset, seen)]
    unusable = frozenset(segment.id for segments in dataset.splits.values() for segment in segments
                         if not seen[segment.media].usable)
    good = [recording for recording in seen.values() if recording.usable]
    return Report(dataset, counts(dataset), len(seen), len(good), sum(recording.seconds for recording in good),
                  tuple(problems), unusable)


def counts(dataset: Dataset) -> dict[str, dict[str, dict[str, int]]]:
    """{split: {head: {label: segments}}}, labels in the dataset's order, those without a segment included."""
    found = {split: Counter(item for segment in segments for item in segment.labels.items())
             for split, segments in dataset.splits.items()}
    return {split: {head: {label: seen[head, label] for label in labels} for head, labels in dataset.heads.items()}
            for split, seen in found.items()}


def inspect_recording(media: Media, deep: bool = False) -> Recording:
    """Opens one recording; deep: decodes all of it."""
    if not media.path.exists():
        return Recording(fault="missing", detail=str(media.path))
    try:
        return _inspect_video(media, deep) if media.rate is None else _inspect_frames(media, deep)
    except (DatasetError, SourceError, OSError) as error:
        return Recording(fault="unreadable", detail=str(getattr(error, "got", error)))


def _inspect_video(media: Media, deep: bool, seek: bool = True) -> Recording:
    with closing(open_video(media.path)) as video:
        rate, stated_s, size_hw = video.rate, video.seconds, video.size_hw
        monitor = PictureMonitor(printable(media.path), rate, stated_s)
        last_s, damaged_s, apart_s, looked_s = 0.0, None, 0.0 if deep else stated_s / (2 * _LOOKS), -math.inf
        tail_s = max(stated_s - _TAIL_S, 0.0) if seek and not deep else 0.0
        arrived = False
        for start_s in () if not tail_s else (stated_s * part / _LOOKS for part in range(_LOOKS)):
            first = next(filter(None, video.frames(start_s)), None)
            if first is not None and first.at_s >= looked_s + apart_s:
                looked_s = first.at_s
                with suppress(FrameError):
                    monitor.add(looked_s, first.picture())
        for found in video.frames(tail_s):
            try:
                if found is not None:
                    last_s, arrived = found.at_s, True
                    if last_s >= looked_s + apart_s:
                        looked_s = last_s
                        monitor.add(last_s, found.picture(), found.missing)
                elif damaged_s is None:
                    damaged_s = last_s
            except FrameError:
                damaged_s = last_s if damaged_s is None else damaged_s
        notes = (*video.notes, *monitor.finish(whole=deep))
    if tail_s > 0 and not arrived:  # cut off, or of times that lead elsewhere
        return _inspect_video(media, deep, seek=False)
    seconds, detail = last_s + (1 / rate if rate > 0 else 0.0), ""
    if stated_s - seconds > max(_TIMES_AGREE_S, 3 / rate if rate > 0 else 0):
        detail = f"{printable(media.path)}: states {stated_s:.2f} s, its last frame that decodes is at {last_s:.2f} s"
    elif damaged_s is not None:
        detail = f"{printable(media.path)}: a frame after {damaged_s:.2f} s does not decode"
    return Recording(seconds, rate, size_hw, "damaged" if detail else "", detail, notes)


def _inspect_frames(media: Media, deep: bool) -> Recording:
    assert media.rate is not None
    found = stills(media)
    if not found:
        return Recording(fault="unreadable", detail=f"{printable(media.path)}: no image in it")
    opened = found if deep else list(dict.fromkeys(found[part * (len(found) - 1) // _LOOKS]
                                                   for part in range(_LOOKS + 1)))
    monitor, size_hw, broken = PictureMonitor(printable(media.path)), (0, 0), []
    for at_s, path in opened:
        try:
            image = read_image(path)
        except FrameError as error:
            broken.append(error.got)
            continue
        size_hw = image.shape[0], image.shape[1]
        monitor.add(at_s, image)
    detail = broken[0] if broken else ""
    if len(broken) == len(opened):
        return Recording(fault="unreadable", detail=detail)
    return Recording(found[-1][0] + 1 / media.rate, media.rate, size_hw, "damaged" if broken else "", detail,
                     tuple(monitor.finish(whole=deep)))


def _labels(dataset: Dataset) -> Iterator[Problem]:
    """Classes that cannot be learnt or tested; those without any clip are seen in the counts."""
    for head, names in dataset.heads.items():
        if len(names) == 1:
            yield Problem("one class", f"{head} {names[0]}", "there is nothing to tell it from")
        for alike in similar_labels(names):
            yield Problem("labels alike", head, " and ".join(map(repr, alike)))
        for split, by_head in counts(dataset).items() if dataset.name in BY_HAND else ():
            for label in (label for label, count in by_head[head].items() if not count and split != "test"):
                yield Problem("class missing in a split", f"{head} {label}", split)
    for head, labels in counts(dataset).get("train", {}).items():
        for label in (label for label, count in labels.items() if count == 1):
            yield Problem("class with one clip", f"{head} {label}", "in train")
    if dataset.name not in ("EPIC-KITCHENS-100", "EPIC-KITCHENS-100 UDA"):  # its people are in all splits, openly
        held = {split: {segment.group for segment in segments} for split, segments in dataset.splits.items()}
        learnt_from = held.pop("train", set()) - {""}
        for split, groups in held.items():
            for group in sorted(groups & learnt_from):
                yield Problem("recording in two splits", group, f"train and {split}")


def _recordings(seen: dict[Media, Recording]) -> Iterator[Problem]:
    for media, recording in seen.items():
        if recording.fault:
            yield Problem(recording.fault, printable(media.path.name), recording.detail)
        for note in recording.notes:
            yield Problem("look at", printable(media.path.name), note)
        if not recording.usable:
            continue
        if media.stated_rate and recording.rate and \
                abs(recording.rate - media.stated_rate) > _RATES_AGREE * media.stated_rate:
            yield Problem("rate disagrees", media.path.name,
                          f"{recording.rate:.2f} frames/s, but {media.stated_rate:.2f} stated")
        if media.stated_s and abs(recording.seconds - media.stated_s) > max(_TIMES_AGREE_S, 0.001 * media.stated_s):
            yield Problem("duration disagrees", media.path.name,
                          f"{recording.seconds:.2f} s, but {media.stated_s:.2f} stated")


def _lengths(dataset: Dataset, seen: dict[Media, Recording], shorter_than_s: float) -> Iterator[Problem]:
    for segments in dataset.splits.values():
        for segment in segments:
            recording = seen[segment.media]
            whole_s = recording.seconds or segment.media.stated_s or 0.0
            if whole_s and segment.start_s >= whole_s:
                yield Problem("starts after the end", segment.id, f"{segment.start_s:.2f} s of {whole_s:.2f}")
                continue
            if whole_s and segment.stop_s is not None and segment.stop_s > whole_s + _TIMES_AGREE_S:
                yield Problem("ends after the end", segment.id, f"{segment.stop_s:.2f} s of {whole_s:.2f}")
            stop_s = whole_s if segment.stop_s is None else min(segment.stop_s, whole_s or segment.stop_s)
            if 0 < (length_s := stop_s - segment.start_s) < shorter_than_s - 1e-6:
                yield Problem("short", segment.id, f"{length_s:.2f} s")


def _twins(dataset: Dataset, seen: dict[Media, Recording]) -> Iterator[Problem]:
    """Same pictures under two labels: one file with two labels at the same time, or two files with one content.
    EPIC's overlapping segments are no such thing: their times differ."""
    content = _contents([media for media, recording in seen.items() if recording.usable])
    labelled: dict[tuple[object, ...], tuple[Segment, str]] = {}
    for split, segments in dataset.splits.items():
        for segment in segments:
            if not segment.labels:
                continue
            key = (content.get(segment.media, segment.media.path), segment.start_s, segment.stop_s)
            other, other_split = labelled.setdefault(key, (segment, split))
            if other is segment:
                continue
            if dict(other.labels) != dict(segment.labels):
                own, others = (", ".join(one.labels.values()) for one in (segment, other))
                yield Problem("same pictures in two classes", segment.id, f"{own}; as {other.id}, {others}")
            elif other_split != split:
                yield Problem("same pictures in two splits", segment.id, f"{split}; as {other.id} in {other_split}")
            else:
                yield Problem("same pictures twice", segment.id, f"as {other.id}")


def _contents(media: list[Media]) -> dict[Media, str]:
    """Digests of the video files that share their size with another one; others cannot be the same."""
    sizes = {one: one.path.stat().st_size for one in media if one.path.is_file()}
    shared = Counter(sizes.values())
    found = {}
    for one in (one for one, size in sizes.items() if shared[size] > 1):
        with one.path.open("rb") as file:
            found[one] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
