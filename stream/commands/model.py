"""Commands about models: what there is, proving, compiling ahead of time, importing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engines.errors import UsageError
from stream.commands.options import Hop, ModelArgument

if TYPE_CHECKING:
    from engines.model.file import Model
    from engines.runtime.engine import Engine

commands = typer.Typer()


@commands.command()
def models(name: Annotated[str | None, typer.Argument(metavar="MODEL", help="Show this one's card.")] = None) -> None:
    """List the models and engines on this machine, or show one model's card.

    [bold]Examples[/bold]

      gatestream models

      gatestream models gesture"""
    from rich.console import Console

    import engines

    console = Console(highlight=False)
    if name is None:
        _list_all(console)
        return
    model = engines.load(name)
    card = model.path.with_suffix(".md") if model.path else None
    if card is not None and card.is_file():
        from rich.markdown import Markdown
        console.print(Markdown(card.read_text(encoding="utf-8")))
    contract = model.contract
    seen_s = contract.clip_frames * contract.window_clips / contract.frame_rate
    for line in [f"{contract.name}: {contract.architecture}, {contract.frame_rate:g} frames/s, "
                 f"{contract.input_size_hw[1]}x{contract.input_size_hw[0]} pixels, window {seen_s:.1f} s",
                 *(f"{head}: {', '.join(labels)}" for head, labels in contract.heads.items()),
                 *(f"{name}: {value}" for name, value in contract.provenance.items())]:
        console.print(line, markup=False)


def _list_all(console: Any) -> None:
    """Prints the bundled models and the engine cache. An engine of another model is named by the model's digest."""
    from rich.table import Table

    from engines.model.file import bundled, load
    from engines.runtime import cache

    table = Table("model", "architecture", "labels", "frames/s", "input", "MB", box=None, pad_edge=False)
    loaded = {name: load(name) for name in bundled()}
    for name, path in bundled().items():
        contract = loaded[name].contract
        heads = ", ".join(f"{len(labels)} {head}" for head, labels in contract.heads.items())
        table.add_row(name, contract.architecture, heads, f"{contract.frame_rate:g}",
                      "x".join(map(str, contract.input_size_hw[::-1])), f"{path.stat().st_size / 1e6:.1f}")
    console.print(table if table.row_count else "no bundled models")
    names = {model.digest: name for name, model in loaded.items()}
    table = Table("built engine", "for", "precision", "MB", box=None, pad_edge=False)
    for entry in cache.entries():
        digest = entry.key.get("model", "")
        table.add_row(f"{entry.key.get('engine', '?')} {entry.key.get('library', '')}", names.get(digest, digest[:12]),
                      str(entry.facts.get("precision", "")), f"{entry.size_bytes / 1e6:.1f}")
    console.print()
    console.print(table if table.row_count else "no engines built yet")
    console.print(f"engine cache: {cache.cache_dir()}", markup=False, soft_wrap=True)


@commands.command()
def doctor(model: ModelArgument = "gesture", hop: Hop = None) -> None:
    """Look at what is installed, and prove that stream = clip = every engine on this machine.

    [bold]Examples[/bold]

      gatestream doctor

      gatestream doctor my-model.safetensors"""
    from engines.bench.doctor import doctor as examine

    failed = 0
    for check in examine(model, hop, _find_events):
        print("ok  " if check.ok else "FAIL", f"{check.name}: {check.detail}", flush=True)
        failed += not check.ok
    if failed:
        raise typer.Exit(1)


def _find_events(model: Model, engine: Engine) -> list[tuple[str, str, float, float]]:
    """Head, label, start and end of the events in ten seconds of the simulated camera."""
    from engines.synthetic import Simulation
    from stream.frame import Event
    from stream.recognizer import Recognizer

    rate = model.contract.frame_rate
    recognizer = Recognizer(model, engine)
    camera = Simulation(0, size_hw=(240, 320), rate=rate, idle_s=(0.2, 0.6))
    items = [item for k in range(round(10 * rate)) for item in recognizer.push(camera.frame(k), k / rate)]
    return [(item.head, item.label, item.started_at, item.ended_at) for item in [*items, *recognizer.flush()]
            if isinstance(item, Event) and not item.open]


@commands.command()
def export(model: Annotated[str, typer.Argument(metavar="MODEL", help=(
               "A bundled model, a model file, or, for an ONNX file, an architecture such as gsf-resnet50, which gets "
               "random weights."))],
           out: Annotated[Path, typer.Option(metavar="FILE", help="The engine file to write.")],
           engine: Annotated[str, typer.Option(metavar="NAME", help="openvino (auto) or onnx.")] = "auto",
           batch: Annotated[int, typer.Option(min=1, metavar="N", help=(
               "ONNX: cameras at a time, or clips of a bidirectional model."))] = 1,
           precision: Annotated[str | None, typer.Option(metavar="TYPE", help=(
               "f32 or, in an ONNX file, f16. Default: the fastest that agrees; f32 in an ONNX file."))] = None,
           fusion: Annotated[bool, typer.Option("--fusion", help=(
               "ONNX: the model's clip fusion instead of its network."))] = False) -> None:
    """Build a compiled engine ahead of time, for machines with the same processor and library; or an ONNX file.

    A bidirectional model becomes an ONNX file that takes whole clips.

    [bold]Examples[/bold]

      gatestream export gesture --engine openvino --out gesture.engine

      gatestream run --engine gesture.engine

      gatestream export gesture --engine onnx --batch 4 --precision f16 --out step.onnx"""
    import engines
    from engines.bench import overhead

    if overhead.is_architecture(model):
        if engine != "onnx":
            raise UsageError(f"architecture {model} for engine {engine!r}", "a model, or engine onnx",
                             "use --engine onnx, or name a model file")
        subject = overhead.random_model(model)
    else:
        subject = engines.load(model)
    written = engines.export(subject, engine, out, precision, batch, fusion)
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
        background: Annotated[str | None, typer.Option(metavar="LABEL", help=(
            'The class that means "nothing", such as "No gesture", if there is one.'))] = None,
        name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the model. Default: as FILE to write.")]
        = None) -> None:
    """Make a model file of an official GSM or GSF checkpoint. No code inside the checkpoint is run.

    [bold]Examples[/bold]

      gatestream import-official something-v1_RGB_InceptionV3_avg_segment8_checkpoint.pth.tar --out gsm.safetensors"""
    check_model_path(out)
    from engines.datasets.tables import read_labels
    from engines.model.import_official import import_official as write

    contract = write(file, out, arch=arch, labels=read_labels(labels, sort_labels) if labels else None,
                     segments=segments, clip_s=clip_seconds, name=name, background=background)
    (names,) = contract.heads.values()
    print(f"wrote {out}: {contract.architecture}, {contract.clip_frames} frames in {clip_seconds:g} s, "
          f"{len(names)} classes")


def check_model_path(out: Path) -> None:
    """Raises UsageError or SinkError where no model file of this name can be written; called before any work."""
    from stream.sinks.base import output_path

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}", "a name ending in .safetensors", "rename it")
    output_path(out)
