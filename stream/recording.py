"""Recordings that replay exactly: every frame as it was, with the time it was taken, in one SQLite file.

    record(open_source("0"), Path("desk.frames"))       # gatestream record 0 --out desk.frames
    open_source("desk.frames")                          # gatestream run desk.frames: the same events

    about(camera, fps) ; frames(id, at, number, lost, image) ; gaps(before, at, seconds, action)

Images are PNG, which loses nothing. A gap comes before the frame with id `before`. What was recorded before a crash can
be replayed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2

from engines.errors import FrameError, SinkError, SourceError
from stream.frame import Frame, Gap
from stream.sinks.base import output_path, sink_errors
from stream.sources.base import Source, SourceInfo
from stream.sources.images import image_of

APPLICATION_ID = 0x67736672  # "gsfr"
VERSION = 1
MAGIC = b"SQLite format 3\0"
_SCHEMA = f"""
CREATE TABLE about (camera TEXT NOT NULL, fps REAL);
CREATE TABLE frames (id INTEGER PRIMARY KEY, at REAL NOT NULL, number INTEGER NOT NULL, lost INTEGER NOT NULL,
                     image BLOB NOT NULL);
CREATE TABLE gaps (before INTEGER NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL, action TEXT NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""


def is_recording(path: Path) -> bool:
    """Whether a file is one of these, as its first bytes tell."""
    try:
        with path.open("rb") as file:
            head = file.read(72)
    except OSError:
        return False
    return head.startswith(MAGIC) and head[68:72] == APPLICATION_ID.to_bytes(4, "big")


def record(source: Source, path: str | Path, *, max_seconds: float | None = None, max_frames: int | None = None,
           stop: threading.Event | None = None) -> int:
    """Records a source to its end, for `max_seconds` of its time, `max_frames`, or until `stop`; how many frames.

    Raises SinkError for a file that is there already or cannot be written, SourceError when the source fails; what was
    recorded before stays.
    """
    target = output_path(path)
    if target.exists():
        raise SinkError(f"{target}, which is there already", "a new file", "delete it, or choose another one")
    with sink_errors("opening", target):
        db = sqlite3.connect(target, isolation_level=None)
    recorded, first_at = 0, None
    with closing(db), sink_errors("writing", target):
        db.executescript(_SCHEMA)
        db.execute("INSERT INTO about VALUES (?, ?)", (source.info.camera, source.info.fps))
        for item in source.frames():
            if (stop is not None and stop.is_set()) or recorded == max_frames:
                break
            if isinstance(item, Gap):
                db.execute("INSERT INTO gaps VALUES (?, ?, ?, ?)", (recorded + 1, item.at, item.seconds, item.action))
                continue
            first_at = item.captured_at if first_at is None else first_at
            if max_seconds is not None and item.captured_at - first_at >= max_seconds:
                break
            _, png = cv2.imencode(".png", item.image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            db.execute("INSERT INTO frames (at, number, lost, image) VALUES (?, ?, ?, ?)",
                       (item.captured_at, item.index, item.lost, png.tobytes()))
            recorded += 1
    return recorded


class Recording(Source):
    """A recording as a source: the frames and gaps that were recorded. Raises SourceError for a file that is none."""

    def __init__(self, path: Path, camera: str | None = None) -> None:
        self._path, self._closed = path, False
        with closing(self._opened()) as db:
            name, fps = db.execute("SELECT camera, fps FROM about").fetchone() or ("", None)
            [count] = db.execute("SELECT count(*) FROM frames").fetchone()
        self.info = SourceInfo(camera or name, False, None, fps, count)

    def _opened(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
            [version] = db.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise self._unreadable(str(error)) from error
        if version != VERSION:
            db.close()
            raise self._unreadable(f"version {version}")
        return db

    def _unreadable(self, why: str) -> SourceError:
        return SourceError(f"{self._path} ({why})", f"a recording of version {VERSION}, as gatestream record writes it",
                           "check the file")

    def close(self) -> None:
        self._closed = True

    def frames(self) -> Iterator[Frame | Gap]:
        try:
            with closing(self._opened()) as db:
                yield from self._read(db)
        except sqlite3.Error as error:
            raise self._unreadable(str(error)) from error

    def _read(self, db: sqlite3.Connection) -> Iterator[Frame | Gap]:
        unread = 0
        for id, at, number, lost, png in db.execute("SELECT id, at, number, lost, image FROM frames ORDER BY id"):
            if self._closed:
                return
            for gap in db.execute("SELECT at, seconds, action FROM gaps WHERE before = ? ORDER BY rowid", (id,)):
                yield Gap(self.info.camera, *gap)
            try:
                image = image_of(png, f"{self._path}, frame {id}")
            except FrameError:
                unread, self.lost = unread + 1 + lost, self.lost + 1
                continue
            yield Frame(image, at, number, self.info.camera, lost + unread)
            unread = 0
