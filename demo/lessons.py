"""What people show the page: recordings, kept as a folder that `gatestream teach` takes, and what was learnt of them.

    FOLDER/whole/wave/3.mp4               as it was shown, small
    FOLDER/clips/wave/3.mp4               the part of it that teaches
    FOLDER/clips/nothing/1.mp4            no action at all
    FOLDER/models/3f2a9c01d2e4/2.safetensors, 2.json     learnt by the model with that digest, the newest last
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import av

import engines
from engines.errors import GatestreamError, SinkError, UsageError
from stream.frame import Frame, Image
from stream.service.egress.clips import write_video
from stream.sinks.base import sink_errors
from stream.sources import open_source
from stream.teaching.teach import teach_folder, write_report

log = logging.getLogger("gatestream.ui")

NAME = re.compile(r"\w[\w -]{0,38}\w|\w")
HEIGHT = 240  # of what is kept
SHORTEST_S, LONGEST_S = 0.5, 600.0
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Clip:
    """A recording. seconds: of the part that teaches, whole_s: of all of it."""

    label: str
    number: int
    seconds: float
    whole_s: float


class Lessons:
    """The recordings of a folder, which is made when the first one comes. Methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clips_folder = folder, folder / "clips"
        self._lock = threading.Lock()

    def clips(self) -> list[Clip]:
        """All, by label and number."""
        paths = [path for path in self.clips_folder.glob("*/*.mp4") if path.stem.isdigit()]
        found = [(path.parent.name, int(path.stem)) for path in paths]
        return [self._clip(label, number) for label, number in sorted(found)]

    def path(self, label: str, number: int, whole: bool = False) -> Path:
        """Where a recording lies. Raises UsageError where there is none."""
        path = self._path(_named(label), number, whole)
        if not path.is_file():
            raise UsageError(f"recording {number} of {label!r}", "one that is there", "reload the page")
        return path

    def add(self, label: str, images: Iterable[tuple[float, Image]]) -> Clip:
        """Keeps pictures with their seconds, in order. Raises UsageError for a name that cannot be or a length that
        teaches nothing, SinkError, and what `images` raises."""
        label = _named(label)
        with self._lock:
            taken = [int(path.stem) for path in (self.folder / "whole" / label).glob("*.mp4") if path.stem.isdigit()]
            whole = self._path(label, max(taken, default=0) + 1, whole=True)
            with sink_errors("making", whole.parent):
                whole.parent.mkdir(parents=True, exist_ok=True)
                whole.touch()  # its number is taken
        try:
            _write(whole, _of_a_length(images, label))
            clip = self._path(label, int(whole.stem))
            with sink_errors("writing", clip):
                clip.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(whole, clip)
        except BaseException:
            whole.unlink(missing_ok=True)
            raise
        return self._clip(label, int(whole.stem))

    def add_file(self, label: str, video: Path) -> Clip:
        """Keeps what a video shows. Raises as `add` does, and SourceError."""
        return self.add(label, _images(video))

    def cut(self, label: str, number: int, from_s: float, to_s: float) -> Clip:
        """Has only this part of a recording teach, until it is cut again. Raises UsageError, SinkError."""
        whole, clip = self.path(label, number, whole=True), self.path(label, number)
        _write(clip, _of_a_length(((at, image) for at, image in _images(whole) if from_s <= at <= to_s), label))
        return self._clip(label, number)

    def remove(self, label: str, number: int) -> None:
        """Deletes a recording. Raises UsageError."""
        for path in (self.path(label, number), self._path(_named(label), number, whole=True)):
            with sink_errors("deleting", path):
                path.unlink(missing_ok=True)
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()  # teaching would ask for recordings of it

    def _path(self, label: str, number: int, whole: bool = False) -> Path:
        return self.folder / ("whole" if whole else "clips") / label / f"{number}.mp4"

    def _clip(self, label: str, number: int) -> Clip:
        return Clip(label, number, _length_s(self._path(label, number)),
                    _length_s(self._path(label, number, whole=True)))


