"""Commands that measure: a model's stages, a dataset's decoding, a service with many cameras, hands, memory over
time."""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from json import dumps
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from engines.errors import UsageError
from stream.commands.options import EngineName, Hop, Kind, MediaFolder, ModelName


class _BenchGroup(TyperGroup):
    """`bench MODEL` is `bench stages MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args[0] in (*self.commands, *ctx.help_option_names) if args else ctx.resilient_parsing  # completion
        return super().parse_args(ctx, args if named else ["stages", *args])


commands = typer.Typer(cls=_BenchGroup, help=(
    "Measure on this machine. `gatestream bench MODEL...` is `gatestream bench stages MODEL...`."))

AsJson = Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")]


@commands.command()
def stages(models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help=(
               "Bundled models, model files, or architectures such as gsf-resnet50, which get random weights. Default:"
               " gesture."))] = None, engine: EngineName = "auto",
           steps: Annotated[int, typer.Option(min=10, metavar="N", help="Frames timed for each figure.")] = 400,
           fusion: Annotated[str | None, typer.Option(metavar="FORM", help=(
               "Time this clip fusion with random weights, attention or bigru, instead of the model's own."))] = None,
           hop: Hop = None, json: AsJson = False) -> None:
    """Measure each stage of a model, against the bare backbone.

    Several models: a table of their steps and their bare backbones', all in f32, each pair timed in turns.

    [bold]Examples[/bold]

      gatestream bench

      gatestream bench my-model.safetensors --engine eager

      gatestream bench gsm-mobilenetv2 gsf-mobilenetv2 gsf-resnet50"""
    import engines
    from engines.bench import overhead

    names = models or ["gesture"]
    single = [name for name, value in (("fusion", fusion), ("hop", hop)) if value is not None]
    if len(names) > 1 and single:
        raise UsageError(f"{len(names)} models with --{single[0]}", "one model with it", "measure one after the other")
    loaded = [overhead.random_model(name) if overhead.is_architecture(name) else engines.load(name) for name in names]
    if len(loaded) > 1:
        rows = [overhead.measure_overhead(each, engine, steps=steps) for each in loaded]
        _print_report([asdict(row) for row in rows], overhead.format_table(rows), json)
        return
    from engines.bench.stages import bench as measure
    from engines.bench.stages import format_lines
    from stream.scoring import Scorer

    model = loaded[0].with_hop(hop)
    if fusion is not None:
        model = overhead.with_fusion(model, fusion)
    unfused: Any = SimpleNamespace(contract=model.contract, head_logits=model.head_logits, clip_fusion=None)
    plain = None if model.contract.fusion is None else Scorer(unfused).score  # clips averaged, for comparison
    report = measure(model, engine, steps=steps, fuse=Scorer(model).score, plain=plain)
    _print_report(report, [] if json else format_lines(report), json)


@commands.command()
def data(dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the dataset.")],
         model: Annotated[str, typer.Option("--model", "-m", metavar="NAME|FILE", help=(
             "A bundled model, a model file or an architecture such as gsf-resnet50."))] = "gesture",
         kind: Kind = "auto", media: MediaFolder = None,
         workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that decode.")] = 1,
         json: AsJson = False) -> None:
    """Compare the frames a second that a dataset's recordings give with those that training a model takes.

    [bold]Example[/bold]

      gatestream bench data data/egogestar --workers 2"""
    import engines
    from engines.bench import data_throughput
    from engines.bench.overhead import is_architecture, random_model
    from engines.datasets import open_dataset

    subject = random_model(model) if is_architecture(model) else engines.load(model)
    found = data_throughput.measure(subject, open_dataset(dataset, kind, media=media), workers)
    _print_report(found.as_json(), data_throughput.format_lines(found), json)


@commands.command()
def cameras(count: Annotated[int, typer.Argument(min=1, max=10_000, metavar="N", help="How many cameras.")],
            model: ModelName = "gesture", engine: EngineName = "auto",
            rate: Annotated[float, typer.Option(min=0.1, metavar="R", help="Frames a second of each camera.")] = 15.0,
            soak: Annotated[float | None, typer.Option(min=0.1, metavar="MINUTES", help=(
                "For so long, with cameras that come and go, instead of half a minute."))] = None,
            json: AsJson = False) -> None:
    """Serve simulated cameras over ZeroMQ, and say whether this machine keeps up with them.

    [bold]Examples[/bold]

      gatestream bench cameras 64

      gatestream bench cameras 16 --soak 30"""
    from stream.bench.load import measure as serve

    load = serve(count, rate, 60 * soak if soak else 30.0, model, engine, churn=soak is not None)
    _print_report(asdict(load), load.text(), json)


@commands.command()
def hands(source: Annotated[str, typer.Argument(metavar="SOURCE", help="As in gatestream run.")],
          model: ModelName = "base",
          max_frames: Annotated[int, typer.Option(min=1, metavar="N", help="Frames at most.")] = 1000,
          save_video: Annotated[Path | None, typer.Option(metavar="FILE", help=(
              "Write the frames with their hands drawn to this .mp4."))] = None, json: AsJson = False) -> None:
    """Follow the hands in a stream with the models of the extra \\[hands], at the frame rate of a model, and say what
    that costs.

    [bold]Example[/bold]

      gatestream bench hands clip.mp4 --save-video hands.mp4"""
    import engines
    from engines.bench.hands import HandBench, format_lines
    from stream.clock import Clock
    from stream.frame import Frame, Image
    from stream.sinks.base import output_path
    from stream.sinks.overlay import draw_hands
    from stream.sinks.video import write_video
    from stream.sources import open_source

    contract = engines.load(model).contract
    bench, clock = HandBench(), Clock(contract.frame_rate, contract.max_gap_s)

    def drawn() -> Iterator[tuple[float, Image]]:
        with open_source(source) as opened:
            for frame in islice((item for item in opened.frames() if isinstance(item, Frame)
                                 and clock.tick(item.captured_at).use), max_frames):
                image = frame.image_bgr.copy()
                draw_hands(image, bench.step(frame.image_bgr).in_view())
                yield frame.captured_at, image

    if save_video:
        write_video(output_path(save_video), drawn())
    else:
        deque(drawn(), maxlen=0)
    report = bench.report()
    _print_report(report, format_lines(report), json)


@commands.command()
def soak(model: ModelName = "gesture", engine: EngineName = "auto",
         minutes: Annotated[float, typer.Option(min=0.1, metavar="MINUTES", help="Length of the stream.")] = 10.0
         ) -> None:
    """Watch this process's memory over minutes of a simulated stream.

    [bold]Example[/bold]

      gatestream bench soak --minutes 30"""
    from stream.bench.soak import soak as watch

    print(watch(model, minutes, engine))


def _print_report(report: Any, text: list[str], as_json: bool) -> None:
    print(dumps(report, indent=2) if as_json else "\n".join(text))
