"""Keeps an event log small: deletes the oldest events and gaps that no sink waits for, and gives back disk."""

import math
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from stream.sinks.base import sink_errors
from stream.sinks.log import BUSY_TIMEOUT_S, UNIX_TIMES_S, open_to_read

BATCH = 500  # rows deleted at a time, so that whoever logs meanwhile waits for moments only
INCREMENTAL = 2  # SQLite's auto_vacuum, which gives back disk without a copy of the file
_DELIVERED = """number <= (SELECT coalesce(min(done), 0) FROM deliveries)
                AND number NOT IN (SELECT number FROM refusals)"""
_AWAITED = {1: "SELECT 0 AS event, 0 AS gap WHERE 0",  # by the log's version
            2: "SELECT id AS event, NULL AS gap FROM events WHERE NOT announced",
            3: "SELECT event, gap FROM outbox"}  # once what is delivered has left it
_DATED = " UNION ALL ".join(
    f"""SELECT '{table}' AS part, {table}.id AS id, iif({at} >= {UNIX_TIMES_S}, {at}, runs.started + {at}) AS date,
               {table}.id IN (SELECT {column} FROM awaited WHERE {column} IS NOT NULL) AS waits
        FROM {table} JOIN runs ON runs.id = run"""
    for table, column, at in (("events", "event", "ended_at"), ("gaps", "gap", "at")))


class Compaction(NamedTuple):
    """What was deleted, what is older than it may be but kept for a sink, and how much smaller the log is."""

    events: int
    gaps: int
    awaited: int
    freed_bytes: int


def compact(path: str | Path, keep_days: float | None = None, keep_mb: float | None = None,
            now: float | None = None) -> Compaction:
    """Deletes from a log what ended more than `keep_days` ago, then the oldest until it takes no more than `keep_mb`
    (10^6 bytes), but nothing that a sink waits for or has refused. The log may be in use; runs stay. An event of a
    file ends when its run began, plus its stream time. The first time, a log of an earlier version is copied once,
    which takes as much disk again. Raises UsageError for a missing file, SinkError."""
    with open_to_read(path):  # refuses what is no log
        file = Path(path).expanduser()
    with sink_errors("compacting", file), closing(
            sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as db:
        before, deleted, done = _disk_bytes(file), {"events": 0, "gaps": 0}, 0
        db.execute("PRAGMA synchronous = NORMAL")  # with the power the last deletions may go: then they are done again
        if (version := _pragma(db, "user_version")) >= 3:
            db.execute(f"DELETE FROM outbox WHERE {_DELIVERED}")
        db.execute(f"CREATE TEMP TABLE awaited AS {_AWAITED[version]}")
        db.execute(f"CREATE TEMP TABLE oldest AS SELECT * FROM ({_DATED}) ORDER BY waits, date")
        due = -math.inf if keep_days is None else (time.time() if now is None else now) - 86_400 * keep_days
        free, old, kept = (
            int(db.execute("SELECT count(*) FROM oldest WHERE waits = ? AND date < ?", which).fetchone()[0])
            for which in ((False, math.inf), (False, due), (True, due)))
        while done < free and (done < old or (keep_mb is not None and _used_bytes(db) > 1e6 * keep_mb)):
            end = min(done + BATCH, old if done < old else free)
            db.execute("BEGIN IMMEDIATE")
            for table in deleted:
                deleted[table] += db.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM oldest WHERE rowid > ? "
                                             "AND rowid <= ? AND part = ?)", (done, end, table)).rowcount
            db.execute("COMMIT")
            done = end
        if _pragma(db, "auto_vacuum") == INCREMENTAL:
            db.executescript("PRAGMA incremental_vacuum")  # `execute` would take its first step only
        else:
            db.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
            db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return Compaction(**deleted, awaited=kept, freed_bytes=max(0, before - _disk_bytes(file)))


def _disk_bytes(file: Path) -> int:
    """With the journal."""
    journal = file.with_name(f"{file.name}-wal")
    return file.stat().st_size + (journal.stat().st_size if journal.exists() else 0)


def _used_bytes(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
