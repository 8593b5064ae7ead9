"""The command that trains, and how it shows where it is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engines.errors import EngineError, UsageError
from stream.commands.model import check_model_path
from stream.commands.options import Kind, in_panels, parse_size_hw

if TYPE_CHECKING:
    from engines.datasets import Dataset
    from engines.networks.config import NetworkConfig

Precisions = Literal["auto", "f32", "bf16", "f16"]

_ALL = "dataset out name kind init stage seed strict "
_BOTH = _ALL + ("recipe background arch causal rule without_fold batch size lr precision validate_every patience "
                "workers ")
HONOURED = {  # parameters of `train` by recipe: any other is refused, and the help says so
    "gatestream": _BOTH + "multi_label readout_width past_shift keep_interleave idle idle_without calibration_from "
                          "without_label no_rendered rendered_only trimmed trimmed_first iterations rate freeze",
    "official": _BOTH + "teacher epochs segments",
    "fusion": _ALL + "idle windows window_clips",
}

commands = typer.Typer()


@commands.command(cls=in_panels({
    "What to train": "out name recipe stage",
    "What to learn from": "kind background multi_label idle idle_without no_rendered rendered_only workers strict",
    "What to leave out and validate on": "without_fold without_label calibration_from validate_every patience",
    "Weights to start from": "init teacher rule keep_interleave",
    "The network": "arch causal readout_width past_shift segments size rate",
    "How long, and how": "iterations trimmed_first trimmed epochs batch lr freeze precision seed",
    "Clip fusion (--stage fusion)": "windows window_clips",
}, HONOURED))
def train(context: typer.Context,
          dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the recordings.")],
          out: Annotated[Path, typer.Option(metavar="FILE", help="The model file to write.")],
          init: Annotated[str, typer.Option(metavar="imagenet|NAME|FILE", help="Weights to start from: imagenet is "
              "downloaded once; NAME: a bundled model; FILE: a backbone's weights, a model file, or an official "
              "checkpoint.")] = "imagenet",
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
              "Width of a causal network's recurrent read-out, 0 for none. Default: 128."))] = None,
          past_shift: Annotated[int | None, typer.Option(min=0, max=2, metavar="N", help=(
              "How many frames back causal modules find the channels that look ahead in the published form. "
              "Default: as usual for the module."))] = None,
          keep_interleave: Annotated[bool, typer.Option("--keep-interleave", help=(
              "Start gates as published, which mixes up the channels of ImageNet's weights."))] = False,
          kind: Kind = "auto",
          background: Annotated[str | None, typer.Option(metavar="LABEL", help=(
              'The label that means "nothing", such as "No gesture". Default: as the dataset says.'))] = None,
          multi_label: Annotated[bool, typer.Option("--multi-label", help=(
              "Labels are true each for itself, several at a time or none: segments may overlap."))] = False,
          idle: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="Videos without actions. May be "
                                                                                 "given several times.")] = None,
          idle_without: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave out this video without "
                                                                                      "actions. Likewise.")] = None,
          calibration_from: Annotated[list[Path] | None, typer.Option(metavar="FILE", help=(
              "Take the calibration of this model, trained with something left out. Likewise: their mean."))] = None,
          name: Annotated[str | None, typer.Option(metavar="NAME", help=(
              "Name of the model. Default: as FILE to write; with --stage fusion as before."))] = None,
          without_fold: Annotated[int, typer.Option(min=0, metavar="N", help="Leave out fold N; 0: none.")] = 0,
          without_label: Annotated[list[str] | None, typer.Option(metavar="NAME", help=(
              "Never see this label, and do not have it. Likewise."))] = None,
          no_rendered: Annotated[bool, typer.Option("--no-rendered", help=(
              "Show no rendered hands. Else some draw the labels that are called as their gestures are, and others "
              "do nothing labelled, where there is a label for that."))] = False,
          rendered_only: Annotated[bool, typer.Option("--rendered-only", help="Learn labels from rendered hands only; "
              "of the recordings, places are used and no label.")] = False,
          trimmed: Annotated[int, typer.Option(min=0, max=256, metavar="N", help=(
              "Learn from whole actions, N frames spread evenly over each, not from streams: to compare networks, not "
              "for live use. 0: streams."))] = 0,
          trimmed_first: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
              "Steps on whole actions and moments of idle time, at three times the learning rate, before those on "
              "streams. Default: a third as many; 0 from a FILE that is a model."))] = None,
          iterations: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of training.")] = 3600,
          window_clips: Annotated[int, typer.Option(min=2, max=4096, metavar="N", help=(
              "Clips in the window."))] = 10,
          windows: Annotated[int, typer.Option(min=30, metavar="N", help=(
              "Windows to learn from."))] = 3000,
          epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes through the data.")] = 60,
          batch: Annotated[int | None, typer.Option(min=1, metavar="N", help=(
              "Streams, whole gestures or clips in a batch, over all processes. Default: as the recipe."))] = None,
          segments: Annotated[int, typer.Option(min=1, metavar="N", help="Frames of a clip.")] = 8,
          size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help=(
              "The network's input. Default: as FILE to start from, else as the recipe."))] = None,
          rate: Annotated[float | None, typer.Option(min=0.1, max=1000, metavar="R", help=(
              "Frames a second that the network sees. Default: 5."))] = None,
          precision: Annotated[Precisions, typer.Option(help="Of the arithmetic. auto: bf16 where it is fast.")]
          = "auto",
          validate_every: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
              "Validate on what is left out every N steps (gatestream) or epochs (official), and save what was best "
              "there; 0: never. Default: as the recipe."))] = None,
          patience: Annotated[int, typer.Option(min=0, metavar="N", help=(
              "Stop after so many validations without a new best; 0: never."))] = 0,
          workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that load data.")] = 1,
          strict: Annotated[bool, typer.Option("--strict", help="Stop at a clip that cannot be read.")] = False,
          lr: Annotated[float | None, typer.Option(min=1e-8, max=1.0, metavar="R", help=(
              "Learning rate; of the backbone in the recipe gatestream, where what is new learns at rates of its own. "
              "Default: 1e-4 (gatestream), 0.01 (official)."))] = None,
          freeze: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
              "First layers of MobileNetV2 that stay as they are. Default: 7."))] = None,
          seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help=(
              "Another seed, another model."))] = 0) -> None:
    """Train a model.

    Options that not every recipe honours name those that do; with another one they are refused. `fusion` is what
    `--stage fusion` does.

    What is left out calibrates its scores. Progress, curves and the checkpoint are in a folder beside the model file: a
    run that was killed continues when it is started again. For several GPUs start it with
    `torchrun --nproc-per-node N -m stream train ...`.

    [bold]Examples[/bold]

      gatestream train data/egogestar --out gesture.safetensors

      gatestream train epic-kitchens-100 --recipe official --arch gsf-resnet50 --out epic.safetensors

      gatestream train something-v1 --init official.pth.tar --causal --teacher official.pth.tar --out live.safetensors

      gatestream train data/egogestar --stage fusion --init gesture.safetensors --idle data/idle --out fused.safetensors
    """
    given = _options_given(context)
    by_teacher = recipe is None and teacher is not None
    how = "fusion" if stage == "fusion" else "official" if by_teacher else recipe or "gatestream"
    _check_recipe(context, given, how, ", which a teacher needs" if by_teacher else "")
    if not dataset.is_dir():
        raise UsageError(f"{dataset}: no such folder", "a folder of recordings", "check the path")
    check_model_path(out)
    if name is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise UsageError(f"--name {name!r}", "1 to 64 letters of A to Z, digits, dots, dashes and underscores",
                         "choose another one")
    from engines.datasets import open_dataset
    from engines.datasets.selection import with_background

    if how == "fusion":
        _train_fusion(open_dataset(dataset, kind), out, init, idle or [], window_clips, windows, name, seed, strict)
        return
    from engines.training import official_recipe
    from engines.training.initialisation import whole_config
    from engines.training.official_recipe import OfficialRecipe
    from engines.training.train import Recipe, resolve_defaults
    from engines.training.train import train as train_gatestream
    from stream.teaching.teach import file_name

    size_hw = None if size is None else parse_size_hw(size)
    if size_hw is not None and not all(16 <= side <= 4096 for side in size_hw):
        raise UsageError(f"--size {size}", "sides of 16 to 4096 pixels", "choose another size")
    start = whole_config(init)
    live = bool(causal) if how == "official" else causal is not False
    _check_start(given, init, start, live)
    arch = arch or (None if start is None else start.architecture)
    frozen_layers = _frozen_layers(freeze, arch or Recipe.architecture, Recipe.frozen_layers)
    named = name or file_name(out)
    data = with_background(open_dataset(dataset, kind), background)
    if how == "official":
        of_clips = OfficialRecipe(
            out, init=init, causal=live, segments=segments, epochs=epochs, batch=batch, precision=precision,
            patience=patience, teacher=teacher, seed=seed, workers=workers, name=named, without_fold=without_fold,
            input_size_hw=size_hw, strict=strict, architecture=arch or OfficialRecipe.architecture,
            rule=rule or OfficialRecipe.rule, lr=lr or OfficialRecipe.lr, validate_epochs=validate_every)
        with _show_progress(out, official_recipe.count_updates(of_clips, data)) as shown:
            official_recipe.train(of_clips, data, **shown)
    else:
        if readout_width is None:
            readout_width = Recipe.readout_width if live else 0
        left_out = without_fold or idle_without or any(one.labels for one in data.splits.get("validation", ()))
        if calibration_from and left_out:
            raise UsageError("--calibration-from where something is left out, which calibrates the model",
                             "one of the two", "leave it out")
        now, window = _mean_temperatures(calibration_from or [])
        of_streams = resolve_defaults(Recipe(
            out=out, init=init, idle=tuple(idle or ()), name=named, without_fold=without_fold,
            idle_without=tuple(idle_without or ()), without_labels=tuple(without_label or ()), iterations=iterations,
            seed=seed, causal=live, readout_width=readout_width, past_shift=past_shift, transparent=not keep_interleave,
            rendered=not no_rendered, rendered_only=rendered_only, trimmed=trimmed, trimmed_first=trimmed_first,
            strict=strict, multi_label=multi_label, temperature=now, window_temperature=window,
            architecture=arch or Recipe.architecture,
            frozen_layers=frozen_layers, backbone_lr=lr or Recipe.backbone_lr, rows=batch or Recipe.rows,
            precision=precision, validate_every=validate_every or 0, patience=patience, workers=workers,
            rule=rule or Recipe.rule, frame_rate=rate or Recipe.frame_rate,
            input_size_hw=size_hw or Recipe.input_size_hw))
        with _show_progress(out, (of_streams.trimmed_first or 0) + iterations) as shown:
            train_gatestream(of_streams, data, **shown)
    if _is_first():
        _add_graph(out)
        print(f"wrote {out}")


def _add_graph(out: Path) -> None:
    """Puts the graph into a finished model, with which it runs where torch is not installed; it is a model without."""
    from engines.runtime.step_graph import carry

    try:
        carry(out)
    except EngineError as error:
        print(f"note: it needs torch to run, as it has no graph of its own: {error}", file=sys.stderr)


def _options_given(context: typer.Context) -> dict[str, Any]:
    """The values of the options that stand on the command line, by parameter."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name: context.params[name] for name, source in sources.items()
            if source is not None and source.name == "COMMANDLINE"}


