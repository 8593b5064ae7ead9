"""The command that teaches by showing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import require
from stream.commands.model import check_model_path
from stream.commands.options import EngineName, ModelArgument, in_panels

if TYPE_CHECKING:
    from rich.console import Console

    from stream.teaching.teach import TeachResult

MOST_CHECKS = 5  # recordings that are named

commands = typer.Typer()


@commands.command(cls=in_panels({
    "What to learn from": "idle fps strict",
    "What it learns": "head fresh hands by engine seed",
    "What is written": "out report name",
}))
def teach(model: ModelArgument,
          folder: Annotated[Path, typer.Argument(metavar="FOLDER", help=(
              "A folder for each label, with 3 to 10 recordings of it: video files or folders of images. A folder "
              "named background, idle or nothing holds footage without actions."))],
          out: Annotated[Path, typer.Option(metavar="FILE", help="The model file to write.")],
          idle: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="More footage without actions. May be "
              "given several times. Without any, the recordings' edges show what nothing looks like.")] = None,
          fresh: Annotated[bool, typer.Option("--fresh", help="Forget the model's labels; know the folder's only.")]
          = False,
          head: Annotated[str | None, typer.Option(metavar="NAME", help="Which head learns, if there are several.")]
          = None,
          report: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the report, too.")] = None,
          strict: Annotated[bool, typer.Option("--strict", help="Stop at a recording that cannot be read.")] = False,
          fps: Annotated[float | None, typer.Option(min=0.001, metavar="F", help="Rate of images.")] = None,
          hands: Annotated[bool, typer.Option(help="With base: look at hands, where gatestream\\[hands] is installed "
              "and they help. It costs a few milliseconds a frame.")] = True,
          by: Annotated[str | None, typer.Option(metavar="PATTERN", help="With base: recordings in whose path this "
              "regular expression finds the same text (a person, a place) are left out together.")] = None,
          name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the model. Default: as FILE.")] = None,
          seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, other parts left out.")] = 0,
          engine: EngineName = "auto") -> None:
    """Teach a model new labels from a few recordings of each. `base` learns any action and knows your labels only;
    `gesture` learns strokes of a hand in the air, and keeps the labels it has.

    [bold]Examples[/bold]

      gatestream teach base my-actions --out mine.safetensors

      gatestream teach gesture my-gestures --out mine.safetensors

      gatestream teach mine.safetensors more-gestures --out mine.safetensors --idle at-my-desk"""
    check_model_path(out)
    require("scipy")
    from rich.console import Console
    from rich.markup import escape

    from stream.sinks.base import output_path
    from stream.teaching.teach import teach_folder, write_report

    if report is not None:
        output_path(report)
    console = Console(highlight=False)
    with console.status("loading") as status:
        outcome = teach_folder(model, folder, out, idle=idle or (), head=head, fresh=fresh, strict=strict, fps=fps,
                               hands=hands, by=by, seed=seed, engine=engine, name=name,
                               note=lambda text: status.update(escape(text)))
    if report is not None:
        write_report(outcome, report)
    _print_result(outcome, console)
    console.print(f"wrote {out}", markup=False, soft_wrap=True)


def _print_result(outcome: TeachResult, console: Console) -> None:
    """Prints how well each label is recognised, and which recordings to check."""
    from rich.markup import escape
    from rich.table import Table

    report = outcome.report
    answers = list(dict.fromkeys([*report.recordings, *(answer for _, answer in report.confusion)]))
    table = Table("label", "recordings", "right when left out", "else taken for", box=None, pad_edge=False)
    for label in report.recordings:
        counts = {answer: report.confusion.get((label, answer), 0) for answer in answers}
        asked = sum(counts.values())
        wrong = ", ".join(f"{answer} ({n})" for answer, n in counts.items() if n and answer != label)
        table.add_row(escape(label), str(report.recordings[label]),
                      f"{counts[label]} of {asked}" if asked else "-", escape(wrong))
    console.print(table)
    lines = [f"right when left out: {report.accuracy:.0%}, give or take {report.standard_error:.0%}"] \
        if report.confusion else []
    lines += ["it looks at hands: gatestream bench has what that costs"] if outcome.contract.looks_for_hands else []
    for mistake in report.mistakes[:MOST_CHECKS]:
        gain = "" if not mistake.gain or mistake.gain <= 0 else "; the others are learnt better without it"
        lines.append(f"check {mistake.recording}: it is taken for {mistake.answer} ({mistake.probability:.2f}){gain}")
    if len(report.mistakes) > MOST_CHECKS:
        lines.append(f"and {len(report.mistakes) - MOST_CHECKS} more that are taken for something else")
    lines += [f"too alike: {a} and {b} ({share:.0%} taken for one another): film them from closer, or make them one "
              "label" for a, b, share in report.alike]
    lines += [f"left out {path}: {reason}" for path, reason in outcome.skipped]
    lines += [f"note: {warning}" for warning in outcome.warnings]
    lines += [f"would help: {text}" for text in outcome.advice]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
