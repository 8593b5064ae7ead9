"""The command about the log of events."""

import logging
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from engines.errors import UsageError
from stream.commands.options import in_panels
from stream.commands.output import utf8_stdout

if TYPE_CHECKING:
    from stream.sinks.log import LoggedEvent
    from stream.sinks.segments import Segment

commands = typer.Typer()
log = logging.getLogger("gatestream.events")
USUAL = Path("events.db")  # what the guides call a log


@commands.command(cls=in_panels({
    "Which events": "label camera head since until min_score run",
    "What is shown": "form out runs videos utc raw",
    "Datasets": "with_unknown keep_unpaired",
    "Delivery": "undelivered retry",
    "Deleting": "compact keep_days keep_mb",
}))
def events(logs: Annotated[list[Path] | None, typer.Argument(metavar="FILE.db", show_default=False, help=(
               "Logs of gatestream run or serve. Default: events.db, if it is there."))] = None,
           form: Annotated[Literal["table", "csv", "jsonl", "vtt", "elan", "epic", "ssv2"], typer.Option(
               "--format", help="What to write; vtt: subtitles for a saved video, elan: annotations of one; epic, "
                                "ssv2: a folder of a public dataset's annotation files, to train from.")] = "table",
           out: Annotated[Path | None, typer.Option(metavar="FILE", help=(
               "Where to, instead of stdout; with vtt and elan a folder, too: a file for each run."))] = None,
           label: Annotated[str | None, typer.Option(metavar="NAME", help="Only this label.")] = None,
           camera: Annotated[str | None, typer.Option(metavar="NAME", help="Only this camera.")] = None,
           head: Annotated[str | None, typer.Option(metavar="NAME", help="Only this head of the model.")] = None,
           since: Annotated[str | None, typer.Option(metavar="TIME", help=(
               "Only what ends at or after this: 14:02 (today), 2026-01-31T14:02, 2026-01-31, 10m or 2h (ago); "
               "seconds for events of files."))] = None,
           until: Annotated[str | None, typer.Option(metavar="TIME", help="Only what starts by then.")] = None,
           min_score: Annotated[float | None, typer.Option(min=0, max=1, metavar="P",
                                                           help="Only what scored at least this.")] = None,
           run: Annotated[int | None, typer.Option(metavar="N", help="Only run number N; -1: the latest.")] = None,
           runs: Annotated[bool, typer.Option("--runs", help="List the runs instead of their events.")] = False,
           videos: Annotated[bool, typer.Option("--videos", help=(
               "Ids and names of the videos that serve makes of events; with their folder behind it: whether they are "
               "there, and what was recorded continuously at the time asked for."))] = False,
           utc: Annotated[bool, typer.Option("--utc", help="Times are UTC, shown and asked for, not local.")] = False,
           raw: Annotated[bool, typer.Option("--raw", help="Times as they are logged: seconds since 1970.")] = False,
           with_unknown: Annotated[bool, typer.Option("--with-unknown", help=(
               "In a dataset, events without a certain label become a class of their own."))] = False,
           keep_unpaired: Annotated[bool, typer.Option("--keep-unpaired", help=(
               "With epic, nouns that no verb overlaps get the verb 'unknown'."))] = False,
           undelivered: Annotated[bool, typer.Option("--undelivered", help=(
               "List the events and gaps that a service's sinks have not got: with the reason where one was refused."
               ))] = False,
           retry: Annotated[bool, typer.Option("--retry", help=(
               "Have what was refused sent once more, by the service that runs or the next one."))] = False,
           compact: Annotated[bool, typer.Option("--compact", help=(
               "Delete the oldest events and gaps that no sink waits for, and give back disk."))] = False,
           keep_days: Annotated[float | None, typer.Option(min=0, metavar="D", help=(
               "With --compact: delete what is older."))] = None,
           keep_mb: Annotated[float | None, typer.Option(min=0, metavar="MB", help=(
               "With --compact: delete the oldest until the log is no larger."))] = None) -> None:
    """List, filter and export logged events.

    [bold]Examples[/bold]

      gatestream events events.db --run -1

      gatestream events events.db --since 14:02 --until 14:05 --camera cell-3 --videos clips

      gatestream events events.db --label left --format csv --out left.csv

      gatestream events events.db --format ssv2 --out clips      for the videos that serve keeps there

      gatestream events events.db --undelivered

      gatestream events events.db --compact --keep-days 30"""
    from stream.sinks.export import OF_VIDEOS, View, write_each_run, write_events, write_runs, write_segments
    from stream.sinks.retention import compact as compact_log

    folders = [path for path in logs or () if videos and path.is_dir()]
    paths = [path for path in logs or () if path not in folders] or [USUAL]
    if logs is not None and len(folders) > 1:
        raise UsageError(f"--videos with {len(folders)} folders", "one folder of videos", "leave the others out")
    if paths == [USUAL] and not USUAL.is_file() and USUAL not in (logs or ()):
        raise UsageError("no log", "a FILE.db written with --log, or events.db in this folder", "name one")
    if utc and raw:
        raise UsageError("--utc and --raw", "one of them", "leave one out")
    if not compact and (keep_days is not None or keep_mb is not None):
        raise UsageError("--keep-days or --keep-mb alone", "--compact with it", "add --compact")
    if compact:
        for path in paths:
            done = compact_log(path, keep_days, keep_mb)
            print(f"{path}: {_count(done.events, 'event')} and {_count(done.gaps, 'gap')} deleted, "
                  f"{done.freed_bytes / 1e6:.1f} MB given back")
            if done.awaited:
                log.warning("%s: %s kept though old, for sinks that have not got them", path,
                            _count(done.awaited, "record"))
        return
    if undelivered or retry:
        for path in paths:
            _show_undelivered(path, retry)
        return
    chosen = {"label": label, "camera": camera, "head": head, "min_score": min_score}
    on_terminal = out is None and sys.stdout.isatty()
    view = View("raw" if raw else "utc" if utc else "local", videos, next(iter(folders), None), _columns(on_terminal))
    if runs and [*filter(None, (*chosen.values(), since, until))]:
        raise UsageError("--runs with a choice of events", "the runs of a log", "leave one of them out")
    segments = [] if runs else _find_segments(view.folder, since, until, utc, camera)
    found = [] if runs else _find(paths, {**chosen, "run": run}, since, until, utc, recorded=bool(segments))
    if form in ("epic", "ssv2") and not runs:
        _write_dataset(found, form, out, with_unknown, keep_unpaired)
    elif form in OF_VIDEOS and out is not None and out.is_dir() and not runs:
        print(f"{out}: {_count(len(write_each_run(found, out, form, view)), 'file')}")
    else:
        several = len({each.run for each in found})
        if form in OF_VIDEOS and several > 1:
            log.warning("%d runs in one document; --run N writes one of them, --out FOLDER a file for each", several)
        with ExitStack() as stack:
            target = _open(out, form, stack)
            if runs:
                write_runs(paths, target, form, run, view)
            else:
                write_events(found, target, form, view)
                if segments and form in ("table", "jsonl"):
                    write_segments(segments, target, form, view)
    if view.folder is not None and not runs:
        there = sum(view.video(each)[1] is not None for each in found)
        log.info("videos in %s: %d of %d", view.folder, there, len(found))
    if segments and form not in ("table", "jsonl"):
        log.info("%s %s recorded at that time, which a table and jsonl list", _count(len(segments), "segment"),
                 "was" if len(segments) == 1 else "were")


