"""Commands about models: what there is, compiling ahead of time, training, measuring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engines.errors import UsageError
from stream.options import EngineName, Hop, ModelArgument

if TYPE_CHECKING:
    from engines.contract import Contract
    from engines.model import Model

Recipes = Literal["gatestream", "official"]
Stages = Literal["clip", "fusion"]
Precisions = Literal["auto", "f32", "bf16", "f16"]


commands = typer.Typer()


@commands.command()
def models(name: Annotated[str | None, typer.Argument(metavar="MODEL", help="Show this one's card.")] = None) -> None:
    """List the models and engines on this machine, or show one model's card.

    [bold]Examples[/bold]

      gatestream models

      gatestream models gesture
    """
    from rich.console import Console

    import engines

    console = Console(highlight=False)
    if name is None:
        _list_models(console)
        _list_engines(console)
        return
    model = engines.load(name)
    card = model.path.with_suffix(".md") if model.path else None
    if card is not None and card.is_file():
        from rich.markdown import Markdown
        console.print(Markdown(card.read_text(encoding="utf-8")))
    for line in _facts(model.contract):
        console.print(line, markup=False)


def _list_models(console: Any) -> None:
    from rich.table import Table

    from engines.model import bundled, load

    table = Table("model", "architecture", "labels", "frames/s", "input", "MB", box=None, pad_edge=False)
    for name, path in bundled().items():
        contract = load(name).contract
        table.add_row(name, contract.architecture, ", ".join(f"{len(labels)} {head}" for head, labels in
                                                             contract.heads.items()),
                      f"{contract.frame_rate:g}", "x".join(map(str, contract.input_size_hw[::-1])),
                      f"{path.stat().st_size / 1e6:.1f}")
    console.print(table if table.row_count else "no bundled models")


def _list_engines(console: Any) -> None:
    """The engine cache. Entries of models that are no longer here are shown by their digest."""
    from rich.table import Table

    from engines import cache
    from engines.model import bundled, load

    names = {load(name).digest: name for name in bundled()}
    table = Table("built engine", "for", "precision", "MB", box=None, pad_edge=False)
    for entry in cache.entries():
        digest = entry.key.get("model", "")
        table.add_row(f"{entry.key.get('engine', '?')} {entry.key.get('library', '')}", names.get(digest, digest[:12]),
                      str(entry.facts.get("precision", "")), f"{entry.size_bytes / 1e6:.1f}")
    console.print()
    console.print(table if table.row_count else "no engines built yet")
    console.print(f"engine cache: {cache.place()}", markup=False, soft_wrap=True)


def _facts(contract: Contract) -> list[str]:
    seen_s = contract.clip_frames * contract.window_clips / contract.frame_rate
    return [f"{contract.name}: {contract.architecture}, {contract.frame_rate:g} frames/s, "
            f"{contract.input_size_hw[1]}x{contract.input_size_hw[0]} pixels, window {seen_s:.1f} s",
            *(f"{head}: {', '.join(labels)}" for head, labels in contract.heads.items()),
            *(f"{name}: {value}" for name, value in contract.provenance.items())]


@commands.command()
def doctor(model: ModelArgument = "gesture", hop: Hop = None) -> None:
    """Look at what is installed, and prove that stream = clip = every engine on this machine.

    [bold]Examples[/bold]

      gatestream doctor

      gatestream doctor my-model.safetensors
    """
    from engines.doctor import doctor as examine

    failed = 0
    for check in examine(model, hop):
        print("ok  " if check.ok else "FAIL", f"{check.name}: {check.detail}", flush=True)
        failed += not check.ok
    if failed:
        raise typer.Exit(1)


@commands.command()
def bench(models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help=(
              "Bundled models, model files, or architectures such as gsf-resnet50, which get random weights. "
              "Default: gesture."))] = None,
          engine: EngineName = "auto",
          steps: Annotated[int, typer.Option(min=10, metavar="N", help="Frames timed for each figure.")] = 400,
          fusion: Annotated[str | None, typer.Option(metavar="FORM", help=(
              "Time this clip fusion with random weights, attention or bigru, instead of the model's own."))] = None,
          json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
          soak: Annotated[float | None, typer.Option(min=0.1, metavar="MINUTES", help=(
              "Watch memory over so many minutes of simulated stream instead."))] = None) -> None:
    """Measure each stage on this machine, against the bare backbone and the last run.

    Several models: a table of their steps and their bare backbones', all in f32, each pair timed in turns.

    [bold]Examples[/bold]

      gatestream bench

      gatestream bench my-model.safetensors --engine eager

      gatestream bench gsm-mobilenetv2 gsf-mobilenetv2 gsf-resnet50

      gatestream bench --soak 10
    """
    names = models or ["gesture"]
    if len(names) > 1 and (soak is not None or fusion is not None):
        raise UsageError(f"{len(names)} models with --{'fusion' if soak is None else 'soak'}", "one model with it",
                         "measure one after the other")
    if soak is not None:
        from stream.soak import soak as watch
        seen = watch(names[0], soak, engine)
        print(f"{seen.minutes:.1f} minutes of stream, {seen.predictions} predictions: {seen.resident_mb:.0f} MB "
              f"resident (largest {seen.largest_mb:.0f}), growing {seen.slope_mb_per_minute:+.3f} MB a minute")
        return
    import engines
    from engines.pairs import is_architecture, measured, sample, table, with_fusion

    files = {name: engines.load(name) for name in names if not is_architecture(name)}
    if len(names) > 1:
        rows = [measured(files.get(name) or sample(name), engine, steps) for name in names]
        _print_report(rows, table(rows), json)
        return
    from engines.bench import bench as measure
    from engines.bench import lines
    from stream.scoring import Scorer

    model = files.get(names[0]) or sample(names[0])
    if fusion is not None:
        model = with_fusion(model, fusion)
    plain = None if model.contract.fusion is None else Scorer(_Averaging(model)).score
    report = measure(model, engine, steps=steps, fuse=Scorer(model).score, plain=plain)
    _print_report(report, [] if json else lines(report), json)


class _Averaging:
    """A model whose clips are not fused, for comparison."""

    clip_fusion = None

    def __init__(self, model: Model) -> None:
        self.contract, self.head_logits = model.contract, model.head_logits


def _print_report(report: Any, text: list[str], as_json: bool) -> None:
    from json import dumps

    print(dumps(report, indent=2) if as_json else "\n".join(text))


@commands.command()
def export(model: ModelArgument,
           out: Annotated[Path, typer.Option(metavar="FILE", help="The engine file to write.")],
           engine: EngineName = "auto") -> None:
    """Build a compiled engine ahead of time, for machines with the same processor and library; or an ONNX file.

    [bold]Examples[/bold]

      gatestream export gesture --engine openvino --out gesture.engine

      gatestream run --engine gesture.engine

      gatestream export gesture --engine onnx --out step.onnx
    """
    import engines

    written = engines.export(engines.load(model), engine, out)
    print(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")


@commands.command()
def import_official(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A GSM or GSF checkpoint of the authors.")],
        out: Annotated[Path, typer.Option(metavar="FILE", help="The model file to write.")],
        arch: Annotated[str | None, typer.Option(metavar="NAME", help="gsm-bninception, gsf-resnet50, ... Default: as "
                                                                      "its keys say.")] = None,
        labels: Annotated[Path | None, typer.Option(metavar="FILE", help=(
            "Class names: one per line in class order, or JSON {name: number}. Default: numbers."))] = None,
        sort_labels: Annotated[bool, typer.Option("--sort-labels", help=(
            "Classes are numbered by sorted name, as in the authors' Something-Something lists."))] = False,
        segments: Annotated[int | None, typer.Option(min=1, metavar="N", help=(
            "Frames in a clip. Default: as the file name says, else 8."))] = None,
        clip_seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help=(
            "Time that a clip's frames are spread over: it sets the model's frame rate."))] = 4.0,
        name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the model. Default: as FILE to write.")]
        = None) -> None:
    """Make a model file of an official GSM or GSF checkpoint. No code inside the checkpoint is run.

    [bold]Examples[/bold]

      gatestream import-official something-v1_RGB_InceptionV3_avg_segment8_checkpoint.pth.tar --out gsm.safetensors
    """
    model_to_write(out)
    from engines.importing import import_official as write
    from engines.importing import read_labels

    contract = write(file, out, arch=arch, labels=read_labels(labels, sort_labels) if labels else None,
                     segments=segments, clip_s=clip_seconds, name=name)
    (names,) = contract.heads.values()
    print(f"wrote {out}: {contract.architecture}, {contract.clip_frames} frames in {clip_seconds:g} s, "
          f"{len(names)} classes")


def model_to_write(out: Path) -> None:
    """Refuses a name that is no model file's or cannot be written, before anything else is done."""
    from stream.sinks.base import output_path

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}", "a name ending in .safetensors", "rename it")
    output_path(out)


