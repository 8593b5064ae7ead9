"""The recordings a page teaches from, in a folder whose part `clips` is what `gatestream teach` takes.

    FOLDER/whole/wave/3.mp4               as it was shown, at most HEIGHT pixels high
    FOLDER/clips/wave/3.mp4               the part of it that teaches
    FOLDER/clips/wave/4 kitchen.mp4       where it was recorded, or who is seen, if that was said
    FOLDER/clips/nothing/1.mp4            no action at all
"""

import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av

from engines.errors import UsageError
from stream.frame import Frame, Image
from stream.sinks.base import sink_errors
from stream.sinks.video import write_video
from stream.sources import open_path

NAME = re.compile(r"\w[\w -]{0,38}\w|\w")
STEM = re.compile(r"(\d+)(?: (.+))?")  # number, place
PLACE = r"/\d+ (.+)\.mp4$"  # finds the place in a recording's path under `clips`
HEIGHT = 288  # pixels
SHORTEST_S, LONGEST_S = 0.5, 600.0
TimedImages = Iterable[tuple[float, Image]]  # seconds, image; in order of time


@dataclass(frozen=True)
class StoredClip:
    """One recording."""

    label: str
    number: int
    seconds: float  # of the part that teaches
    whole_s: float  # of all of it
    place: str = ""  # or person; "" where it was not said


class ClipStore:
    """The recordings of a folder, which is made when the first one comes. Methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clips_folder = folder, folder / "clips"
        self._lock = threading.Lock()

    def clips(self) -> list[StoredClip]:
        """All recordings, by label and number."""
        found = [self._clip(path) for path in self.clips_folder.glob("*/*.mp4") if STEM.fullmatch(path.stem)]
        return sorted(found, key=lambda clip: (clip.label, clip.number))

    def find(self, label: str, number: int, whole: bool = False) -> Path:
        """The file of a recording. Raises UsageError where there is none."""
        folder = self._folder(_check_name(label), whole)
        for path in folder.glob(f"{number}*.mp4"):
            if (match := STEM.fullmatch(path.stem)) and int(match[1]) == number:
                return path
        raise UsageError(f"recording {number} of {label!r}", "one that is there", "reload the page")

    def add(self, label: str, images: TimedImages, place: str = "") -> StoredClip:
        """Stores images as the next recording of a label. place: where it was, or who is seen: recordings of one are
        left out together. Raises UsageError for a bad name or length, SinkError, and what `images` raises."""
        label, place = _check_name(label), _check_name(place) if place.strip() else ""
        with self._lock:
            stems = [STEM.fullmatch(path.stem) for path in self._folder(label, whole=True).glob("*.mp4")]
            number = max((int(match[1]) for match in stems if match), default=0) + 1
            name = f"{number} {place}.mp4" if place else f"{number}.mp4"
            whole, clip = self._folder(label, whole=True) / name, self._folder(label) / name
            with sink_errors("making", whole.parent):
                whole.parent.mkdir(parents=True, exist_ok=True)
                whole.touch()  # its number is taken
        try:
            write_video(whole, _check_length(images, label), HEIGHT)
            with sink_errors("writing", clip):
                clip.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(whole, clip)
        except BaseException:
            whole.unlink(missing_ok=True)
            raise
        return self._clip(clip)

    def add_file(self, label: str, video: Path, place: str = "") -> StoredClip:
        """Stores a copy of a video. Raises as `add` does, and SourceError."""
        return self.add(label, _read(video), place)

    def trim(self, label: str, number: int, from_s: float, to_s: float) -> StoredClip:
        """Teaches with this part of a recording only; the whole stays. Raises UsageError, SinkError."""
        whole, clip = self.find(label, number, whole=True), self.find(label, number)
        part = ((at, image) for at, image in _read(whole) if from_s <= at <= to_s)
        write_video(clip, _check_length(part, label), HEIGHT)
        return self._clip(clip)

    def remove(self, label: str, number: int) -> None:
        """Deletes a recording. Raises UsageError, SinkError."""
        clip = self.find(label, number)
        for path in (clip, self._folder(_check_name(label), whole=True) / clip.name):
            with sink_errors("deleting", path):
                path.unlink(missing_ok=True)
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()  # teaching refuses a label without recordings

    def _folder(self, label: str, whole: bool = False) -> Path:
        return self.folder / ("whole" if whole else "clips") / label

    def _clip(self, path: Path) -> StoredClip:
        match, label = STEM.fullmatch(path.stem), path.parent.name
        assert match is not None
        whole = self._folder(label, whole=True) / path.name
        return StoredClip(label, int(match[1]), _length_s(path), _length_s(whole), match[2] or "")


def _check_name(label: str) -> str:
    label = " ".join(label.split())
    if not NAME.fullmatch(label):
        raise UsageError(f"the name {label!r}", "letters, digits, spaces and hyphens, up to 40", "choose another name")
    return label


def _check_length(images: TimedImages, label: str) -> Iterator[tuple[float, Image]]:
    """The same images; raises UsageError at the end of too few, and where they become too many."""
    first, last = None, 0.0
    for last, image in images:
        first = last if first is None else first
        if last - first > LONGEST_S:
            raise UsageError(f"a recording of more than {LONGEST_S:.0f} s", "a shorter one",
                             "cut it, and show the parts")
        yield last, image
    seconds = 0.0 if first is None else last - first
    if seconds < SHORTEST_S:
        raise UsageError(f"a recording of {label!r} of {seconds:.1f} s", f"{SHORTEST_S} s or more",
                         "record it again, a little longer")


def _read(video: Path) -> Iterator[tuple[float, Image]]:
    with open_path(video, policy="every") as source:
        for frame in source.frames():
            if isinstance(frame, Frame):
                yield frame.captured_at, frame.image_bgr


def _length_s(video: Path) -> float:
    """0 for one that is not there, or is no video."""
    try:
        return round(_probe_s(video, video.stat().st_mtime_ns), 2)
    except (OSError, av.FFmpegError):
        return 0.0


@lru_cache(4096)
def _probe_s(video: Path, changed_ns: int) -> float:
    """Length of a video that was changed at that time."""
    with av.open(video) as opened:
        return (opened.duration or 0) / av.time_base
