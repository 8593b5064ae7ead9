"""Which closed events and gaps of an event log each durable sink has got: an outbox in the log's own file.

    outbox(number, event, gap)     what is to be delivered, in order, written in the log's own transaction
    deliveries(sink, done)         up to which number a sink has all, but for its
    refusals(sink, number, ...)    which it will not take; `retry` marks those that are to be sent once more"""

import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from stream.frame import Event, Gap
from stream.sinks.base import sink_errors
from stream.sinks.log import BUSY_TIMEOUT_S, EVENT_COLUMNS, GAP_COLUMNS, open_to_read, uid_of

MOST_WAITING = 1_000_000  # in the outbox; beyond that the oldest are not delivered any more
TIDY_EVERY = 200  # deliveries
Numbered = list[tuple[int, Event | Gap]]


class Undelivered(NamedTuple):
    """An event or a gap that a sink has not got."""

    sink: str
    record: Event | Gap
    reason: str | None  # why it was refused; None where it only waits
    at: float | None  # Unix time of that


class DeliveryLog:
    """One sink's place in the outbox of an event log, which `EventLog` has made. May be used from any thread.
    Raises SinkError; where the place cannot be written it is remembered here, and written with the next one."""

    def __init__(self, path: Path, sink: str) -> None:
        self._path, self._sink, self._moves, self._lock = path, sink, 0, threading.RLock()
        self._db = self._open()
        with sink_errors("writing", path):
            # The first sink of all begins with what an earlier version has not delivered; others with what comes.
            self._db.execute("INSERT OR IGNORE INTO deliveries VALUES (?, iif(EXISTS (SELECT * FROM deliveries), "
                             "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'), 0))", (sink,))
            self.done: int = self._db.execute("SELECT done FROM deliveries WHERE sink = ?", (sink,)).fetchone()[0]
            """The number up to which everything is delivered or refused."""

    def _open(self) -> sqlite3.Connection:
        with sink_errors("opening", self._path):
            db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA synchronous = NORMAL")  # with the power the last places may go: then it is sent twice
            return db

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Closes the file, and opens the one that is there in the end; whoever needs it in between waits."""
        with self._lock:
            self._db.close()
            try:
                yield
            finally:
                self._db = self._open()

    @contextmanager
    def _use(self, what: str) -> Iterator[sqlite3.Connection]:
        with self._lock, sink_errors(what, self._path):
            yield self._db

    def newest(self) -> int:
        """The largest number in the outbox."""
        with self._use("reading") as db:
            return int(db.execute("SELECT coalesce(max(number), 0) FROM outbox").fetchone()[0])

    def read(self, until: int, most: int = 100) -> Numbered:
        """What comes next, up to a number."""
        with self._use("reading") as db:
            return _read(db, "number > ? AND number <= ? ORDER BY number LIMIT ?", self.done, until, most)

    def retries(self) -> Numbered:
        """What was refused and is to be sent once more."""
        with self._use("reading") as db:
            return _read(db, "number IN (SELECT number FROM refusals WHERE sink = ? AND retry)", self._sink)

    def advance(self, number: int, refused: str | None = None) -> None:
        """Notes that everything up to `number` is delivered, or why this one is refused."""
        if refused is not None:
            with self._use("writing") as db:
                db.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?, 0)",
                                 (self._sink, number, refused, time.time()))
        self.done, self._moves = max(self.done, number), self._moves + 1
        with self._use("writing") as db:
            db.execute("UPDATE deliveries SET done = ? WHERE sink = ?", (self.done, self._sink))
            if self._moves % TIDY_EVERY == 0:
                db.execute("DELETE FROM outbox WHERE number NOT IN (SELECT number FROM refusals) AND (number <= "
                                 "(SELECT min(done) FROM deliveries) OR number <= ?)", (self.newest() - MOST_WAITING,))

    def settle(self, number: int) -> None:
        """Notes that something that was refused is delivered after all."""
        with self._use("writing") as db:
            db.execute("DELETE FROM refusals WHERE sink = ? AND number = ?", (self._sink, number))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()


def read_undelivered(path: str | Path) -> list[Undelivered]:
    """What of a log its sinks have not got, by sink, in order. Raises UsageError, SinkError."""
    with open_to_read(path) as db:
        found: list[Undelivered] = []
        if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'outbox'").fetchone()[0]:
            return found  # of an earlier version
        for sink, done in db.execute("SELECT sink, done FROM deliveries ORDER BY sink").fetchall():
            refused = {number: (reason, at) for number, reason, at in db.execute(
                "SELECT number, reason, at FROM refusals WHERE sink = ?", (sink,))}
            found += [Undelivered(sink, record, *refused.get(number, (None, None))) for number, record in _read(
                db, "number > ? OR number IN (SELECT number FROM refusals WHERE sink = ?) ORDER BY number", done, sink)]
        return found


def forget_sinks(path: Path, used: Collection[str]) -> dict[str, int]:
    """Removes sinks that are not used any more, for which events would be kept; returns how many waited for each, where
    any did. Raises SinkError."""
    waited: dict[str, int] = {}
    with sink_errors("writing", path), closing(sqlite3.connect(path, BUSY_TIMEOUT_S)) as db, db:
        for sink, done in db.execute("SELECT sink, done FROM deliveries").fetchall():
            if sink not in used:
                [waited[sink]] = db.execute("SELECT count(*) FROM outbox WHERE number > ?", (done,)).fetchone()
                db.execute("DELETE FROM deliveries WHERE sink = ?", (sink,))
                db.execute("DELETE FROM refusals WHERE sink = ?", (sink,))
        if not used:
            db.execute("DELETE FROM outbox")
    return {sink: count for sink, count in waited.items() if count}


def retry_refused(path: Path) -> int:
    """Has everything that sinks of a log have refused sent once more, by the service that runs or the next one; returns
    how much. Raises UsageError, SinkError."""
    with open_to_read(path), sink_errors("writing", path), closing(sqlite3.connect(path, BUSY_TIMEOUT_S)) as db, db:
        return db.execute("UPDATE refusals SET retry = 1").rowcount


def _read(db: sqlite3.Connection, which: str, *values: object) -> Numbered:
    rows = db.execute(f"SELECT number, event, gap FROM outbox WHERE {which}", values).fetchall()
    found: Numbered = []
    for number, event, gap in rows:
        if event is not None:
            row = db.execute(f"SELECT {uid_of(db)}, {EVENT_COLUMNS} FROM events WHERE id = ?", (event,)).fetchone()
            record: Event | Gap | None = row and Event(*[*row[1:], False, None, row[0]])
        else:
            row = db.execute(f"SELECT {GAP_COLUMNS} FROM gaps WHERE id = ?", (gap,)).fetchone()
            record = row and Gap(*row)
        if record is not None:  # else its row was deleted
            found.append((number, record))
    return found
