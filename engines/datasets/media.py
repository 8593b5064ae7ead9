"""Where the recordings of a dataset lie: each found by its name, as a video file or as a folder of frames.

    index = RecordingIndex([root / "videos", root])
    index.find("41775")   -> Media(.../41775.webm), or Media(.../41775, rate=12, first=None), or what is missing

Folders are listed once, so that 200,000 names cost one look at the disk."""

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from engines.datasets.base import Media
from engines.decoding.paths import VIDEO_SUFFIXES, is_hidden, is_video, natural_key
from engines.errors import DatasetError

ASSUMED_RATE = 30.0  # of folders of frames whose dataset does not say


def list_videos(folders: Iterable[Path]) -> list[Path]:
    """The video files of some folders, by name. Raises DatasetError when one has none."""
    found: list[Path] = []
    for folder in folders:
        here = sorted(filter(is_video, folder.glob("*")), key=natural_key)
        if not here:
            raise DatasetError(f"no video in {folder}", f"a folder of videos ({' '.join(sorted(VIDEO_SUFFIXES))})",
                               "check the path")
        found += here
    return found


class RecordingIndex:
    """Recordings by name in some folders (those that exist), the first that has it wins; videos before frames.
    rate: of folders of frames; deep: look into the folders' own folders, too (class folders)."""

    def __init__(self, folders: Sequence[Path], rate: float = ASSUMED_RATE, deep: bool = False) -> None:
        self._rate = rate
        self._videos: dict[str, Path] = {}
        self._frames: dict[str, Path] = {}
        self.folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        for folder in folders:
            if folder.is_dir():
                self._list(folder, deep)

    def _list(self, folder: Path, deep: bool) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = folder / entry.name
                if is_hidden(path):
                    continue
                if entry.is_dir():
                    self._frames.setdefault(path.name, path)
                    if deep:
                        self._list(path, False)
                elif is_video(path):
                    self._videos.setdefault(path.stem, path)

    def find(self, *names: str, suffix: str = ".mp4") -> Media:
        """The recording with one of these names; where there is none, the video file that should be there."""
        videos = (Media(self._videos[name]) for name in names if name in self._videos)
        frames = (Media(self._frames[name], self._rate, None) for name in names if name in self._frames)
        return next(chain(videos, frames), Media(self.folder / f"{names[0]}{suffix}"))
