"""Logged events in the formats other tools read: a table, CSV, JSON lines, WebVTT, ELAN; and the list of runs."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from xml.etree import ElementTree as Xml

from rich.console import Console
from rich.table import Column, Table

from engines.decoding.paths import printable
from engines.errors import UsageError
from stream.evaluation.metrics import lanes
from stream.sinks.base import output_path, sink_errors, write_text
from stream.sinks.log import UNIX_TIMES_S, LoggedEvent, Run, clip_name, find_run, read_events, read_runs
from stream.sinks.times import TimeForm, format_time, show_clock

if TYPE_CHECKING:
    from stream.sinks.segments import Segment

ELAN_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
UNLIMITED = 1000  # columns of a table that goes to a file
RUN_FIELDS = ("run", "source", "model", "digest", "zone", "log")  # what is said of an event's run


@dataclass(frozen=True)
class View:
    """How events are shown. times: of live sources; videos: name the video that a service makes of each event;
    folder: where these are looked for; columns: of the terminal, None where there is none."""

    times: TimeForm = "local"
    videos: bool = False
    folder: Path | None = None
    columns: int | None = None

    @property
    def video_fields(self) -> tuple[str, ...]:
        return () if not self.videos else ("clip",) if self.folder is None else ("clip", "video")

    def video(self, each: LoggedEvent) -> tuple[str, Path | None]:
        """The file name of an event's video, and its path if it is there."""
        name = clip_name(each.id, each.event.camera, each.event.label)
        path = None if self.folder is None else self.folder / name
        return name, path if path is not None and path.is_file() else None


DEFAULT = View()
Writer = Callable[[Sequence[LoggedEvent], TextIO, View], object]


class _Names:
    """What has to be said of events so that they can be told apart: run, camera, head, where there are several."""

    def __init__(self, found: Sequence[LoggedEvent]) -> None:
        self.runs = list(dict.fromkeys(each.run for each in found))
        self._several = [len(kinds) > 1 for kinds in (self.runs, {each.event.camera for each in found},
                                                      {each.event.head for each in found})]

    @cached_property
    def logs(self) -> bool:
        """Whether the events are of several logs."""
        return len({run.log for run in self.runs}) > 1

    def run(self, run: Run) -> str:
        return f"{run.log} run {run.id}" if self.logs else f"run {run.id}"

    def of(self, each: LoggedEvent) -> list[str]:
        parts = self.run(each.run), each.event.camera, each.event.head
        return [part for part, several in zip(parts, self._several, strict=True) if several]


def write_table(found: Sequence[LoggedEvent], out: TextIO, view: View = DEFAULT) -> None:
    """A table for people."""
    names = _Names(found)
    several = len(names.runs) > 1
    table = Table(*(Column(name, overflow="fold") for name in (*["run"] * several, "camera", "head", "label")),
                  *(Column(name, justify="right", no_wrap=True) for name in ("start", "end", "length", "score")),
                  *(Column(name, overflow="fold") for name in ("id", "video") * view.videos),
                  box=None, header_style="bold", pad_edge=False)
    for each in found:
        event, (name, path) = each.event, view.video(each)
        video = name if view.folder is None else str(path or f"{name} (not there)")
        table.add_row(*[names.run(each.run).removeprefix("run ")] * several, event.camera, event.head, event.label,
                      _table_time(event.started_at, view.times), _table_time(event.ended_at, view.times, end=True),
                      f"{event.ended_at - event.started_at:.2f} s", f"{event.score:.2f}",
                      *(each.id, video) * view.videos)
    _print(table, out, view)


def write_csv(found: Sequence[LoggedEvent], out: TextIO, view: View = DEFAULT) -> None:
    """Comma-separated values with a header line."""
    several_logs, rows = _Names(found).logs, csv.writer(out, lineterminator="\n")
    rows.writerow(("camera", "head", "label", "started_at", "ended_at", "score", "id",
                   *RUN_FIELDS[:len(RUN_FIELDS) - (not several_logs)], *view.video_fields))
    rows.writerows((each.event.camera, each.event.head, each.event.label,
                    *(format_time(at, view.times) for at in (each.event.started_at, each.event.ended_at)),
                    round(each.event.score, 4), each.id, *_run_fields(each.run, several_logs).values(),
                    *_video_fields(each, view).values()) for each in found)


def write_jsonl(found: Sequence[LoggedEvent], out: TextIO, view: View = DEFAULT) -> None:
    """The lines `--json` gave for these events, with their ids and runs; times are the numbers that are logged."""
    several_logs = _Names(found).logs
    for each in found:
        _write_json({**each.event.as_json(), "id": each.id, **_run_fields(each.run, several_logs),
                     **_video_fields(each, view)}, out)


