"""Pages of an event log: events in the order in which they were logged."""

from pathlib import Path
from typing import NamedTuple

from stream.frame import Event
from stream.sinks.log import open_to_read, uid_of


class EventPage(NamedTuple):
    """Some events. more: the `cursor` of the page after it, if there are any more."""

    events: list[Event]
    more: int | None


def find_row(log: Path, id: str) -> int | None:
    """The row of an event in a log, None where it is not there. Raises UsageError, SinkError."""
    with open_to_read(log) as db:
        found = db.execute(f"SELECT id FROM events WHERE {uid_of(db)} = ? ORDER BY id DESC LIMIT 1", [id]).fetchone()
    return None if found is None else int(found[0])


def read_page(log: Path, limit: int, *, newest_first: bool = False, cursor: int | None = None, row: int | None = None,
              camera: str | None = None, label: str | None = None, head: str | None = None,
              since: float | None = None, until: float | None = None) -> EventPage:
    """Up to `limit` events; the log may be in use.
    cursor: only events logged after this row, or before it if newest first; row: only this one; since, until: events
    that overlap this time (seconds, as in captured_at). Raises UsageError, SinkError."""
    rules = {"camera = ?": camera, "label = ?": label, "head = ?": head, "ended_at >= ?": since,
             "started_at <= ?": until, f"id {'<' if newest_first else '>'} ?": cursor, "id = ?": row}
    used = {rule: value for rule, value in rules.items() if value is not None}
    with open_to_read(log) as db:
        rows = db.execute(f"SELECT id, {uid_of(db)}, camera, head, label, started_at, ended_at, score FROM events "
                          f"WHERE {' AND '.join(used) or '1'} ORDER BY id {'DESC' if newest_first else 'ASC'} LIMIT ?",
                          [*used.values(), limit + 1]).fetchall()
    events = [Event(camera, head, label, started_at, ended_at, score, False, id=uid)
              for _, uid, camera, head, label, started_at, ended_at, score in rows[:limit]]
    return EventPage(events, rows[limit - 1][0] if len(rows) > limit else None)