@commands.command()
def train(dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the recordings.")],
          out: Annotated[Path, typer.Option(metavar="FILE", help="The model file to write.")],
          init: Annotated[str, typer.Option(metavar="imagenet|FILE", help=(
              "Weights to start from: imagenet is downloaded once; FILE: a backbone's weights, a model file, or an "
              "official checkpoint."))] = "imagenet",
          recipe: Annotated[Recipes | None, typer.Option(help=(
              "gatestream: endless streams, for live use; official: clips, as the papers trained. Default: official "
              "with a teacher."))] = None,
          stage: Annotated[Stages, typer.Option(help=(
              "clip: the network; fusion: the clip fusion of a finished model, FILE to start from."))] = "clip",
          arch: Annotated[str | None, typer.Option(metavar="NAME", help=(
              "gsf-mobilenetv2, gsm-resnet50, ... Default: as FILE to start from, else the recipe's own."))] = None,
          causal: Annotated[bool | None, typer.Option("--causal/--no-causal", help=(
              "Causal for live streams, or bidirectional. Default: as the recipe."))] = None,
          teacher: Annotated[str | None, typer.Option(metavar="FILE", help=(
              "Learn from this bidirectional network's scores, too: a model file or official checkpoint."))] = None,
          rule: Annotated[str | None, typer.Option(metavar="NAME", help=(
              "How a bidirectional FILE to start from becomes causal: dropped-one, moved-two, ..."))] = None,
          kind: Annotated[str, typer.Option(metavar="NAME", help="Kind of dataset. See `gatestream data`.")] = "auto",
          idle: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="Videos without gestures. May be "
                                                                                 "given several times.")] = None,
          idle_without: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave out this video without "
                                                                                      "gestures. Likewise.")] = None,
          calibration_from: Annotated[list[Path] | None, typer.Option(metavar="FILE", help=(
              "Take the calibration of this model, trained with something left out. Likewise: their mean."))] = None,
          name: Annotated[str | None, typer.Option(metavar="NAME", help=(
              "Name of the model. Default: gesture for EgoGestAR, else as FILE to write."))] = None,
          without_fold: Annotated[int, typer.Option(min=0, metavar="N", help="Leave out fold N; 0: none.")] = 0,
          without_label: Annotated[list[str] | None, typer.Option(metavar="NAME", help=(
              "Never see this gesture, and have no label for it. Likewise."))] = None,
          iterations: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of training (gatestream).")] = 2400,
          window_clips: Annotated[int, typer.Option(min=2, max=4096, metavar="N", help=(
              "Clips in the window (stage fusion)."))] = 10,
          windows: Annotated[int, typer.Option(min=30, metavar="N", help=(
              "Windows to learn from (stage fusion)."))] = 3000,
          epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes through the data (official).")] = 60,
          batch: Annotated[int | None, typer.Option(min=1, metavar="N", help=(
              "Streams or clips in a batch, over all processes. Default: as the recipe."))] = None,
          segments: Annotated[int, typer.Option(min=1, metavar="N", help="Frames of a clip (official).")] = 8,
          size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help=(
              "The network's input. Default: as FILE to start from, else as the recipe."))] = None,
          rate: Annotated[float | None, typer.Option(min=0.1, metavar="R", help=(
              "Frames a second that the network sees (gatestream)."))] = None,
          precision: Annotated[Precisions, typer.Option(help="Of the arithmetic. auto: bf16 where it is fast.")]
          = "auto",
          validate_every: Annotated[int | None, typer.Option(min=0, metavar="N", help=(
              "Look at what is left out each N steps (gatestream) or epochs (official), and keep what was best there; "
              "0: never. Default: as the recipe."))] = None,
          patience: Annotated[int, typer.Option(min=0, metavar="N", help=(
              "Stop after so many looks without a new best; 0: never."))] = 0,
          workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that load data.")] = 1,
          seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, another model.")] = 0) -> None:
    """Train a recogniser. Killed and started again, it goes on where it was. What is left out calibrates the scores.

    Progress, curves and the checkpoint are in a folder beside the model file. With several GPUs, start it as
    `torchrun --nproc-per-node N -m stream train ...`.

    [bold]Examples[/bold]

      gatestream train data/egogestar --out gesture.safetensors

      gatestream train epic-kitchens-100 --recipe official --arch gsf-resnet50 --out epic.safetensors

      gatestream train something-v1 --init official.pth.tar --causal --teacher official.pth.tar --out live.safetensors

      gatestream train data/egogestar --stage fusion --init gesture.safetensors --idle data/idle --out fused.safetensors
    """
    if not dataset.is_dir():
        raise UsageError(f"{dataset}: no such folder", "a folder of recordings", "check the path")
    model_to_write(out)
    if stage == "fusion":
        _train_fusion(dataset, out, init, idle or [], window_clips, windows, seed)
        return
    from dataclasses import replace

    from engines.synthetic import LABELS
    from engines.training.datasets import open_dataset
    from engines.training.official_recipe import OfficialRecipe
    from engines.training.official_recipe import train as train_official
    from engines.training.starting import architecture_of_start
    from engines.training.train import Recipe
    from engines.training.train import train as train_gatestream

    unknown = sorted(set(without_label or ()) - set(LABELS))
    if unknown:
        raise UsageError(f"--without-label {unknown[0]}", f"one of {', '.join(LABELS)}", "choose one of these")
    official = recipe == "official" or (recipe is None and teacher is not None)
    if teacher is not None and not official:
        raise UsageError("a teacher for the recipe gatestream", "the recipe official with it", "use --recipe official")
    own_reader = not official and kind in ("auto", "egogestar") and (dataset / "manifest.csv").is_file()
    data = None if own_reader else open_dataset(dataset, kind)
    if data is not None and (idle or idle_without or without_label):
        option = "idle" if idle or idle_without else "without-label"
        raise UsageError(f"--{option} with {data.name}", "EgoGestAR and the recipe gatestream with it", "leave it out")
    size_hw = _size_hw(size)
    arch = arch or architecture_of_start(init)
    named = name or ("gesture" if data is None else _model_name(out))
    if official:
        assert data is not None
        of_clips = OfficialRecipe(out, init=init, causal=bool(causal), segments=segments, epochs=epochs, batch=batch,
                                  precision=precision, patience=patience, teacher=teacher, seed=seed, workers=workers,
                                  name=named, without_fold=without_fold, input_size_hw=size_hw)
        of_clips = replace(of_clips, architecture=arch or of_clips.architecture, rule=rule or of_clips.rule)
        if validate_every is not None:
            of_clips = replace(of_clips, validate_epochs=validate_every)
        with _Shown() as shown:
            train_official(of_clips, data, report=shown.report, progress=shown)
    else:
        live = causal is not False
        now, window = _calibration(calibration_from or [])
        of_streams = Recipe(dataset=dataset, out=out, init=init, idle=tuple(idle or ()), name=named,
                            without_fold=without_fold, idle_without=tuple(idle_without or ()),
                            without_labels=tuple(without_label or ()), iterations=iterations, seed=seed, causal=live,
                            memory=Recipe.memory if live else 0, temperature=now,
                            window_temperature=window, architecture=arch or Recipe.architecture,
                            rows=batch or Recipe.rows, precision=precision, validate_every=validate_every or 0,
                            patience=patience, workers=workers, frame_rate=rate or Recipe.frame_rate,
                            input_size_hw=size_hw or Recipe.input_size_hw, rule=rule or Recipe.rule)
        with _Shown(iterations) as shown:
            train_gatestream(of_streams, report=shown.report, progress=shown, data=data)
    if _rank() == 0:
        print(f"wrote {out}")