def write_vtt(found: Sequence[LoggedEvent], out: TextIO, view: View = DEFAULT) -> None:
    """WebVTT subtitles. Times count from a run's first frame, the zero of its video; of several live runs from the
    first frame of all. A cue names its run, camera and head where there are several."""
    names, zeros = _Names(found), _find_zeros(found)
    out.write("WEBVTT\n")
    if len(names.runs) > 1:
        out.write("\nNOTE\n" + "".join(f"{_cue_text(_describe_run(run, names, view))}\n" for run in names.runs))
    for each in sorted(found, key=lambda each: each.event.started_at - zeros[each.run]):
        started_ms = max(0, round(1000 * (each.event.started_at - zeros[each.run])))
        ended_ms = max(started_ms + 1, round(1000 * (each.event.ended_at - zeros[each.run])))  # a cue has to last
        text = ": ".join(filter(None, (", ".join(names.of(each)), each.event.label)))
        out.write(f"\n{_vtt_time(started_ms)} --> {_vtt_time(ended_ms)}\n{_cue_text(text)}\n")


def write_elan(found: Sequence[LoggedEvent], out: TextIO, view: View = DEFAULT) -> None:
    """An annotation document of ELAN (EAF 3.0), whose times count as those of subtitles: a tier for each run, camera
    and head, and more of them for events that overlap, which a tier cannot hold."""
    names, zeros = _Names(found), _find_zeros(found)
    document = Xml.Element("ANNOTATION_DOCUMENT", {
        "AUTHOR": "gatestream", "DATE": datetime.now(UTC).isoformat(timespec="seconds"), "FORMAT": "3.0",
        "VERSION": "3.0", "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
        "xsi:noNamespaceSchemaLocation": ELAN_SCHEMA})
    header = Xml.SubElement(document, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    for run in names.runs:
        Xml.SubElement(header, "PROPERTY", {"NAME": printable(names.run(run))}).text = printable(
            _describe_run(run, names, view))
    order = Xml.SubElement(document, "TIME_ORDER")
    by_tier: dict[str, list[LoggedEvent]] = {}
    for each in found:
        prefix = f"{names.run(each.run)} " * (len(names.runs) > 1)
        by_tier.setdefault(printable(f"{prefix}{each.event.camera} {each.event.head}"), []).append(each)
    tiers, number = dict[str, Xml.Element](), 0
    for tier, own in by_tier.items():
        for each, lane in zip(own, lanes([one.event for one in own]), strict=True):
            number += 1
            name = f"{tier} {lane + 1}" if lane else tier
            if name not in tiers:
                tiers[name] = Xml.Element("TIER", {"TIER_ID": name, "LINGUISTIC_TYPE_REF": "action"})
            slots = f"ts{2 * number - 1}", f"ts{2 * number}"
            for slot, at in zip(slots, (each.event.started_at, each.event.ended_at), strict=True):
                time_ms = max(0, round(1000 * (at - zeros[each.run])))
                Xml.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time_ms)})
            aligned = Xml.SubElement(Xml.SubElement(tiers[name], "ANNOTATION"), "ALIGNABLE_ANNOTATION", {
                "ANNOTATION_ID": f"a{number}", "TIME_SLOT_REF1": slots[0], "TIME_SLOT_REF2": slots[1]})
            Xml.SubElement(aligned, "ANNOTATION_VALUE").text = printable(each.event.label)
    document.extend(tiers.values())
    Xml.SubElement(document, "LINGUISTIC_TYPE", {"LINGUISTIC_TYPE_ID": "action", "TIME_ALIGNABLE": "true",
                                                 "GRAPHIC_REFERENCES": "false"})
    Xml.indent(document)
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(document, encoding="unicode") + "\n")


WRITERS: dict[str, Writer] = {"table": write_table, "csv": write_csv, "jsonl": write_jsonl, "vtt": write_vtt,
                              "elan": write_elan}
OF_VIDEOS = {"vtt": ".vtt", "elan": ".eaf"}  # a document for one video, and what its name ends with


def find_events(paths: Sequence[str | Path], **chosen: Any) -> list[LoggedEvent]:
    """The events of several logs, which `stream.sinks.log.read_events` chooses in each; those of live sources in the
    order of their times. Raises UsageError, SinkError."""
    found = [each for path in paths for each in read_events(path, **chosen)]
    if len(paths) > 1:
        found.sort(key=lambda each: each.event.started_at if each.event.started_at >= UNIX_TIMES_S else 0.0)
    return found


def export(path: str | Path, out: TextIO, form: str = "table", view: View = DEFAULT, **chosen: Any) -> None:
    """Writes the events of a log to `out`: what `gatestream events FILE.db` does.
    form: "table", "csv", "jsonl", "vtt" or "elan"; the rest chooses events as `stream.sinks.log.read_events` does.
    Raises UsageError, and SinkError when the log cannot be read or `out` not written."""
    write_events(read_events(path, **chosen), out, form, view)


def write_events(found: Sequence[LoggedEvent], out: TextIO, form: str, view: View = DEFAULT) -> None:
    """Writes events in one of the formats of `export`. Raises UsageError, SinkError."""
    if form not in WRITERS:
        raise UsageError(f"format {form!r}", f"one of {', '.join(WRITERS)}", "choose one with --format")
    text = io.StringIO()
    WRITERS[form](found, text, view)
    write_text(out, text.getvalue(), getattr(out, "name", "the output"))


