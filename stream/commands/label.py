"""The command that labels an archive of videos."""

import logging
import time
from pathlib import Path
from typing import Annotated, TextIO

import typer

from engines.errors import UsageError
from stream.commands.options import EngineName, ModelName

commands = typer.Typer()
log = logging.getLogger("gatestream.label")
TELL_EVERY_S = 60.0  # where there is no terminal to draw progress on


class LabelProgress:
    """How many videos are done, and for how long it still takes."""

    def __init__(self, stderr: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress("videos", BarColumn(), MofNCompleteColumn(), TextColumn("time left"),
                             TimeRemainingColumn(), console=Console(file=stderr), transient=True,
                             redirect_stdout=False, redirect_stderr=False, disable=not stderr.isatty())
        self._task = self._bar.add_task("videos", total=None)
        self._earlier: int | None = None
        self.done = self.total = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._earlier is None:
            self._earlier, self._began, self._told = done, now, now
            self._bar.start()
            self._bar.reset(self._task, total=total, completed=done)
        self.done, self.total = done, total
        self._bar.update(self._task, completed=done)
        if self._bar.disable and now - self._told >= TELL_EVERY_S and done > self._earlier:
            left_s = (now - self._began) / (done - self._earlier) * (total - done)
            log.info("%d of %d videos labelled, about %d min left", done, total, max(1, round(left_s / 60)))
            self._told = now

    def close(self) -> None:
        self._bar.stop()


@commands.command()
def label(folder: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False,
                                                 help="Videos and recordings, in folders of any depth.")],
          out: Annotated[Path, typer.Option(metavar="NAME.parquet", help=(
              "A folder of Parquet files, one for each video; a row for each event."))],
          model: ModelName = "gesture", engine: EngineName = "auto",
          resume: Annotated[bool, typer.Option("--resume", help=(
              "Go on where an earlier run ended: only videos that are new, changed or failed."))] = False,
          overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again, without what is there.")] = False,
          workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Videos at a time.")] = None,
          address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster; default: "
                                                                               "this machine alone.")] = None) -> None:
    """Label an archive of videos with Ray, on one machine or many.

    Each video is written as it finishes; Ctrl-C keeps what is done.

    [bold]Examples[/bold]

      gatestream label archive --out events.parquet

      gatestream label archive --out events.parquet --resume"""
    from stream.archive.label import label as label_folder
    from stream.archive.parts import Existing
    from stream.archive.ray import silence_ray

    if resume and overwrite:
        raise UsageError("--resume and --overwrite", "one of them", "leave one out")
    existing: Existing = "resume" if resume else "overwrite" if overwrite else "refuse"
    with silence_ray() as stderr:
        progress = LabelProgress(stderr)
        try:
            done = label_folder(folder, out, model, engine, workers, address, existing, progress)
        except KeyboardInterrupt:
            if progress.total:
                log.warning("%s: %d of %d videos are labelled; go on with --resume", out, progress.done, progress.total)
            raise
        finally:
            progress.close()
    for path, why in done.failed.items():
        log.warning("%s", why if why.startswith(path) else f"{path}: {why}")
    earlier = f" ({done.earlier} of them earlier)" if done.earlier else ""
    print(f"{out}: {done.events} events in {done.recordings} recordings{earlier}, {len(done.failed)} of them "
          "unreadable")
