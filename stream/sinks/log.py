"""The event log: closed events and gaps in one SQLite file, safe on disk before anything else sees them.

    runs(id, started, model, source, origin) ──< events(id, run, camera, head, label, started_at, ended_at, score,
                                             │          announced)
                                             └─< gaps(id, run, camera, at, seconds, action)

A file collects many runs. `started` is Unix time; `origin` is the capture time of the run's first frame, the zero of a
video saved beside it; `announced` is whether a service has delivered the event to others, once it was in here."""

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

from engines.errors import SinkError, UsageError
from stream.frame import Event, Frame, Gap, Record
from stream.sinks.base import Sink, output_path, sink_errors

APPLICATION_ID = 0x67617465  # "gate"
SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 5.0
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, model TEXT NOT NULL, source TEXT NOT NULL,
                   origin REAL);
CREATE TABLE events (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id), camera TEXT NOT NULL,
                     head TEXT NOT NULL, label TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL NOT NULL,
                     score REAL NOT NULL, announced INTEGER NOT NULL DEFAULT 1);
CREATE TABLE gaps (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id), camera TEXT NOT NULL,
                   at REAL NOT NULL, seconds REAL NOT NULL, action TEXT NOT NULL);
CREATE INDEX events_by_time ON events (run, started_at);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_INSERT = ("INSERT INTO events (run, camera, head, label, started_at, ended_at, score, announced)"
           " VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
_INSERT_GAP = "INSERT INTO gaps (run, camera, at, seconds, action) VALUES (?, ?, ?, ?, ?)"
_EVENT = "camera, head, label, started_at, ended_at, score"  # columns, in the order of an Event's fields


class Run(NamedTuple):
    """One use of the log."""

    id: int
    started: float  # Unix time
    model: str
    source: str
    origin: float  # capture time of its first frame; `started` if there was none
    events: int  # how many


class LoggedEvent(NamedTuple):
    """An event of a log."""

    id: str  # of no other event of any log; it never changes
    run: int  # number of its run
    event: Event


class EventLog(Sink):
    """Logs closed events and gaps, each committed to disk before `write` returns.
    path: made if absent, else a new run is added. Raises SinkError for a file that is no event log, a database that
    others lock for BUSY_TIMEOUT_S, or a full disk; what was logged before stays readable."""

    def __init__(self, path: str | Path, model: str, source: str) -> None:
        self.path = output_path(path)
        self._origin_known = False
        with sink_errors("opening", self.path), ExitStack() as failed:
            self._db: sqlite3.Connection | None = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            failed.callback(self.close)
            _prepare(self._db, self.path)
            cursor = self._db.execute("INSERT INTO runs (started, model, source) VALUES (?, ?, ?)",
                                      (time.time(), model, source))
            assert cursor.lastrowid is not None
            self.run, self.identity = cursor.lastrowid, _identity(self._db)
            """The run's number; of this file and no other: `identity`-`number` is an event's id."""
            failed.pop_all()

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if self._db is None:
            return
        with sink_errors("writing", self.path):
            if frame is not None and not self._origin_known:
                self._db.execute("UPDATE runs SET origin = ? WHERE id = ?", (frame.captured_at, self.run))
                self._origin_known = True
            for record in records:
                if isinstance(record, Event) and not record.open:
                    self._db.execute(_INSERT, self._row(record, announced=True))
                elif isinstance(record, Gap):
                    self._db.execute(_INSERT_GAP, (self.run, *astuple(record)))

    def append(self, events: Sequence[Event], gaps: Sequence[Gap] = (), delivered: Sequence[int] = ()) -> list[int]:
        """Commits events that are still to be delivered, and gaps; returns the numbers of the events in this file.
        delivered: numbers of events to mark as delivered in the same transaction. Raises SinkError, with all undone."""
        assert self._db is not None
        with sink_errors("writing", self.path), self._db:  # commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            numbers = [self._db.execute(_INSERT, self._row(event, announced=False)).lastrowid for event in events]
            self._db.executemany(_INSERT_GAP, [(self.run, *astuple(gap)) for gap in gaps])
            self._db.executemany("UPDATE events SET announced = 1 WHERE id = ?", [(number,) for number in delivered])
        return [number for number in numbers if number is not None]

    def mark_delivered(self, numbers: Sequence[int]) -> None:
        """Records that these events have been delivered. Raises SinkError."""
        self.append((), delivered=numbers)

    def pending(self) -> list[tuple[int, Event]]:
        """Events, with their numbers, that were appended and perhaps never delivered: the service ended in between."""
        assert self._db is not None
        with sink_errors("reading", self.path):
            rows = self._db.execute(f"SELECT id, {_EVENT} FROM events WHERE announced = 0 ORDER BY id").fetchall()
        return [(number, Event(*[*values, False])) for number, *values in rows]

    def _row(self, event: Event, announced: bool) -> tuple[object, ...]:
        return (self.run, event.camera, event.head, event.label, event.started_at, event.ended_at, event.score,
                announced)

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            # Everything is committed; folding the journal in may fail on a full disk and is then done later.
            with suppress(sqlite3.Error):
                db.close()


def read_events(path: str | Path, *, label: str | None = None, camera: str | None = None, head: str | None = None,
                since: float | None = None, until: float | None = None, min_score: float | None = None,
                run: int | None = None, newest: int | None = None) -> list[LoggedEvent]:
    """The events of a log, by run, then by start; the log may be in use.
    label, camera, head: exactly this one; since, until: events that overlap this time (seconds, as in captured_at);
    min_score: at least this; run: number of one run, -1 the latest; newest: at most so many, those logged last.
    Raises UsageError for a missing file or run, SinkError for a file that is no event log."""
    rules = {"label = ?": label, "camera = ?": camera, "head = ?": head, "ended_at >= ?": since,
             "started_at <= ?": until, "score >= ?": min_score,
             "run = ?": None if run is None else find_run(path, run).id}
    used = {rule: value for rule, value in rules.items() if value is not None}
    where = " AND ".join(used) or "1"
    with _open_to_read(path) as db:
        identity = _identity(db)
        rows = db.execute(f"SELECT id, run, {_EVENT} FROM (SELECT * FROM events WHERE {where} ORDER BY id DESC LIMIT ?)"
                          " ORDER BY run, started_at, id", [*used.values(), -1 if newest is None else newest])
        return [LoggedEvent(f"{identity}-{number}", in_run, Event(*[*values, False]))
                for number, in_run, *values in rows]


def count_events(path: str | Path) -> dict[str, Counter[str]]:
    """How many events a log has, by camera and label. Raises as `read_events` does."""
    found: dict[str, Counter[str]] = {}
    with _open_to_read(path) as db:
        for camera, label, count in db.execute("SELECT camera, label, count(*) FROM events GROUP BY camera, label"):
            found.setdefault(camera, Counter())[label] = count
    return found


def clip_name(id: str, camera: str, label: str) -> str:
    """The file name of an event's video: its id, camera and label."""
    return "_".join(re.sub(r"[^\w.-]+", "-", part) for part in (id, camera, label)) + ".mp4"


def read_runs(path: str | Path) -> list[Run]:
    """The runs of a log, oldest first. Raises as `read_events` does."""
    with _open_to_read(path) as db:
        return [Run(*row) for row in db.execute("SELECT id, started, model, source, coalesce(origin, started), (SELECT "
                                                "count(*) FROM events WHERE run = runs.id) FROM runs ORDER BY id")]


def find_run(path: str | Path, run: int) -> Run:
    """Run number `run` of a log, or the latest for -1. Raises UsageError when there is no such run."""
    known = read_runs(path)
    for candidate in reversed(known):
        if run in (-1, candidate.id):
            return candidate
    raise UsageError(f"run {run} of {path}", f"one of {[each.id for each in known]}", "leave --run out to see all")


def _identity(db: sqlite3.Connection) -> str:
    first = db.execute("SELECT started FROM runs ORDER BY id LIMIT 1").fetchone()
    return f"{round(1000 * first[0]):x}" if first else ""


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables in an empty file, or checks that the file is a log of this version."""
    empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if empty and _pragma(db, "application_id") == 0:
        db.execute("PRAGMA journal_mode = WAL")
        try:
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if _pragma(db, "application_id") != APPLICATION_ID:  # else another process made them first
                raise
    if _pragma(db, "application_id") == APPLICATION_ID and _pragma(db, "user_version") == 1:
        db.executescript("BEGIN IMMEDIATE; ALTER TABLE events ADD COLUMN announced INTEGER NOT NULL DEFAULT 1;"
                         f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    _check(db, path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL may lose the last commits with the power


def _check(db: sqlite3.Connection, path: str | Path) -> None:
    if _pragma(db, "application_id") != APPLICATION_ID:
        raise SinkError(f"{path} is another program's database", "a gatestream event log or a new file",
                        "choose another file for the log")
    version = _pragma(db, "user_version")
    if not 1 <= version <= SCHEMA_VERSION:
        raise SinkError(f"{path} is an event log of version {version}", f"version {SCHEMA_VERSION} or earlier",
                        "choose another file, or use the gatestream that wrote it")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _open_to_read(path: str | Path) -> Iterator[sqlite3.Connection]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"no event log {file}", "a file written with --log", "check the name")
    with sink_errors("opening", file):
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
    with closing(db), sink_errors("reading", path):
        with sink_errors("opening", file):
            _check(db, file)
        yield db
