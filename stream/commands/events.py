"""The command about the log of events."""

import sys
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from engines.errors import UsageError
from stream.commands.output import utf8_stdout

commands = typer.Typer()


def _parse_time(text: str) -> float:
    """Seconds, or a date and time of this machine's zone."""
    for parse in (float, lambda time: datetime.fromisoformat(time).timestamp()):
        with suppress(ValueError):
            return parse(text)
    raise typer.BadParameter(f"{text!r} is neither seconds nor a time such as 2026-01-31T14:05")


@commands.command()
def events(log: Annotated[Path, typer.Argument(metavar="FILE.db", help="A log of gatestream run or serve.")],
           form: Annotated[Literal["table", "csv", "jsonl", "vtt", "elan", "epic", "ssv2"], typer.Option(
               "--format", help="What to write; vtt: subtitles for a saved video, elan: annotations of one; epic, "
                                "ssv2: a folder of a public dataset's annotation files, to train from.")] = "table",
           out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to, instead of stdout.")] = None,
           label: Annotated[str | None, typer.Option(metavar="NAME", help="Only this label.")] = None,
           camera: Annotated[str | None, typer.Option(metavar="NAME", help="Only this camera.")] = None,
           head: Annotated[str | None, typer.Option(metavar="NAME", help="Only this head of the model.")] = None,
           since: Annotated[float | None, typer.Option(metavar="TIME", parser=_parse_time, help=(
               "Only what ends at or after this: seconds, or 2026-01-31T14:05."))] = None,
           until: Annotated[float | None, typer.Option(metavar="TIME", parser=_parse_time,
                                                       help="Only what starts by then.")] = None,
           min_score: Annotated[float | None, typer.Option(min=0, max=1, metavar="P",
                                                           help="Only what scored at least this.")] = None,
           with_unknown: Annotated[bool, typer.Option("--with-unknown", help=(
               "In a dataset, events without a certain label become a class of their own."))] = False,
           run: Annotated[int | None, typer.Option(metavar="N", help="Only run number N; -1: the latest.")] = None,
           ) -> None:
    """List, filter and export logged events.

    [bold]Examples[/bold]

      gatestream events events.db --run -1

      gatestream events events.db --label left --format csv --out left.csv

      gatestream events events.db --format ssv2 --out clips      for the videos that serve keeps there"""
    from stream.events import UNKNOWN
    from stream.sinks.base import output_path, sink_errors
    from stream.sinks.export import export
    from stream.sinks.export_dataset import write_epic, write_something
    from stream.sinks.log import read_events, read_runs

    chosen: dict[str, Any] = {"label": label, "camera": camera, "head": head, "since": since, "until": until,
                              "min_score": min_score, "run": run}
    if form in ("epic", "ssv2"):
        if out is None:
            raise UsageError(f"--format {form} without a folder", "--out FOLDER", "name one")
        found = [each for each in read_events(log, **chosen) if with_unknown or each.event.label != UNKNOWN]
        names = write_epic(out, found, read_runs(log)) if form == "epic" else write_something(out, found)
        print(f"{out}: {len(found)} events of {len(names)} videos ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")
        return
    with ExitStack() as stack:
        target: TextIO = sys.stdout
        if out is None and form != "table":
            target = stack.enter_context(utf8_stdout())
        elif out is not None:
            with sink_errors("opening", out):
                target = stack.enter_context(output_path(out).open("w", encoding="utf-8", newline=""))
        export(log, target, form, **chosen)
