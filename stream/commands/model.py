"""Commands about models: what there is, proving, timing, compiling ahead of time, importing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engines.errors import UsageError
from stream.commands.data import Kind
from stream.commands.options import EngineName, Hop, ModelArgument

if TYPE_CHECKING:
    from engines.model.contract import Contract
    from engines.model.file import Model

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

    from engines.model.file import bundled, load

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

    from engines.model.file import bundled, load
    from engines.runtime import cache

    names = {load(name).digest: name for name in bundled()}
    table = Table("built engine", "for", "precision", "MB", box=None, pad_edge=False)
    for entry in cache.entries():
        digest = entry.key.get("model", "")
        table.add_row(f"{entry.key.get('engine', '?')} {entry.key.get('library', '')}", names.get(digest, digest[:12]),
                      str(entry.facts.get("precision", "")), f"{entry.size_bytes / 1e6:.1f}")
    console.print()
    console.print(table if table.row_count else "no engines built yet")
    console.print(f"engine cache: {cache.cache_dir()}", markup=False, soft_wrap=True)


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
    from engines.bench.doctor import doctor as examine

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
          hop: Hop = None,
          data: Annotated[Path | None, typer.Option(metavar="DATASET", help=(
              "Instead: frames a second that this dataset's recordings give, and that training the model takes."))]
          = None,
          kind: Annotated[Kind, typer.Option(help="What the dataset is; auto: told by its files.")] = "auto",
          media: Annotated[Path | None, typer.Option(metavar="FOLDER", help=(
              "Where the dataset's recordings are, when not with the annotations."))] = None,
          workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that decode the dataset.")] = 1,
          json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
          soak: Annotated[float | None, typer.Option(min=0.1, metavar="MINUTES", help=(
              "Watch memory over so many minutes of simulated stream instead."))] = None,
          cameras: Annotated[int | None, typer.Option(min=1, max=10_000, metavar="N", help=(
              "Instead: serve so many simulated cameras over ZeroMQ; with --soak, they come and go."))] = None,
          rate: Annotated[float, typer.Option(min=0.1, metavar="R", help="Their frames a second.")] = 15.0) -> None:
    """Measure each stage on this machine, against the bare backbone and the last run.

    Several models: a table of their steps and their bare backbones', all in f32, each pair timed in turns.

    [bold]Examples[/bold]

      gatestream bench

      gatestream bench my-model.safetensors --engine eager

      gatestream bench gsm-mobilenetv2 gsf-mobilenetv2 gsf-resnet50

      gatestream bench gesture --data data/egogestar --workers 2

      gatestream bench --soak 10

      gatestream bench --cameras 64
    """
    names = models or ["gesture"]
    single = [name for name, value in (("soak", soak), ("cameras", cameras), ("fusion", fusion), ("data", data),
                                       ("hop", hop)) if value is not None]
    if len(names) > 1 and single:
        raise UsageError(f"{len(names)} models with --{single[0]}", "one model with it", "measure one after the other")
    if cameras is not None:
        from stream.service.bench.load import measure as serve
        load = serve(cameras, rate, 60 * soak if soak else 30.0, names[0], engine, churn=soak is not None)
        _print_report(load.as_json(), load.text(), json)
        return
    if soak is not None:
        from stream.service.bench.soak import soak as watch
        seen = watch(names[0], soak, engine)
        print(f"{seen.minutes:.1f} minutes of stream, {seen.predictions} predictions: {seen.resident_mb:.0f} MB "
              f"resident (largest {seen.largest_mb:.0f}), growing {seen.slope_mb_per_minute:+.3f} MB a minute")
        return
    import engines
    from engines.bench.overhead import (
        format_table,
        is_architecture,
        measure_overhead,
        random_model,
        with_fusion,
        with_hop,
    )

    files = {name: engines.load(name) for name in names if not is_architecture(name)}
    if data is not None:
        from engines.bench import data_throughput
        from engines.datasets import open_dataset
        subject = files.get(names[0]) or random_model(names[0])
        found = data_throughput.measure(subject, open_dataset(data, kind, media=media), workers)
        _print_report(found.as_json(), data_throughput.format_lines(found), json)
        return
    if len(names) > 1:
        rows = [measure_overhead(files.get(name) or random_model(name), engine, steps=steps) for name in names]
        _print_report([asdict(row) for row in rows], format_table(rows), json)
        return
    from engines.bench.stages import bench as measure
    from engines.bench.stages import format_lines
    from stream.scoring import Scorer

    model = files.get(names[0]) or random_model(names[0])
    if hop is not None:
        model = with_hop(model, hop)
    if fusion is not None:
        model = with_fusion(model, fusion)
    plain = None if model.contract.fusion is None else Scorer(_Averaging(model)).score
    report = measure(model, engine, steps=steps, fuse=Scorer(model).score, plain=plain)
    _print_report(report, [] if json else format_lines(report), json)


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
    from engines.model.import_official import import_official as write
    from engines.model.import_official import read_labels

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
