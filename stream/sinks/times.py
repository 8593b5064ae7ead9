"""Times of events: as people write them, and as they are shown. Unix times of live sources, seconds of files."""

import math
import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from engines.errors import UsageError
from stream.sinks.log import UNIX_TIMES_S

TimeForm = Literal["local", "utc", "raw"]  # of Unix times: by the clock here, in UTC, the numbers as logged
_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m(?:in)?": 60.0, "s": 1.0}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS_S), re.ASCII)
EXAMPLES = "14:02, 2026-01-31T14:02, 2026-01-31T14:02+01:00, 10m (ago), or seconds of a file such as 12.5"


def parse_time(text: str, now: float, utc: bool = False, end: bool = False) -> float:
    """The Unix time that a text means, or the seconds of a file.

        parse_time("14:02", time.time())      # today; also 2026-01-31T14:02, 2026-01-31, 10m, 1h30m, 12.5

    utc: times without a zone are UTC, not local; end: of a span, so that a day means its last moment.
    Raises UsageError for anything else, and for a span that begins at a time of day still to come."""
    text = text.strip()
    with suppress(ValueError, OverflowError):
        if math.isfinite(seconds := float(text)):
            return seconds
    if text and (parts := _DURATION.fullmatch(text)):
        return now - sum(float(part or 0) * unit_s for part, unit_s in zip(parts.groups(), _UNITS_S.values(),
                                                                          strict=True))
    zone = UTC if utc else None
    with suppress(ValueError, OverflowError):
        clock = time.fromisoformat(re.sub(r"^(\d):", r"0\1:", text))
        today = datetime.fromtimestamp(now, clock.tzinfo or zone)
        at = datetime.combine(today, clock, clock.tzinfo or zone).timestamp()
        if at > now and not end:
            raise UsageError(f"{text}, which is still to come", "a time that has been",
                             f"write the day, such as {today.date() - timedelta(days=1)}T{text}")
        return at
    with suppress(ValueError, OverflowError):
        day = date.fromisoformat(text) + timedelta(days=end)
        return max(datetime.combine(day, time.min, zone).timestamp(), UNIX_TIMES_S)
    with suppress(ValueError, OverflowError):
        at_time = datetime.fromisoformat(text)
        return max((at_time.replace(tzinfo=at_time.tzinfo or zone)).timestamp(), UNIX_TIMES_S)
    raise UsageError(f"the time {text!r}", EXAMPLES, "write it like that")


def format_time(at: float, form: TimeForm = "local", timespec: str = "milliseconds", sep: str = "T") -> str:
    """2026-01-31T14:02:00.250+01:00 for a Unix time; the number, rounded to 0.1 ms, for the seconds of a file."""
    if form == "raw" or at < UNIX_TIMES_S:
        return str(round(at, 4))
    return show_clock(at, form).isoformat(sep, timespec)


def show_clock(at: float, form: TimeForm) -> datetime:
    """The date and time of a Unix time, with its zone."""
    return datetime.fromtimestamp(at, UTC).astimezone(UTC if form == "utc" else None)