def write_each_run(found: Sequence[LoggedEvent], folder: Path, form: str, view: View = DEFAULT) -> list[Path]:
    """Writes one file for each run that has events, such as run-2.vtt, and returns their paths. Raises SinkError."""
    names = _Names(found)
    logs = list(dict.fromkeys(run.log for run in names.runs))
    paths = []
    for run in names.runs:
        log = f"{Path(run.log).stem}-{logs.index(run.log) + 1}-" if names.logs else ""
        paths.append(output_path(folder / f"{log}run-{run.id}{OF_VIDEOS[form]}"))
        with sink_errors("writing", paths[-1]), paths[-1].open("w", encoding="utf-8", newline="") as out:
            write_events([each for each in found if each.run == run], out, form, view)
    return paths


def write_runs(paths: Sequence[str | Path], out: TextIO, form: str = "table", run: int | None = None,
               view: View = DEFAULT) -> None:
    """Writes the runs of logs as a table, "csv" or "jsonl". Raises UsageError, SinkError."""
    found = [each for path in paths for each in (read_runs(path) if run is None else [find_run(path, run)])]
    text, several = io.StringIO(), len(paths) > 1
    rows = [{**_run_fields(each, several), "started_at": each.started, "origin": each.origin, "events": each.events}
            for each in found]
    if form == "jsonl":
        for row in rows:
            _write_json({"type": "run", **row}, text)
    elif form == "csv":
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow((*RUN_FIELDS[:len(RUN_FIELDS) - (not several)], "started_at", "origin", "events"))
        lines.writerows([format_time(value, view.times) if key in ("started_at", "origin") else value
                         for key, value in row.items()] for row in rows)
    elif form == "table":
        table = Table(*["log"] * several, Column("run", justify="right"), Column("started", no_wrap=True),
                      Column("source", overflow="fold"), "model", Column("digest", no_wrap=True),
                      Column("events", justify="right"), box=None, header_style="bold", pad_edge=False)
        for each in found:
            table.add_row(*[each.log] * several, str(each.id), _table_time(each.started, view.times), each.source,
                          each.model, each.digest[:8], str(each.events))
        _print(table, text, view)
    else:
        raise UsageError(f"runs as {form}", "table, csv or jsonl", "choose one with --format")
    write_text(out, text.getvalue(), getattr(out, "name", "the output"))


def write_segments(found: "Sequence[Segment]", out: TextIO, form: str = "table", view: View = DEFAULT) -> None:
    """Writes what was recorded continuously, as a table or "jsonl". Raises SinkError."""
    text = io.StringIO()
    if form == "jsonl":
        for each in found:
            _write_json({"type": "segment", "camera": each.camera, "started_at": round(each.started_at, 4),
                         "ended_at": round(each.ended_at, 4), "video": str(each.path)}, text)
    else:
        table = Table("camera", Column("recorded from", no_wrap=True), Column("to", no_wrap=True),
                      Column("video", overflow="fold"), box=None, header_style="bold", pad_edge=False)
        for each in found:
            table.add_row(each.camera, _table_time(each.started_at, view.times),
                          _table_time(each.ended_at, view.times, end=True), str(each.path))
        _print(table, text, view)
    write_text(out, text.getvalue(), getattr(out, "name", "the output"))


def _run_fields(run: Run, several_logs: bool) -> dict[str, Any]:
    values = run.id, run.source, run.model, run.digest, run.zone, run.log
    return dict(zip(RUN_FIELDS if several_logs else RUN_FIELDS[:-1], values, strict=False))


def _video_fields(each: LoggedEvent, view: View) -> dict[str, str | None]:
    """`clip`, the file name of an event's video; `video`, its path if it is there."""
    name, path = view.video(each)
    values = {"clip": name, "video": None if path is None else str(path)}
    return {key: values[key] for key in view.video_fields}


def _describe_run(run: Run, names: _Names, view: View) -> str:
    digest = f" {run.digest[:8]}" if run.digest else ""
    return f"{names.run(run)}: {run.source}, {run.model}{digest}, {_table_time(run.started, view.times)}"


def _find_zeros(found: Sequence[LoggedEvent]) -> Mapping[Run, float]:
    """The time from which each run's times count."""
    runs = {each.run for each in found}
    first = min((run.origin for run in runs if run.live), default=0.0)
    return {run: first if run.live else run.origin for run in runs}


def _print(table: Table, out: TextIO, view: View) -> None:
    Console(file=out, markup=False, highlight=False, width=view.columns or UNLIMITED).print(table)


def _write_json(row: Mapping[str, Any], out: TextIO) -> None:
    out.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")


def _table_time(at: float, times: TimeForm, end: bool = False) -> str:
    if at < UNIX_TIMES_S:
        return f"{at:.2f}"
    if times == "raw":
        return str(round(at, 4))
    return f"{show_clock(at, times):%H:%M:%S}" if end else format_time(at, times, "seconds", " ")


def _cue_text(text: str) -> str:
    return escape(" ".join(printable(text).split()), quote=False)


def _vtt_time(ms: int) -> str:
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
