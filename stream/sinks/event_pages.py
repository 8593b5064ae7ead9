"""Pages of an event log: events in the order in which they were logged."""

from pathlib import Path
from typing import NamedTuple

from stream.frame import Event
from stream.sinks.log import EVENT_COLUMNS, about, conditions, open_to_read, uid_of


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
              label: str | None = None, camera: str | None = None, head: str | None = None,
              since: float | None = None, until: float | None = None) -> EventPage:
    """Up to `limit` events, of those that `read_events` would give.
    cursor: only events logged after this row, or before it if newest first; row: only this one. Raises UsageError,
    SinkError."""
    where, values = conditions({**about(label, camera, head, since, until), "id = ?": row,
                                f"id {'<' if newest_first else '>'} ?": cursor})
    with open_to_read(log) as db:
        rows = db.execute(f"SELECT id, {uid_of(db)}, {EVENT_COLUMNS} FROM events WHERE {where} "
                          f"ORDER BY id {'DESC' if newest_first else 'ASC'} LIMIT ?", [*values, limit + 1]).fetchall()
    events = [Event(*[*columns, False, None, uid]) for _, uid, *columns in rows[:limit]]
    return EventPage(events, rows[limit - 1][0] if len(rows) > limit else None)