def _check_recipe(context: typer.Context, given: Collection[str], how: str, why: str) -> None:
    """Raises UsageError for an option that the recipe does not honour."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in given:
        others = [other for other, names in HONOURED.items() if name in names.split()]
        if how not in others:
            recipes = " or ".join("--stage fusion" if other == "fusion" else f"the recipe {other}" for other in others)
            title = "--stage fusion" if how == "fusion" else f"the recipe {how}{why}"
            raise UsageError(f"{flags[name]} with {title}", f"{recipes} with it", "leave it out")


def _check_start(given: Mapping[str, Any], init: str, start: NetworkConfig | None, live: bool) -> None:
    """Raises UsageError for an option that the weights to start from leave nothing to."""
    if "rule" in given and (start is None or start.causal or not live):
        raise UsageError(f"--rule {given['rule']} from {init}", "a bidirectional FILE that becomes causal",
                         "leave it out")
    if start is None:
        return
    height, width = start.input_size_hw or (0, 0)
    own = {"arch": start.architecture, "size": f"{width}x{height}", "readout_width": start.readout_width,
           "past_shift": start.past_shift, "keep_interleave": False}
    for name, value in own.items():
        if given.get(name, value) != value:
            option = f"--{name.replace('_', '-')}" + ("" if value is False else f" {given[name]}")
            raise UsageError(f"{option} from {init}", f"what it was built for ({value})" if value else "weights of a "
                             "backbone, whose network is made here", "leave it out")


def _frozen_layers(freeze: int | None, arch: str, default: int) -> int:
    """How many layers stay as they are. Raises UsageError for more than the architecture has to freeze."""
    if not freeze:
        return default if freeze is None else 0
    import torch

    from engines.networks.config import NetworkConfig
    from engines.networks.network import BACKBONES

    with torch.device("meta"):
        kind = BACKBONES.get(NetworkConfig.of(arch).backbone)
        there = 0 if kind is None else len(kind().freezable_layers())
    if kind is not None and freeze > there:
        raise UsageError(f"--freeze {freeze} of {arch}", f"0 to {there}" if there else "mobilenetv2, whose layers can "
                         "be frozen", "leave it out")
    return freeze


def _train_fusion(data: Dataset, out: Path, init: str, idle: list[Path], window_clips: int, windows: int,
                  name: str | None, seed: int, strict: bool) -> None:
    from engines.training.fusion_stage import FusionRecipe
    from engines.training.fusion_stage import train as run_training

    if init == "imagenet":
        raise UsageError("--stage fusion from imagenet", "a finished model to start from", "give it with --init FILE")
    recipe = FusionRecipe(out, init, tuple(idle), window_clips=window_clips, windows=windows, name=name, seed=seed,
                          strict=strict)
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
def _show_progress(out: Path, iterations: int) -> Iterator[dict[str, Any]]:
    """What `train` shows its progress with: a bar on a terminal, a line now and then in a log. When it is interrupted
    it says how to go on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    figures_column = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True))
    with Progress(MofNCompleteColumn(), TimeRemainingColumn(), BarColumn(20), figures_column, expand=True,
                  disable=not _is_first()) as bar:
        task = bar.add_task("starting", total=iterations)
        report = partial(bar.console.print, markup=False, soft_wrap=True)

        def progress(iteration: int, figures: dict[str, float]) -> None:
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            bar.update(task, completed=iteration, description=text)
            if not bar.console.is_terminal and iteration % 100 == 0:
                report(f"{iteration} of {iterations}  {text}")

        try:
            yield {"report": report, "progress": progress}
        except KeyboardInterrupt:
            names = "checkpoint.pt", "trimmed.run/checkpoint.pt", "trimmed.safetensors"
            saved = [path for name in names if (path := out.with_suffix(".run") / name).exists()]
            report("interrupted: " + (f"the same command goes on from {saved[0]}" if saved else "nothing is kept"))
            raise