def _train_fusion(dataset: Path, out: Path, init: str, idle: list[Path], window_clips: int, windows: int,
                  seed: int) -> None:
    from engines.training.fusion_stage import FusionRecipe
    from engines.training.fusion_stage import train as run_training

    if init == "imagenet":
        raise UsageError("--stage fusion from imagenet", "a finished model to start from", "give it with --init FILE")
    recipe = FusionRecipe(dataset, out, init, tuple(idle), window_clips=window_clips, windows=windows, seed=seed)
    table = run_training(recipe, lambda text: print(text, flush=True))
    for name, share in table.items():
        print(f"{name:14} {share:.3f}")
    print(f"wrote {out}")


def _rank() -> int:
    """Which of the processes that `torchrun` started this one is."""
    import os

    return int(os.environ.get("RANK", 0))


def _size_hw(text: str | None) -> tuple[int, int] | None:
    """96x72 -> (72, 96)."""
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text}", "WIDTHxHEIGHT in pixels, such as 96x72", "correct it")
    return int(height), int(width)


def _model_name(out: Path) -> str:
    import re

    return re.sub(r"[^A-Za-z0-9._-]", "-", out.stem)[:64]


def _calibration(files: list[Path]) -> tuple[float, float]:
    """Mean temperatures of the first head of some models, for `now` and `window`; 1 without models."""
    from statistics import geometric_mean

    from engines.model import load

    contracts = [load(file).contract for file in files]
    means = [geometric_mean([next(iter(table.values()), 1.0) for table in tables] or [1.0]) for tables in
             ([c.temperature for c in contracts], [c.window_temperature for c in contracts])]
    return round(means[0], 3), round(means[1], 3)


class _Shown:
    """Training progress: a bar on a terminal, a line now and then in a log."""

    def __init__(self, iterations: int | None = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                             TimeRemainingColumn(), disable=_rank() != 0)
        self._iterations = iterations
        self._task = self._bar.add_task("starting", total=iterations)

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def report(self, text: str) -> None:
        self._bar.console.print(text, markup=False)

    def __call__(self, iteration: int, figures: dict[str, float]) -> None:
        text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self._bar.update(self._task, completed=iteration, description=text)
        if not self._bar.console.is_terminal and iteration % 100 == 0:
            of = f" of {self._iterations}" if self._iterations else ""
            self._bar.console.print(f"{iteration}{of}  {text}", markup=False)