def _parse_bounds(since: str | None, until: str | None, utc: bool) -> dict[str, float | None]:
    from stream.sinks.times import parse_time

    now = time.time()
    return {"since": None if since is None else parse_time(since, now, utc),
            "until": None if until is None else parse_time(until, now, utc, end=True)}


def _find_segments(folder: Path | None, since: str | None, until: str | None, utc: bool,
                   camera: str | None) -> "list[Segment]":
    """What was recorded continuously at the time that is asked for."""
    from stream.sinks.log import UNIX_TIMES_S

    bounds = _parse_bounds(since, until, utc)
    if folder is None or max(at or 0.0 for at in bounds.values()) < UNIX_TIMES_S:
        return []
    from stream.sinks.segments import find_segments  # and PyAV with it

    return find_segments(folder, bounds["since"] or 0.0, bounds["until"] or math.inf, camera)


def _find(paths: list[Path], chosen: dict[str, Any], since: str | None, until: str | None, utc: bool,
          recorded: bool) -> "list[LoggedEvent]":
    """The events that are asked for. Raises UsageError where there can be none: a name that no event has, or a time of
    another kind than theirs. recorded: the camera is known from what was recorded."""
    from stream.sinks.export import find_events
    from stream.sinks.log import UNIX_TIMES_S, check_names

    check_names(paths, **{name: chosen[name] for name in ("camera", "label", "head")[recorded:]})
    bounds = _parse_bounds(since, until, utc)
    given = [at for at in bounds.values() if at is not None]
    if not given:
        return find_events(paths, **chosen)
    live = given[0] >= UNIX_TIMES_S
    if (given[-1] >= UNIX_TIMES_S) != live:
        raise UsageError(f"--since {since} and --until {until}", "two times of day, or two of a file's seconds",
                         "write both in one way")
    if given[0] > given[-1]:
        raise UsageError(f"--since {since}, which is after --until {until}", "a time before it", "swap them")
    found = find_events(paths, **chosen, **bounds, live=live)
    others = len(find_events(paths, **chosen, live=not live))
    if others and not found and not find_events(paths, **chosen, live=live):
        text = since if since is not None else until
        raise UsageError(*((f"{text} for events of files, which have no time of day", "seconds from a file's start",
                            "write seconds, such as --since 12.5") if live else (
                            f"{text} s for events of live sources", "a time of day",
                            "write one, such as --since 14:02, or a time ago, such as --since 10m")))
    if others:
        log.warning("%s of %s left out, which %s", _count(others, "event"), "files" if live else "live sources",
                    "have no time of day" if live else "have times of day")
    return found


