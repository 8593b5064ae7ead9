"""Recordings that replay exactly: every frame with the time it was taken, in one SQLite file.

    about(camera, fps) ; frames(id, at, number, lost, image) ; gaps(before, at, seconds, action)

Images are PNG, which loses nothing. A gap comes before the frame with id `before`. A recording that a crash ended can
be replayed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from engines.decoding.images import decode_image
from engines.decoding.paths import printable, read_head
from engines.errors import FrameError, SourceError
from stream.frame import Frame, Gap
from stream.sources.base import Source, SourceInfo

APPLICATION_ID = 0x67736672  # "gsfr"
VERSION = 1
MAGIC = b"SQLite format 3\0"
SCHEMA = f"""
CREATE TABLE about (camera TEXT NOT NULL, fps REAL);
CREATE TABLE frames (id INTEGER PRIMARY KEY, at REAL NOT NULL, number INTEGER NOT NULL, lost INTEGER NOT NULL,
                     image BLOB NOT NULL);
CREATE TABLE gaps (before INTEGER NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL, action TEXT NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""


def is_recording(path: Path) -> bool:
    """Whether the file's first bytes are those of a recording."""
    head = read_head(path, 72)
    return head.startswith(MAGIC) and head[68:72] == APPLICATION_ID.to_bytes(4, "big")


class Replay(Source):
    """A recording as a source of its frames and gaps. Raises SourceError for a file that is none."""

    def __init__(self, path: Path, camera: str | None = None) -> None:
        self._path = path
        with self._errors(), closing(self._open()) as db:
            name, fps = db.execute("SELECT camera, fps FROM about").fetchone() or ("", None)
            [count] = db.execute("SELECT count(*) FROM frames").fetchone()
        self.info = SourceInfo(camera or name, False, None, fps, count)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            db.close()
            raise sqlite3.DatabaseError(f"version {version}")
        return db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Makes a SourceError of SQLite's errors."""
        try:
            yield
        except sqlite3.Error as error:
            raise SourceError(f"{printable(self._path)} ({error})", f"a recording of version {VERSION}, "
                              "as gatestream record writes it", "check the file") from error

    def frames(self) -> Iterator[Frame | Gap]:
        unread = 0
        with self._errors(), closing(self._open()) as db:
            for id, at, number, lost, png in db.execute("SELECT id, at, number, lost, image FROM frames ORDER BY id"):
                if self._closed:
                    return
                for gap in db.execute("SELECT at, seconds, action FROM gaps WHERE before = ? ORDER BY rowid", (id,)):
                    yield Gap(self.info.camera, *gap)
                try:
                    image = decode_image(png, f"{self._path}, frame {id}")
                except FrameError:
                    unread, self.lost = unread + 1 + lost, self.lost + 1
                    continue
                yield Frame(image, at, number, self.info.camera, lost + unread)
                unread = 0
