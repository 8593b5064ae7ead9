"""The event log: closed events and gaps in one SQLite file, safe on disk before anything else sees them.

    runs(id, started, model, digest, source, zone, origin) ──< events(id, run, uid, camera, head, label, started_at,
                                                           │          ended_at, score)
                                                           └─< gaps(id, run, camera, at, seconds, action)
    outbox, deliveries, refusals: what goes from here to others, see `DeliveryLog`

A file collects many runs. `started` is Unix time; `origin` is the capture time of the run's first frame, the zero of a
video saved beside it; `zone` is the machine's offset from UTC (+02:00); `uid` is an event's id in all records."""

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from engines.errors import SinkError, UsageError
from stream.frame import Event, Frame, Gap, Record
from stream.sinks.base import Sink, output_path, sink_errors

APPLICATION_ID = 0x67617465  # "gate"
SCHEMA_VERSION = 3
BUSY_TIMEOUT_S = 5.0
UNIX_TIMES_S = 1e9  # times from here on are Unix times, of live sources: no file is 31 years long
_DELIVERY_TABLES = """
CREATE TABLE outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, event INTEGER, gap INTEGER);
CREATE TABLE deliveries (sink TEXT PRIMARY KEY, done INTEGER NOT NULL);
CREATE TABLE refusals (sink TEXT NOT NULL, number INTEGER NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL,
                       retry INTEGER NOT NULL, PRIMARY KEY (sink, number));"""
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, model TEXT NOT NULL, source TEXT NOT NULL,
                   origin REAL, digest TEXT NOT NULL DEFAULT '', zone TEXT NOT NULL DEFAULT '');
CREATE TABLE events (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id), camera TEXT NOT NULL,
                     head TEXT NOT NULL, label TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL NOT NULL,
                     score REAL NOT NULL, uid TEXT);
CREATE TABLE gaps (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id), camera TEXT NOT NULL,
                   at REAL NOT NULL, seconds REAL NOT NULL, action TEXT NOT NULL);
