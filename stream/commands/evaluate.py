"""The command that measures a model."""

import re
import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.errors import UsageError, require
from stream.commands.model import check_model_path
from stream.commands.options import EngineName, Kind, MediaFolder, ModelArgument, in_panels

commands = typer.Typer()


def _parse_rate(text: str) -> float:
    """"6/h" or "6" as a number per hour."""
    if not re.fullmatch(r"\d+(\.\d+)?(/h)?", text):
        raise UsageError(f"--max-false-events {text}", "a number per hour, such as 6/h", "write it like that")
    return float(text.removesuffix("/h"))


@commands.command(cls=in_panels({
    "What to measure with": "kind media split fold group idle rendered_idle strict",
    "How": "engine rounds seed",
    "How well it learns": "teach lessons by hands",
    "Where the results go": "json report submission supervision",
    "Event thresholds": "max_false_events out",
}))
def evaluate(model: ModelArgument,
             dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the recordings.")],
             fold: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
                 "Only the clips of fold N; 0: all. Default: what the model's training left out."))] = None,
             split: Annotated[str | None, typer.Option(metavar="NAME", help=(
                 "Which split. Default: validation, else test, else all there is."))] = None,
             group: Annotated[list[str] | None, typer.Option(metavar="NAME", help=(
                 "Only the clips of this group, such as a person. May be given several times."))] = None,
             kind: Kind = "auto", media: MediaFolder = None,
             idle: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help=(
                 "Videos without gestures: evaluates streams and false events, too. Those the model's training left "
                 "out, if any. May be given several times."))] = None,
             rendered_idle: Annotated[float, typer.Option(min=0, max=600, metavar="MINUTES", help=(
                 "So much rendered footage without gestures besides; a new room every 5 minutes."))] = 0.0,
             rounds: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help=(
                 "Play the joined stream N times on end without a reset, and report each round's accuracy."))] = 1,
             json: Annotated[str, typer.Option(metavar="FILE|-", help="Where the numbers go; -: stdout.")] = "-",
             report: Annotated[Path | None, typer.Option(metavar="FILE.html", help=(
                 "Write all numbers and pictures as one page."))] = None,
             max_false_events: Annotated[float | None, typer.Option(metavar="N/h", parser=_parse_rate, help=(
                 "Find the event thresholds that keep to N false events per hour of the footage without gestures, and "
                 "write the model with them to --out."))] = None,
             out: Annotated[Path | None, typer.Option(metavar="FILE", help=(
                 "The model file to write, with the thresholds of --max-false-events."))] = None,
             submission: Annotated[Path | None, typer.Option(metavar="FILE.zip", help=(
                 "Write EPIC-KITCHENS-100's submission file."))] = None,
             supervision: Annotated[str | None, typer.Option(metavar="PT,TL,TD", help=(
                 "For the submission: levels 0 to 5 of pre-training, training labels and training data."))] = None,
             teach: Annotated[int | None, typer.Option(min=2, metavar="K", help=(
                 "Measure lessons instead: teach the model K recordings of each label afresh, test on the others."))]
             = None,
             lessons: Annotated[int, typer.Option(min=1, max=100, metavar="N", help=(
                 "With --teach: so many lessons, each on another split."))] = 3,
             by: Annotated[str | None, typer.Option(metavar="PATTERN", help=(
                 "With --teach: recordings in whose path this regular expression finds the same text (a person, a "
                 "place) are never on both sides of a split."))] = None,
             hands: Annotated[bool, typer.Option(help="With --teach: as gatestream teach has it.")] = True,
             strict: Annotated[bool, typer.Option("--strict", help="Stop at a clip that cannot be read.")] = False,
             engine: EngineName = "auto",
             seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, another stream.")] = 0) -> None:
    """Measure a model, through the path that live use takes. Gives JSON.

    [bold]Examples[/bold]

      gatestream evaluate gesture data/egogestar --fold 1 --idle data/idle --report fold1.html

      gatestream evaluate my.safetensors data/egogestar --idle data/idle --max-false-events 6/h --out calm.safetensors

      gatestream evaluate base my-actions --teach 5 --by "person[0-9]+"

      gatestream evaluate epic.safetensors data/epic --split test --submission test.zip --supervision 1,3,3"""
    from engines.datasets.media import list_videos
    from engines.model.file import load
    from stream.evaluation.evaluate import evaluate as run_evaluation
    from stream.sinks.base import output_path

    for folder in (dataset, *(idle or ())):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder", "a folder of recordings", "check the path")
    for path in (report, submission, None if json == "-" else Path(json)):
        if path is not None:
            output_path(path)
    require("sklearn", "matplotlib")
    if teach is not None:
        from stream.teaching.measure import measure_lessons
        measured = measure_lessons(model, dataset, teach, lessons, by=by, idle=idle or (), engine=engine, hands=hands,
                                   seed=seed, note=lambda text: print(f"gatestream: {text}", file=sys.stderr))
        _write(measured.as_json(), json)
        return
    if submission is not None and supervision is None:
        raise UsageError("--submission without --supervision", "the levels of supervision of your training",
                         "add --supervision PT,TL,TD, each 0 to 5")
    if max_false_events is not None:
        from stream.evaluation.thresholds import refuse_bundled, search_rules, write_rule
        if out is None:
            raise UsageError("--max-false-events without --out", "a file for the model with its thresholds",
                             "add --out FILE")
        check_model_path(out)
        refuse_bundled(out)
        if not (idle or rendered_idle):
            raise UsageError("--max-false-events without footage that shows no gesture", "some of it",
                             "add --idle FOLDER, and --rendered-idle MINUTES for more")
    elif out is not None:
        raise UsageError(f"--out {out} without --max-false-events", "thresholds to write into it",
                         "add --max-false-events N/h, or leave --out out; the numbers go to --json FILE")
    held_out, footage = load(model).contract.provenance.get("recipe", {}).get("idle_without", ()), list[Path]()
    for folder in idle or ():
        videos = list_videos([folder])
        footage += [video for video in videos if video.stem in held_out] or videos  # all where none was left out
    found = run_evaluation(model, dataset, fold=fold, idle=footage, engine=engine, seed=seed, split=split,
                           groups=group or (), rendered_idle_s=60 * rendered_idle, rounds=rounds, strict=strict,
                           kind=kind, media=media)
    figures: dict[str, Any] = found.as_json()
    if max_false_events is not None and out is not None:
        chosen = search_rules(found.stream, found.idles.values(), max_false_events)
        figures["thresholds"] = chosen.as_json()
        data = {"dataset": found.selection.name, "split": split, "groups": list(found.selection.groups),
                "idle": [path.stem for path in footage], "rendered_idle_minutes": rendered_idle, "seed": seed}
        write_rule(model, chosen, data, out)
    if submission is not None and supervision is not None:
        found.submit(submission, _parse_levels(supervision))
    if report is not None:
        from stream.evaluation.report import write_report
        write_report(report, found, figures)
    _write(figures, json)


def _write(figures: dict[str, Any], where: str) -> None:
    from engines.model.file import write_atomically

    text = dumps(figures, indent=2, allow_nan=False)
    if where == "-":
        print(text)
    else:
        write_atomically(Path(where), (text + "\n").encode())


def _parse_levels(text: str) -> list[int]:
    if not re.fullmatch(r"[0-5],[0-5],[0-5]", text):
        raise UsageError(f"--supervision {text}", "three levels from 0 to 5, such as 1,3,3", "write it like that")
    return [int(level) for level in text.split(",")]
