"""Logged events in the formats other tools read: a table, CSV, JSON lines, WebVTT, ELAN."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.table import Column, Table

from engines.decoding.paths import printable
from engines.errors import UsageError
from stream.evaluation.metrics import lanes
from stream.sinks.base import write_text
from stream.sinks.log import LoggedEvent, find_run, read_events

Writer = Callable[[Sequence[LoggedEvent], TextIO], object]
UNIX_TIMES_S = 1e9  # from here on: no file is 31 years long
ELAN_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"


def write_table(found: Sequence[LoggedEvent], out: TextIO) -> None:
    """A table for people: times of live events are this machine's wall clock, of files seconds."""
    table = Table(*(Column(name, overflow="fold") for name in ("camera", "head", "label")),
                  *(Column(name, justify="right", no_wrap=True) for name in ("start", "end", "length s", "score")),
                  box=None, header_style="bold", pad_edge=False)
    for _, _, event in found:
        table.add_row(event.camera, event.head, event.label, _table_time(event.started_at, "%Y-%m-%d %H:%M:%S"),
                      _table_time(event.ended_at, "%H:%M:%S"), f"{event.ended_at - event.started_at:.2f}",
                      f"{event.score:.2f}")
    Console(file=out, markup=False, highlight=False).print(table)


def write_csv(found: Sequence[LoggedEvent], out: TextIO) -> None:
    """Comma-separated values with a header line."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("camera", "head", "label", "started_at", "ended_at", "score", "id"))
    rows.writerows((event.camera, event.head, event.label, round(event.started_at, 4), round(event.ended_at, 4),
                    round(event.score, 4), id) for id, _, event in found)


def write_jsonl(found: Sequence[LoggedEvent], out: TextIO) -> None:
    """The lines `--json` gave for these events, with their ids."""
    out.writelines(json.dumps({**event.as_json(), "id": id}, separators=(",", ":"), allow_nan=False) + "\n"
                   for id, _, event in found)


def write_vtt(found: Sequence[LoggedEvent], out: TextIO, origin_s: float = 0.0) -> None:
    """WebVTT subtitles for the video of one run; `origin_s` is the capture time of its first frame."""
    out.write("WEBVTT\n")
    for _, _, event in found:
        started_ms = max(0, round(1000 * (event.started_at - origin_s)))
        ended_ms = max(started_ms + 1, round(1000 * (event.ended_at - origin_s)))  # a cue has to last
        text = escape(" ".join(printable(event.label).split()), quote=False)
        out.write(f"\n{_vtt_time(started_ms)} --> {_vtt_time(ended_ms)}\n{text}\n")


def write_elan(found: Sequence[LoggedEvent], out: TextIO, origin_s: float = 0.0) -> None:
    """An annotation document of ELAN (EAF 3.0) for the video of one run, a tier for each camera and head, and
    more of them for events that overlap, which a tier cannot hold."""
    document = Xml.Element("ANNOTATION_DOCUMENT", {
        "AUTHOR": "gatestream", "DATE": datetime.now(UTC).isoformat(timespec="seconds"), "FORMAT": "3.0",
        "VERSION": "3.0", "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
        "xsi:noNamespaceSchemaLocation": ELAN_SCHEMA})
    Xml.SubElement(document, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    order = Xml.SubElement(document, "TIME_ORDER")
    tiers: dict[str, Xml.Element] = {}
    lane_of: dict[str, int] = {}
    for key in {(event.camera, event.head) for _, _, event in found}:
        own = [one for one in found if (one.event.camera, one.event.head) == key]
        lane_of |= {one.id: lane for one, lane in zip(own, lanes([one.event for one in own]), strict=True)}
    for number, (id, _, event) in enumerate(found):
        name = printable(f"{event.camera} {event.head}" + (f" {lane_of[id] + 1}" if lane_of[id] else ""))
        if name not in tiers:
            tiers[name] = Xml.SubElement(document, "TIER", {"TIER_ID": name, "LINGUISTIC_TYPE_REF": "action"})
        slots = f"ts{2 * number + 1}", f"ts{2 * number + 2}"
        for slot, at in zip(slots, (event.started_at, event.ended_at), strict=True):
            time_ms = max(0, round(1000 * (at - origin_s)))
            Xml.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time_ms)})
        aligned = Xml.SubElement(Xml.SubElement(tiers[name], "ANNOTATION"), "ALIGNABLE_ANNOTATION", {
            "ANNOTATION_ID": f"a{number + 1}", "TIME_SLOT_REF1": slots[0], "TIME_SLOT_REF2": slots[1]})
        Xml.SubElement(aligned, "ANNOTATION_VALUE").text = printable(event.label)
    Xml.SubElement(document, "LINGUISTIC_TYPE", {"LINGUISTIC_TYPE_ID": "action", "TIME_ALIGNABLE": "true",
                                                 "GRAPHIC_REFERENCES": "false"})
    Xml.indent(document)
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(document, encoding="unicode") + "\n")


WRITERS: dict[str, Writer] = {"table": write_table, "csv": write_csv, "jsonl": write_jsonl}
OF_ONE_RUN = {"vtt": write_vtt, "elan": write_elan}  # times count from the first frame of its video


def export(path: str | Path, out: TextIO, form: str = "table", run: int | None = None, **chosen: Any) -> None:
    """Writes the events of a log to `out`: what `gatestream events FILE.db` does.
    form: "table", "csv", "jsonl", "vtt" or "elan"; the rest selects events as `stream.sinks.log.read_events` does.
    Subtitles and annotations belong to one video, so "vtt" and "elan" take the latest run unless one is given, and
    count from its first frame. Raises UsageError, and SinkError when the log cannot be read or `out` not written."""
    text = io.StringIO()
    if form in OF_ONE_RUN:
        one = find_run(path, -1 if run is None else run)
        OF_ONE_RUN[form](read_events(path, run=one.id, **chosen), text, one.origin)
    elif form in WRITERS:
        WRITERS[form](read_events(path, run=run, **chosen), text)
    else:
        raise UsageError(f"format {form!r}", f"one of {', '.join((*WRITERS, *OF_ONE_RUN))}", "choose one with --format")
    write_text(out, text.getvalue(), getattr(out, "name", "the output"))


def _table_time(at: float, form: str) -> str:
    return f"{at:.2f}" if at < UNIX_TIMES_S else datetime.fromtimestamp(at).strftime(form)


def _vtt_time(ms: int) -> str:
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