CREATE INDEX events_by_time ON events (run, started_at);
{_DELIVERY_TABLES}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
# What an earlier service logged and perhaps did not deliver goes to the sinks of the next one.
_FROM_2 = f"""
BEGIN IMMEDIATE;
ALTER TABLE runs ADD COLUMN digest TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN zone TEXT NOT NULL DEFAULT '';
ALTER TABLE events ADD COLUMN uid TEXT;
{_DELIVERY_TABLES}
INSERT INTO outbox (event) SELECT id FROM events WHERE announced = 0 ORDER BY id;
ALTER TABLE events DROP COLUMN announced;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_INSERT = ("INSERT INTO events (run, camera, head, label, started_at, ended_at, score, uid)"
           " VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
_INSERT_GAP = "INSERT INTO gaps (run, camera, at, seconds, action) VALUES (?, ?, ?, ?, ?)"
GAP_COLUMNS = "camera, at, seconds, action"
EVENT_COLUMNS = "camera, head, label, started_at, ended_at, score"  # columns, in the order of an Event's fields


class Run(NamedTuple):
    """One use of the log."""

    id: int
    started: float  # Unix time
    model: str
    source: str
    origin: float  # capture time of its first frame; `started` if there was none
    events: int  # how many
    digest: str = ""  # of the model's file; "" where it was logged before that was noted
    zone: str = ""  # the machine's offset from UTC, such as +02:00; "" likewise
    log: str = ""  # the file, as it was asked for

    @property
    def live(self) -> bool:
        """Whether its times are Unix times."""
        return self.origin >= UNIX_TIMES_S


class LoggedEvent(NamedTuple):
    """An event of a log."""

    id: str  # of no other event of any log; it never changes
    run: Run
    event: Event


class EventLog(Sink):
    """Logs closed events and gaps, each committed to disk before `write` returns.
    path: made if absent, else a new run is added; digest: of the model's file. Raises SinkError for a file that is no
    event log, a database that others lock for BUSY_TIMEOUT_S, or a full disk; what was logged before stays readable."""

    def __init__(self, path: str | Path, model: str, source: str, digest: str = "") -> None:
        self.path, self._about = output_path(path), (model, source, digest)
        self._origin_known, self._named, self._numbered = False, 0, 0
        self._db: sqlite3.Connection | None = None
        self._open()

    def _open(self) -> None:
        zone = time.strftime("%z")
        with sink_errors("opening", self.path), ExitStack() as failed:
            self._db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            failed.callback(self.close)
            _prepare(self._db, self.path)
            cursor = self._db.execute("INSERT INTO runs (started, model, source, digest, zone) VALUES (?, ?, ?, ?, ?)",
                                      (time.time(), *self._about, f"{zone[:3]}:{zone[3:5]}"))
            assert cursor.lastrowid is not None
            self.run, self.identity = cursor.lastrowid, _identity(self._db)
            self._inode = self.path.stat().st_ino
            failed.pop_all()

    @property
    def is_moved(self) -> bool:
        """Whether the file was moved away or deleted."""
        return self._db is None or not self.path.exists() or self.path.stat().st_ino != self._inode

    def reopen(self) -> None:
        """Goes on in a new file, with what sinks have not got yet. Nobody else in this process may have the one before
        open: SQLite's files beside both have the same names. Raises SinkError."""
        waiting: list[tuple[int, int | None, tuple[object, ...]]] = []
        deliveries: list[tuple[str, int]] = []
        refusals: list[tuple[object, ...]] = []
        if self._db is not None:
            with sink_errors("reading", self.path):
                deliveries = self._db.execute("SELECT sink, done FROM deliveries").fetchall()
                refusals = self._db.execute("SELECT * FROM refusals").fetchall()
                for number, event, gap in self._db.execute(
                        "SELECT number, event, gap FROM outbox WHERE number > (SELECT min(done) FROM deliveries) OR "
                        "number IN (SELECT number FROM refusals) ORDER BY number").fetchall():
                    columns, table = (f"{EVENT_COLUMNS}, uid", "events") if gap is None else (GAP_COLUMNS, "gaps")
                    row = self._db.execute(f"SELECT {columns} FROM {table} WHERE id = ?", (gap or event,)).fetchone()
                    waiting += [(number, gap, row)] if row else []
        self.close()
        self._open()
        assert self._db is not None
        with sink_errors("writing", self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO deliveries VALUES (?, ?)", deliveries)
            self._db.executemany("INSERT INTO refusals VALUES (?, ?, ?, ?, ?)", refusals)
            for number, gap, row in waiting:
                insert, column = (_INSERT, "event") if gap is None else (_INSERT_GAP, "gap")
                new = self._db.execute(insert, (self.run, *row)).lastrowid
                self._db.execute(f"INSERT INTO outbox (number, {column}) VALUES (?, ?)", (number, new))
            # Numbers go on, so that no sink passes over any.
            self._db.execute("INSERT OR IGNORE INTO outbox (number) VALUES (?)", (self._numbered,))

    def new_id(self) -> str:
        """An id for an event of this run, which no other event of any log has."""
        self._named += 1
        return f"{self.identity}-{self.run}-{self._named}"

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if self._db is None:
            return
        with sink_errors("writing", self.path):
            if frame is not None and not self._origin_known:
                self._db.execute("UPDATE runs SET origin = ? WHERE id = ?", (frame.captured_at, self.run))
                self._origin_known = True
            for record in records:
                self._insert(record)

    def append(self, records: Sequence[Record], deliver: bool) -> list[int]:
        """Commits closed events and gaps, all or none. deliver: for durable sinks, too: returns their numbers in the
        outbox, see `DeliveryLog`. Raises SinkError."""
        assert self._db is not None
        with sink_errors("writing", self.path), self._db:  # commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            rows = [(self._insert(record), record) for record in records]
            numbers = [self._db.execute(f"INSERT INTO outbox ({'event' if isinstance(record, Event) else 'gap'})"
                                        " VALUES (?)", (row,)).lastrowid or 0
                       for row, record in rows if deliver and row is not None]
        self._numbered = max([self._numbered, *numbers])
        return numbers

    def _insert(self, record: Record) -> int | None:
        """The row of a closed event or a gap; others have none."""
        assert self._db is not None
        if isinstance(record, Event) and not record.open:
            return self._db.execute(_INSERT, (self.run, record.camera, record.head, record.label, record.started_at,
                                              record.ended_at, record.score, record.id or self.new_id())).lastrowid
        if isinstance(record, Gap):
            return self._db.execute(_INSERT_GAP, (self.run, *astuple(record))).lastrowid
        return None

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            # Everything is committed; folding the journal in may fail on a full disk and is then done later.
            with suppress(sqlite3.Error):
                db.close()


def read_events(path: str | Path, *, label: str | None = None, camera: str | None = None, head: str | None = None,
                since: float | None = None, until: float | None = None, min_score: float | None = None,
                run: int | None = None, newest: int | None = None, live: bool | None = None) -> list[LoggedEvent]:
    """The events of a log, by run, then by start; the log may be in use.
    label, camera, head: exactly this one; since, until: events that overlap this time (seconds, as in captured_at);
    min_score: at least this; run: number of one run, -1 the latest; newest: at most so many, those logged last;
    live: only those in Unix times, or only those in stream time.
    Raises UsageError for a missing file or run, SinkError for a file that is no event log."""
    rules = {**about(label, camera, head, since, until), "score >= ?": min_score,
             "run = ?": None if run is None else find_run(path, run).id, f"(started_at >= {UNIX_TIMES_S}) = ?": live}
    where, values = conditions(rules)
    with open_to_read(path) as db:
        runs = {each.id: each for each in _runs(db, path)}
        rows = db.execute(
            f"SELECT {uid_of(db)}, run, {EVENT_COLUMNS} FROM (SELECT * FROM events WHERE {where} ORDER BY id DESC"
            " LIMIT ?) ORDER BY run, started_at, id", [*values, -1 if newest is None else newest])
        return [LoggedEvent(uid, runs[number], Event(*[*values, False, None, uid])) for uid, number, *values in rows]


def about(label: str | None, camera: str | None, head: str | None, since: float | None, until: float | None
          ) -> dict[str, object]:
    """Rules for events, in SQL, as `read_events` has them."""
    return {"label = ?": label, "camera = ?": camera, "head = ?": head, "ended_at >= ?": since,
            "started_at <= ?": until}


def conditions(rules: Mapping[str, object]) -> tuple[str, list[object]]:
    """SQL for all rules that have a value, and the values."""
    used = {rule: value for rule, value in rules.items() if value is not None}
    return " AND ".join(used) or "1", list(used.values())


def check_names(paths: Sequence[str | Path], **names: str | None) -> None:
    """Raises UsageError for a camera, label or head that no event of these logs has, and says which is nearest.

        check_names([Path("events.db")], camera="cell3")      # ... did you mean cell-3?"""
    for column, name in names.items():
        known = set[str]()
        for path in paths if name is not None else ():
            with open_to_read(path) as db:
                gaps = " UNION SELECT camera FROM gaps" if column == "camera" else ""
                known |= {found for found, in db.execute(f"SELECT DISTINCT {column} FROM events{gaps}")}
        if name is not None and known and name not in known:
            [near] = get_close_matches(name, sorted(known), n=1, cutoff=0.0)
            raise UsageError(f"{column} {name!r}, of which {paths[0] if len(paths) == 1 else 'no log'} has no event",
                             f"one of its {len(known)} {column}s" if len(known) > 8 else
                             f"one of {', '.join(sorted(known))}", f"did you mean {near}?")


def count_events(path: str | Path) -> dict[str, Counter[str]]:
    """How many events a log has, by camera and label. Raises as `read_events` does."""
    found: dict[str, Counter[str]] = {}
    with open_to_read(path) as db:
        for camera, label, count in db.execute("SELECT camera, label, count(*) FROM events GROUP BY camera, label"):
            found.setdefault(camera, Counter())[label] = count
    return found


def clip_name(id: str, camera: str, label: str) -> str:
    """The file name of an event's video: its id, camera and label."""
    return "_".join(re.sub(r"[^\w.-]+", "-", part) for part in (id, camera, label)) + ".mp4"


def read_runs(path: str | Path) -> list[Run]:
    """The runs of a log, oldest first. Raises as `read_events` does."""
    with open_to_read(path) as db:
        return _runs(db, path)


def _runs(db: sqlite3.Connection, path: str | Path) -> list[Run]:
    about = "digest, zone" if _pragma(db, "user_version") >= 3 else "'', ''"
    events = "(SELECT count(*) FROM events WHERE run = runs.id)"
    return [Run(*[*row, str(path)]) for row in db.execute(
        f"SELECT id, started, model, source, coalesce(origin, started), {events}, {about} FROM runs ORDER BY id")]


def find_run(path: str | Path, run: int) -> Run:
    """Run number `run` of a log, or the latest for -1. Raises UsageError when there is no such run."""
    known = read_runs(path)
    for candidate in reversed(known):
        if run in (-1, candidate.id):
            return candidate
    raise UsageError(f"run {run} of {path}", f"one of {[each.id for each in known]}", "leave --run out to see all")


def uid_of(db: sqlite3.Connection) -> str:
    """SQL for the id of an event's row; those logged by earlier versions have a number alone."""
    numbered = f"'{_identity(db)}-' || id"
    return f"coalesce(uid, {numbered})" if _pragma(db, "user_version") >= 3 else numbered


def _identity(db: sqlite3.Connection) -> str:
    first = db.execute("SELECT started FROM runs ORDER BY id LIMIT 1").fetchone()
    return f"{round(1000 * first[0]):011x}" if first else ""


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables in an empty file, or checks that the file is a log of this version."""
    empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if empty and _pragma(db, "application_id") == 0:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before anything else; see retention.py
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
                         "PRAGMA user_version = 2; COMMIT;")
    if _pragma(db, "application_id") == APPLICATION_ID and _pragma(db, "user_version") == 2:
        db.executescript(_FROM_2)
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
def open_to_read(path: str | Path) -> Iterator[sqlite3.Connection]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"no event log {file}", "a file written with --log", "check the name")
    with sink_errors("opening", file):
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
    with closing(db), sink_errors("reading", path):
        with sink_errors("opening", file):
            _check(db, file)
        yield db