class Teacher:
    """Learns from recordings in a thread of its own, always from the model that it began with; knows what was learnt
    before.

    use: is given a model's file to go on with.
    """

    def __init__(self, lessons: Lessons, model: str, engine: str, use: Callable[[str], None]) -> None:
        self.lessons, self._use, self._engine, self._start = lessons, use, engine, model
        loaded = engines.load(model)
        self._name = loaded.contract.name
        self._folder = lessons.folder / "models" / loaded.digest[:12]
        self._thread = threading.Thread()
        self._says = self._trouble = ""
        self._unusable: set[Path] = set()

    def opened(self, open_model: Callable[[str], Opened]) -> Opened:
        """What `open_model` makes of the model in use. One that was learnt and cannot be opened any more is told of and
        passed over for the one before it. Raises what opening the first of all does."""
        while self.model != self._start:
            try:
                return open_model(self.model)
            except GatestreamError as error:
                log.warning("%s; in use is what was there before it", error)
                self._unusable.add(Path(self.model))
        return open_model(self._start)

    @property
    def model(self) -> str:
        """What is in use: the newest that was learnt, or the model that it began with."""
        learnt = self._learnt()
        return str(learnt[-1]) if learnt else self._start

    def state(self) -> dict[str, Any]:
        """What a page shows. report: as `gatestream teach --report` writes it, None before anything was learnt."""
        learnt = self._learnt()
        report = learnt[-1].with_suffix(".json") if learnt else None
        return {"clips": [asdict(clip) for clip in self.lessons.clips()], "busy": self._thread.is_alive(),
                "says": self._says, "trouble": self._trouble, "learnt": len(learnt), "folder": str(self.lessons.folder),
                "report": report.read_text(encoding="utf-8") if report is not None and report.is_file() else None}

    def learn(self) -> None:
        """Begins to learn. Raises UsageError while it does already."""
        self._begin(self._learn)

    def undo(self) -> None:
        """Goes back to what was before the newest model, which is deleted. Raises UsageError as long as it learns, and
        where nothing was learnt."""
        if not self._learnt():
            raise UsageError("nothing learnt", "something to undo", "learn first")
        self._begin(self._undo)

    def _learnt(self) -> list[Path]:
        return sorted((path for path in self._folder.glob("*.safetensors")
                       if path.stem.isdigit() and path not in self._unusable), key=lambda path: int(path.stem))

    def _begin(self, work: Callable[[], None]) -> None:
        if self._thread.is_alive():
            raise UsageError("a second wish while the model learns", "one at a time", "wait until it is done")
        self._thread = threading.Thread(target=self._work, args=(work,), daemon=True)
        self._says, self._trouble = "starting", ""
        self._thread.start()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except GatestreamError as error:
            self._trouble = str(error)
        except Exception:  # nobody sees what ends a thread
            log.exception("learning has failed")
            self._trouble = "learning has failed: the server's log says why"
        self._says = ""

    def _learn(self) -> None:
        with sink_errors("making", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        taken = [int(path.stem) for path in {*self._learnt(), *self._unusable}]
        out = self._folder / f"{max(taken, default=0) + 1}.safetensors"
        new = out.with_suffix(".new")  # a model counts once it is in use
        clips = self.lessons.clips_folder
        clips.mkdir(parents=True, exist_ok=True)
        outcome = teach_folder(self._start, clips, new, engine=self._engine, name=f"{self._name}-taught",
                               note=self._note)
        self._note("trying it")
        with sink_errors("writing", out):
            write_report(outcome, out.with_suffix(".json"))
            new.replace(out)
        try:
            self._use(str(out))
        except GatestreamError:
            out.unlink()
            out.with_suffix(".json").unlink()
            raise

    def _undo(self) -> None:
        newest = self._learnt()[-1]
        with sink_errors("deleting", newest):
            newest.unlink()
            newest.with_suffix(".json").unlink(missing_ok=True)
        self._use(self.model)

    def _note(self, text: str) -> None:
        self._says = text


def _named(label: str) -> str:
    label = " ".join(label.split())
    if not NAME.fullmatch(label):
        raise UsageError(f"the name {label!r}", "letters, digits, spaces and hyphens, up to 40", "choose another name")
    return label


def _of_a_length(images: Iterable[tuple[float, Image]], label: str) -> Iterator[tuple[float, Image]]:
    """The same images; raises UsageError at the end of too few, and where they become too many."""
    first = last = None
    for at, image in images:
        first, last = at if first is None else first, at
        if at - first > LONGEST_S:
            raise UsageError(f"a recording of more than {LONGEST_S:.0f} s", "a shorter one",
                             "cut it, and show the parts")
        yield at, image
    if first is None or last is None or last - first < SHORTEST_S:
        raise UsageError(f"a recording of {label!r} of {0 if first is None or last is None else last - first:.1f} s",
                         f"{SHORTEST_S} s or more", "record it again, a little longer")


def _images(video: Path) -> Iterator[tuple[float, Image]]:
    with open_source(str(video), policy="every") as source:
        for frame in source.frames():
            if isinstance(frame, Frame):
                yield frame.captured_at, frame.image_bgr


def _write(path: Path, images: Iterator[tuple[float, Image]]) -> None:
    """As H.264, no larger than HEIGHT, all or nothing."""
    try:
        at, first = next(images)
        height, width = first.shape[:2]
        scale = min(1.0, HEIGHT / height)
        with sink_errors("writing", path):
            write_video(path, chain([(at, first)], images), (round(height * scale), round(width * scale)))
    except av.FFmpegError as error:
        raise SinkError(f"writing {path} failed: {error}", "an output that can be written",
                        "check the free space") from error
    finally:
        path.with_suffix(".part").unlink(missing_ok=True)


def _length_s(video: Path) -> float:
    """0 for one that is not there."""
    try:
        return round(_seconds(video, video.stat().st_mtime_ns), 2)
    except OSError:
        return 0.0


@lru_cache(4096)
def _seconds(video: Path, changed_ns: int) -> float:
    """Of a video that was changed at that time."""
    try:
        with av.open(video) as opened:
            return (opened.duration or 0) / av.time_base
    except av.FFmpegError:
        return 0.0
