"""The command that trains, and how it shows where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engines.errors import UsageError
from stream.commands.model import check_model_path
from stream.commands.options import Kind, in_panels, parse_size_hw

if TYPE_CHECKING:
    from engines.datasets import Dataset

Precisions = Literal["auto", "f32", "bf16", "f16"]

commands = typer.Typer()


@commands.command(cls=in_panels({
    "What to train": "out name recipe stage",
    "What to learn from": "kind background idle idle_without no_rendered rendered_only workers strict",
    "What to leave out and validate on": "without_fold without_label calibration_from validate_every patience",
    "Weights to start from": "init teacher rule keep_interleave",
    "The network": "arch causal readout_width past_shift segments size rate",
    "How long, and how": "iterations trimmed_first trimmed epochs batch lr freeze precision seed",
    "Clip fusion (--stage fusion)": "windows window_clips",
}))
def train(dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the recordings.")],
          out: Annotated[Path, typer.Option(metavar="FILE", help="The model file to write.")],
          init: Annotated[str, typer.Option(metavar="imagenet|FILE", help="Weights to start from: imagenet is "
              "downloaded once; FILE: a backbone's weights, a model file, or an official checkpoint.")] = "imagenet",
          recipe: Annotated[Literal["gatestream", "official"] | None, typer.Option(help=(
              "gatestream: endless streams, for live use; official: clips, as the papers trained. Default: official "
              "with a teacher."))] = None,
          stage: Annotated[Literal["clip", "fusion"], typer.Option(help=(
              "clip: the network; fusion: the clip fusion of a finished model, FILE to start from."))] = "clip",
          arch: Annotated[str | None, typer.Option(metavar="NAME", help=(
              "gsf-mobilenetv2, gsm-resnet50, ... Default: as FILE to start from, else the recipe's own."))] = None,
          causal: Annotated[bool | None, typer.Option("--causal/--no-causal", help=(
              "Causal for live streams, or bidirectional. Default: as the recipe."))] = None,
          teacher: Annotated[str | None, typer.Option(metavar="FILE", help=(
              "Learn from this bidirectional network's scores, too: a model file or official checkpoint."))] = None,
          rule: Annotated[str | None, typer.Option(metavar="NAME", help=(
              "How a bidirectional FILE to start from becomes causal: dropped-one, moved-two, ..."))] = None,
          readout_width: Annotated[int | None, typer.Option(min=0, max=4096, metavar="N", help=(
              "Width of a causal network's recurrent read-out, 0 for none (gatestream). Default: 128."))] = None,
          past_shift: Annotated[int | None, typer.Option(min=0, max=2, metavar="N", help=(
              "How many frames back causal modules find the channels that look ahead in the published form "
              "(gatestream). Default: as usual for the module."))] = None,
          keep_interleave: Annotated[bool, typer.Option("--keep-interleave", help=(
              "Start gates as published, which mixes up the channels of ImageNet's weights (gatestream)."))] = False,
          kind: Kind = "auto",
          background: Annotated[str | None, typer.Option(metavar="LABEL", help=(
              'The label that means "nothing", such as "No gesture". Default: as the dataset says.'))] = None,
          idle: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="Videos without actions. May be "
                                                                                 "given several times.")] = None,
          idle_without: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave out this video without "
                                                                                      "actions. Likewise.")] = None,
          calibration_from: Annotated[list[Path] | None, typer.Option(metavar="FILE", help=(
              "Take the calibration of this model, trained with something left out. Likewise: their mean."))] = None,
          name: Annotated[str | None, typer.Option(metavar="NAME", help=(
              "Name of the model. Default: as FILE to write."))] = None,
          without_fold: Annotated[int, typer.Option(min=0, metavar="N", help="Leave out fold N; 0: none.")] = 0,
          without_label: Annotated[list[str] | None, typer.Option(metavar="NAME", help=(
              "Never see this label, and do not have it. Likewise."))] = None,
          no_rendered: Annotated[bool, typer.Option("--no-rendered", help=(
              "Show no rendered hands. Else some draw the labels that are called as their gestures are, and others "
              "do nothing labelled, where there is a label for that (gatestream)."))] = False,
          rendered_only: Annotated[bool, typer.Option("--rendered-only", help="Learn labels from rendered hands only; "
              "of the recordings, places are used and no label (gatestream).")] = False,
          trimmed: Annotated[int, typer.Option(min=0, max=256, metavar="N", help=(
              "Learn from whole actions, N frames spread evenly over each, not from streams: to compare networks, not "
              "for live use (gatestream). 0: streams."))] = 0,
          trimmed_first: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
              "Steps on whole actions and moments of idle time, at three times the learning rate, before those on "
              "streams (gatestream). Default: a third as many; 0 from a FILE that is a model."))] = None,
          iterations: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of training (gatestream).")] = 3600,
          window_clips: Annotated[int, typer.Option(min=2, max=4096, metavar="N", help=(
              "Clips in the window (stage fusion)."))] = 10,
          windows: Annotated[int, typer.Option(min=30, metavar="N", help=(
              "Windows to learn from (stage fusion)."))] = 3000,
          epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes through the data (official).")] = 60,
          batch: Annotated[int | None, typer.Option(min=1, metavar="N", help=(
              "Streams, whole gestures or clips in a batch, over all processes. Default: as the recipe."))] = None,
          segments: Annotated[int, typer.Option(min=1, metavar="N", help="Frames of a clip (official).")] = 8,
          size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help=(
              "The network's input. Default: as FILE to start from, else as the recipe."))] = None,
          rate: Annotated[float | None, typer.Option(min=0.1, metavar="R", help=(
              "Frames a second that the network sees (gatestream). Default: 5."))] = None,
          precision: Annotated[Precisions, typer.Option(help="Of the arithmetic. auto: bf16 where it is fast.")]
          = "auto",
          validate_every: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
              "Validate on what is left out every N steps (gatestream) or epochs (official), and save what was best "
              "there; 0: never. Default: as the recipe."))] = None,
          patience: Annotated[int, typer.Option(min=0, metavar="N", help=(
              "Stop after so many validations without a new best; 0: never."))] = 0,
          workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that load data.")] = 1,
          strict: Annotated[bool, typer.Option("--strict", help="Stop at a clip that cannot be read.")] = False,
          lr: Annotated[float | None, typer.Option(min=1e-8, max=1.0, metavar="R", help="Learning rate of the backbone "
              "(gatestream); what is new learns at rates of its own. Default: 1e-4.")] = None,
          freeze: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
              "First layers of MobileNetV2 that stay as they are (gatestream). Default: 7."))] = None,
          seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, another model.")] = 0) -> None:
    """Train a model.

    What is left out calibrates its scores. Progress, curves and the checkpoint are in a folder beside the model file: a
    run that was killed continues when it is started again. For several GPUs start it with
    `torchrun --nproc-per-node N -m stream train ...`.

    [bold]Examples[/bold]

      gatestream train data/egogestar --out gesture.safetensors

      gatestream train epic-kitchens-100 --recipe official --arch gsf-resnet50 --out epic.safetensors

      gatestream train something-v1 --init official.pth.tar --causal --teacher official.pth.tar --out live.safetensors

      gatestream train data/egogestar --stage fusion --init gesture.safetensors --idle data/idle --out fused.safetensors
    """
    if not dataset.is_dir():
        raise UsageError(f"{dataset}: no such folder", "a folder of recordings", "check the path")
    check_model_path(out)
    from engines.datasets import open_dataset
    from engines.datasets.selection import with_background

    data = with_background(open_dataset(dataset, kind), background)
    if stage == "fusion":
        _train_fusion(data, out, init, idle or [], window_clips, windows, seed, strict)
        return
    from engines.training.initialisation import whole_config
    from engines.training.official_recipe import OfficialRecipe
    from engines.training.official_recipe import train as train_official
    from engines.training.train import Recipe, resolve_defaults
    from engines.training.train import train as train_gatestream
    from stream.teaching.teach import file_name

    official = recipe == "official" or (recipe is None and teacher is not None)
    if teacher is not None and not official:
        raise UsageError("a teacher for the recipe gatestream", "the recipe official with it", "use --recipe official")
    alone = {"idle": idle or idle_without, "without-label": without_label, "rendered-only": rendered_only,
             "no-rendered": no_rendered, "trimmed": trimmed, "trimmed-first": trimmed_first}
    if official and any(alone.values()):
        option = next(name for name, value in alone.items() if value)
        raise UsageError(f"--{option} with the recipe official", "the recipe gatestream with it", "leave it out")
    size_hw = None if size is None else parse_size_hw(size)
    start = whole_config(init)
    if start is not None and size_hw not in (None, start.input_size_hw):
        raise UsageError(f"--size {size} from {init}", "the size it was built for, "
                         "{1}x{0}".format(*start.input_size_hw or ()), "leave it out")
    arch = arch or (None if start is None else start.architecture)
    named = name or file_name(out)
    if official:
        of_clips = OfficialRecipe(
            out, init=init, causal=bool(causal), segments=segments, epochs=epochs, batch=batch, precision=precision,
            patience=patience, teacher=teacher, seed=seed, workers=workers, name=named, without_fold=without_fold,
            input_size_hw=size_hw, strict=strict, architecture=arch or OfficialRecipe.architecture,
            rule=rule or OfficialRecipe.rule,
            validate_epochs=OfficialRecipe.validate_epochs if validate_every is None else validate_every)
        with _show_progress() as shown:
            train_official(of_clips, data, **shown)
    else:
        live = causal is not False
        if readout_width is None:
            readout_width = Recipe.readout_width if live else 0
        now, window = _mean_temperatures(calibration_from or [])
        of_streams = resolve_defaults(Recipe(
            out=out, init=init, idle=tuple(idle or ()), name=named, without_fold=without_fold,
            idle_without=tuple(idle_without or ()), without_labels=tuple(without_label or ()), iterations=iterations,
            seed=seed, causal=live, readout_width=readout_width, past_shift=past_shift, transparent=not keep_interleave,
            rendered=not no_rendered, rendered_only=rendered_only, trimmed=trimmed, trimmed_first=trimmed_first,
            strict=strict, temperature=now, window_temperature=window, architecture=arch or Recipe.architecture,
            frozen_layers=Recipe.frozen_layers if freeze is None else freeze, backbone_lr=lr or Recipe.backbone_lr,
            rows=batch or Recipe.rows, precision=precision, validate_every=validate_every or 0, patience=patience,
            workers=workers, frame_rate=rate or Recipe.frame_rate, rule=rule or Recipe.rule,
            input_size_hw=size_hw or Recipe.input_size_hw))
        with _show_progress((of_streams.trimmed_first or 0) + iterations) as shown:
            train_gatestream(of_streams, data, **shown)
    if _is_first():
        print(f"wrote {out}")


def _train_fusion(data: Dataset, out: Path, init: str, idle: list[Path], window_clips: int, windows: int, seed: int,
                  strict: bool) -> None:
    from engines.training.fusion_stage import FusionRecipe
    from engines.training.fusion_stage import train as run_training

    if init == "imagenet":
        raise UsageError("--stage fusion from imagenet", "a finished model to start from", "give it with --init FILE")
    recipe = FusionRecipe(out, init, tuple(idle), window_clips=window_clips, windows=windows, seed=seed, strict=strict)
    for name, share in run_training(recipe, data, partial(print, flush=True)).items():
        print(f"{name:14} {share:.3f}")
    print(f"wrote {out}")


def _is_first() -> bool:
    """Of the processes that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def _mean_temperatures(files: list[Path]) -> tuple[float, float]:
    """Mean temperatures of the first head of some models, for `now` and `window`; 1 without models."""
    from statistics import geometric_mean

    from engines.model.file import load

    contracts = [load(file).contract for file in files]
    means = [geometric_mean([next(iter(table.values()), 1.0) for table in tables] or [1.0]) for tables in
             ([c.temperature for c in contracts], [c.window_temperature for c in contracts])]
    return round(means[0], 3), round(means[1], 3)


@contextmanager
def _show_progress(iterations: int | None = None) -> Iterator[dict[str, Any]]:
    """What `train` shows its progress with: a bar on a terminal, a line now and then in a log."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  disable=not _is_first()) as bar:
        task, report = bar.add_task("starting", total=iterations), partial(bar.console.print, markup=False)

        def progress(iteration: int, figures: dict[str, float]) -> None:
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            bar.update(task, completed=iteration, description=text)
            if not bar.console.is_terminal and iteration % 100 == 0:
                report(f"{iteration}{f' of {iterations}' if iterations else ''}  {text}")

        yield {"report": report, "progress": progress}
