"""Commands about datasets: what is in one, what is wrong with it, and one made from the simulated camera."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.datasets.kinds import ClassOrder
from engines.errors import UsageError
from stream.commands.options import Kind, MediaFolder, parse_size_hw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines.datasets.check import Report

commands = typer.Typer(no_args_is_help=True, help="Look at datasets, or render one.")

_EXAMPLES = 3  # of each kind of problem that are printed


@commands.command()
def check(dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the dataset.")],
          kind: Kind = "auto", media: MediaFolder = None,
          seconds: Annotated[float | None, typer.Option(min=0, metavar="S", help=(
              "Name segments shorter than this. Default: a clip of --model, if one is given."))] = None,
          model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME|FILE", help=(
              "The model the data is for: its clip's length."))] = None,
          order: Annotated[ClassOrder, typer.Option(help=(
              "Numbers of Something-Something V1's and Jester's classes."))] = "sorted",
          frame_rate: Annotated[float | None, typer.Option(min=0.1, metavar="F", help=(
              "Frames per second of folders of frames whose dataset does not say. Default: 30."))] = None,
          deep: Annotated[bool, typer.Option("--deep", help=(
              "Decode every frame, not the last ones and a few places: finds damage in the middle, pictures that stand "
              "still or are of one colour for a while, holes, and rates that are not as stated."))] = False,
          strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where anything is wrong.")] = False,
          json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """List what is missing, short, unreadable or inconsistent in a dataset, before hours are spent on it.

    [bold]Examples[/bold]

      gatestream data check data/egogestar --model gesture

      gatestream data check epic-kitchens-100-annotations --media /data/EPIC-KITCHENS --strict"""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engines.datasets import open_dataset
    from engines.datasets.check import check as examine
    from engines.decoding.silence import silence_opencv

    if seconds is None and model is not None:
        import engines
        contract = engines.load(model).contract
        seconds = contract.clip_frames / contract.frame_rate
    silence_opencv()
    data = open_dataset(dataset, kind, media=media, order=order, rate=frame_rate)
    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at recordings", total=None)
        report = examine(data, seconds or 0.0, deep, lambda done, all_: bar.update(task, completed=done, total=all_))
    print(dumps(report.as_json(), indent=2) if json else "\n".join(_format_lines(report)))
    if strict and report.problems:
        raise typer.Exit(1)


def _format_lines(report: Report) -> Iterator[str]:
    dataset = report.dataset
    yield f"{dataset.name}, recognised by {dataset.found}"
    for split, segments in dataset.splits.items():
        heads = [f"{sum(map(bool, labels.values()))} of {len(labels)} {head} classes "
                 f"({min(labels.values())} to {max(labels.values())} each)"
                 for head, labels in report.counts[split].items()]
        labelled = any(segment.labels for segment in segments)
        yield f"  {split}: {len(segments)} segments, {', '.join(heads) if labelled else 'no labels'}"
    yield (f"  {report.readable} of {report.recordings} recordings readable, {report.seconds / 3600:.2f} hours; "
           f"{len(report.unusable)} segments cannot be used")
    if not report.problems:
        yield "nothing wrong"
    for kind, problems in report.groups().items():
        yield f"{kind}: {len(problems)}"
        for problem in problems[:_EXAMPLES]:
            yield f"    {problem.where}{': ' if problem.detail else ''}{problem.detail}"
        if len(problems) > _EXAMPLES:
            yield f"    ... and {len(problems) - _EXAMPLES} more"


@commands.command()
def render(out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist or be empty.")],
           hours: Annotated[float | None, typer.Option(min=0, metavar="H", help="How much video.")] = None,
           clips: Annotated[int | None, typer.Option(min=2, metavar="N", help=(
               "Instead of --hours: at least so many segments."))] = None,
           seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, other videos.")] = 0,
           size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Size of the videos.")] = "456x256",
           rate: Annotated[float, typer.Option(min=1, max=120, metavar="F", help="Frames per second.")] = 30.0,
           video_seconds: Annotated[float, typer.Option(min=5, metavar="S", help="Length of one video.")] = 60.0
           ) -> None:
    """Write a dataset from the simulated camera in EPIC-KITCHENS-100's layout, with true verbs and nouns.

    [bold]Examples[/bold]

      gatestream data render rendered --hours 1

      gatestream data check rendered"""
    from rich.console import Console
    from rich.progress import Progress

    from engines.datasets.render import render as write

    if (hours is None) == (clips is None):
        raise UsageError("both or none of --hours and --clips", "one of them", "say how much to render")
    size_hw = parse_size_hw(size)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rendering", total=1.0)
        written = write(out, hours=hours, clips=clips, seed=seed, size_hw=size_hw, rate=rate,
                     video_s=video_seconds, progress=lambda share: bar.update(task, completed=share))
    print(f"wrote {out}: {written.videos} videos, {written.seconds / 3600:.2f} hours, {written.segments} segments")