def _show_undelivered(path: Path, retry: bool) -> None:
    from stream.sinks.deliveries import read_undelivered, retry_refused

    if retry:
        print(f"{path}: {_count(retry_refused(path), 'refused record')} will be sent once more")
        return
    for sink, record, reason, _ in read_undelivered(path):
        content = record.as_json()
        what = f"{content.get('id') or content['type']} {content.get('label') or content['action']}"
        print(f"{sink}: {record.camera}: {what}: {'waits' if reason is None else f'refused: {reason}'}")


def _write_dataset(found: "list[LoggedEvent]", form: str, out: Path | None, with_unknown: bool,
                   keep_unpaired: bool) -> None:
    from stream.events import UNKNOWN
    from stream.sinks.export_dataset import find_narrations, write_epic, write_something

    if out is None:
        raise UsageError(f"--format {form} without a folder", "--out FOLDER", "name one")
    certain = [each for each in found if with_unknown or each.event.label != UNKNOWN]
    left_out = [(len(found) - len(certain), "event{} without a certain label", "--with-unknown")]
    if form == "epic":
        narrations, unpaired = find_narrations(certain, keep_unpaired)
        left_out.append((unpaired, "noun{} that no verb overlaps most", "--keep-unpaired"))
    told = [f"{count} {what.format('s' * (count != 1))} left out; {option} keeps {'them' if count != 1 else 'it'}"
            for count, what, option in left_out if count]
    if not (narrations if form == "epic" else certain):
        raise UsageError(", ".join(["nothing for a dataset", *told]), "events that were recognised",
                         "ask for others, or keep what is left out")
    for line in told:
        log.warning("%s", line)
    if form == "epic":
        names, wrote = write_epic(out, narrations), _count(len(narrations), "narration")
    else:
        names, wrote = write_something(out, certain), _count(len(certain), "event")
    print(f"{out}: {wrote} of {_count(len(names), 'video')} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")


def _open(out: Path | None, form: str, stack: ExitStack) -> TextIO:
    from stream.sinks.base import output_path, sink_errors

    if out is None:
        return sys.stdout if form == "table" else stack.enter_context(utf8_stdout())
    with sink_errors("opening", out):
        return stack.enter_context(output_path(out).open("w", encoding="utf-8", newline=""))


def _columns(on_terminal: bool) -> int | None:
    import shutil
    return shutil.get_terminal_size().columns if on_terminal else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
