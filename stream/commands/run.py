"""The commands that take one source: recognise it, record it."""

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from engines.errors import UsageError
from stream.commands.interrupt import raise_if_interrupted, stop_on_signals
from stream.commands.options import EngineName, Hop, ModelName, in_panels

DEMO = "sim://gestures?seconds=60"

commands = typer.Typer()

CameraName = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the camera in all results.")]
SourceName = Annotated[str, typer.Argument(
    metavar="SOURCE", help="0 (a webcam), a video file, a folder or 'glob' of images, rtsp://..., http://..., "
                           "zmq://host:port (a publisher), sim://gestures?seed=1&rate=30.")]
JsonTarget = Annotated[str | None, typer.Option(
    metavar="FILE|-", help="Write each result as a line of JSON; -: stdout.")]
LogTarget = Annotated[Path | None, typer.Option(metavar="FILE.db", help="Add events to a log; see gatestream events.")]
VideoTarget = Annotated[Path | None, typer.Option(metavar="FILE", help="Save the video with the results drawn in.")]
MaxSeconds = Annotated[float | None, typer.Option(min=0, metavar="S", help="Stop after S seconds of the stream.")]
MaxFrames = Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N camera frames.")]
Policy = Annotated[Literal["auto", "every", "newest"], typer.Option(
    help="Which frames to take; auto: every frame of a file, the newest of a camera.")]
Fps = Annotated[float | None, typer.Option(min=0.001, metavar="F", help="Rate of images, or instead of a video's own.")]


@commands.command(cls=in_panels({
    "Recognition": "model engine hop",
    "The stream": "camera policy fps max_seconds max_frames",
    "Where the results go": "json log save_video",
}))
def run(source: SourceName = DEMO, model: ModelName = "gesture", engine: EngineName = "auto",
        json: JsonTarget = None, log: LogTarget = None, save_video: VideoTarget = None,
        max_seconds: MaxSeconds = None, max_frames: MaxFrames = None, policy: Policy = "auto", fps: Fps = None,
        camera: CameraName = None, hop: Hop = None) -> None:
    """Recognise one stream, live or recorded.

    [bold]Examples[/bold]

      gatestream run                          a minute of the simulated camera

      gatestream run sim://gestures           the same until Ctrl-C

      gatestream run 0 --log events.db        a webcam; its events go into a log

      gatestream run in.mp4 --save-video out.mp4

      gatestream run 'frames/*.jpg' --fps 15 --json -"""
    from rich.console import Console

    import engines
    from engines.decoding.paths import printable
    from stream.recognizer import Recognizer
    from stream.runner import run as run_stream
    from stream.sinks.base import Sink
    from stream.sinks.terminal import TerminalView
    from stream.sources import open_source
    from stream.sources.address import mask_secrets, parse_scheme

    stop = threading.Event()
    with ExitStack() as stack:
        loaded = engines.load(model).require_taught()
        opened = stack.enter_context(open_source(source, camera=camera, policy=policy, fps=fps))
        sinks: list[Sink] = []
        if log is not None:  # first: an event is durable before it is shown
            from stream.sinks.log import EventLog
            name = mask_secrets(source) if parse_scheme(source) else printable(source)
            sinks.append(stack.enter_context(EventLog(log, loaded.contract.name, name, loaded.digest)))
        if json is not None:
            from stream.sinks.jsonl import JsonLines
            sinks.append(stack.enter_context(JsonLines(json)))
        if save_video is not None:
            from stream.sinks.video import AnnotatedVideo
            if save_video.exists() and Path(source).exists() and save_video.samefile(source):
                raise UsageError(f"--save-video {save_video}, which is the source", "another file", "rename it")
            sinks.append(stack.enter_context(AnnotatedVideo(save_video, opened.info.fps, loaded.contract.background)))
        compiled = engines.compile(loaded, engine=engine, slots=1, hop=hop)
        recognizer = stack.enter_context(Recognizer(loaded, compiled))
        console = Console(stderr=json == "-")  # beside results on stdout, and only where somebody looks
        if json != "-" or console.is_terminal:
            title = f"{loaded.contract.name}, {compiled.name} {compiled.precision}"
            view = TerminalView(opened.info.camera, title, loaded.contract.background, console, live=opened.info.live)
            sinks.append(stack.enter_context(view))
        stack.enter_context(stop_on_signals(opened.close, stop))
        raise_if_interrupted()
        run_stream(opened, recognizer, sinks, max_seconds=max_seconds, max_frames=max_frames, stop=stop)


@commands.command()
def record(source: SourceName, out: Annotated[Path, typer.Option(metavar="FILE", help="The recording, a new file.")],
           max_seconds: MaxSeconds = None, max_frames: MaxFrames = None, policy: Policy = "auto", fps: Fps = None,
           camera: CameraName = None) -> None:
    """Record a source's frames with their times: replayed, they give the same events.

    With --policy auto a camera gives every frame, too; what it lost on the way here is told at the end.

    [bold]Examples[/bold]

      gatestream record 0 --out desk.frames --max-seconds 60

      gatestream run desk.frames"""
    from stream.runner import record as record_source
    from stream.sources import open_source

    stop = threading.Event()
    with open_source(source, camera=camera, policy="every" if policy == "auto" else policy, fps=fps) as opened, \
            stop_on_signals(opened.close, stop):
        raise_if_interrupted()
        counts = record_source(opened, out, max_seconds=max_seconds, max_frames=max_frames, stop=stop)
    print(f"{out}: {counts.frames} frames, {counts.lost} lost")
