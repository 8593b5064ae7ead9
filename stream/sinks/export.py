"""Writes logged events in the formats other tools read: a table, CSV, JSON lines, WebVTT."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from engines.errors import UsageError
from stream.frame import Event
from stream.sinks.base import write_text
from stream.sinks.log import events, find_run

Writer = Callable[[Iterable[Event], TextIO], object]


def write_table(found: Iterable[Event], out: TextIO) -> None:
    """A table for people."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("camera", "head", "label"):
        table.add_column(name, overflow="fold")
    for name in ("start s", "end s", "length s", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    for event in found:
        table.add_row(event.camera, event.head, event.label, f"{event.started_at:.2f}", f"{event.ended_at:.2f}",
                      f"{event.ended_at - event.started_at:.2f}", f"{event.score:.2f}")
    Console(file=out, markup=False, highlight=False).print(table)


def write_csv(found: Iterable[Event], out: TextIO) -> None:
    """Comma-separated values with a header line."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("camera", "head", "label", "started_at", "ended_at", "score"))
    rows.writerows((event.camera, event.head, event.label, round(event.started_at, 4), round(event.ended_at, 4),
                    round(event.score, 4)) for event in found)


def write_jsonl(found: Iterable[Event], out: TextIO) -> None:
    """The lines `--json` gave for these events."""
    out.writelines(json.dumps(event.as_json(), separators=(",", ":"), allow_nan=False) + "\n" for event in found)


def write_vtt(found: Iterable[Event], out: TextIO, origin_s: float = 0.0) -> None:
    """WebVTT subtitles for the video of one run; `origin_s` is the capture time of its first frame."""
    out.write("WEBVTT\n")
    for event in found:
        text = " ".join(event.label.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        out.write(f"\n{_vtt_time(event.started_at - origin_s)} --> {_vtt_time(event.ended_at - origin_s)}\n{text}\n")


WRITERS: dict[str, Writer] = {"table": write_table, "csv": write_csv, "jsonl": write_jsonl, "vtt": write_vtt}


def export(path: str | Path, out: TextIO, form: str = "table", *, label: str | None = None,
           camera: str | None = None, since: float | None = None, until: float | None = None,
           run: int | None = None) -> None:
    """Writes the events of a log to `out`: what `gatestream events FILE.db` does.

    form: "table", "csv", "jsonl" or "vtt"; the rest chooses events as in `stream.sinks.log.events`. Subtitles
    belong to one video, so "vtt" takes the latest run unless one is given, and counts from its first frame.
    Raises UsageError, and SinkError when the log cannot be read or `out` not written.
    """
    if form not in WRITERS:
        raise UsageError(f"format {form!r}", f"one of {', '.join(WRITERS)}", "choose one with --format")
    origin_s: float | None = 0.0
    if form == "vtt":
        chosen = find_run(path, -1 if run is None else run)
        run, origin_s = chosen.id, chosen.origin
    found = events(path, label=label, camera=camera, since=since, until=until, run=run)
    text = io.StringIO()
    if form == "vtt":
        write_vtt(found, text, origin_s or 0.0)
    else:
        WRITERS[form](found, text)
    write_text(out, text.getvalue(), getattr(out, "name", "the output"))


def _vtt_time(seconds: float) -> str:
    ms = max(0, round(seconds * 1000))
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
