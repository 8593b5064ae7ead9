"""The command line. Thin: every command calls one function that scripts can call too.

Imports wait until a command needs them, so that help is instant and `run` never loads what training needs.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engines.errors import GatestreamError, UsageError
from stream.commands import data, evaluate, model, service, teach, train
from stream.commands.options import EngineName, Hop, ModelName
from stream.notices import log_to_stderr

if TYPE_CHECKING:
    from rich.console import Console

DEMO = "sim://gestures?seconds=60"

app = typer.Typer(name="gatestream", no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})

# Wrong options, unknown commands and the like; typer carries its own copy of click or uses the installed one.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

CameraName = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the camera in all results.")]
SourceName = Annotated[str, typer.Argument(
    metavar="SOURCE", help="0 (a webcam), a video file, a folder or 'glob' of images, rtsp://..., http://..., "
                           "zmq://host:port (a publisher), sim://gestures?seed=1&rate=30.")]
JsonTarget = Annotated[str | None, typer.Option(
    metavar="FILE|-", help="Write each result as a line of JSON; -: stdout.")]
LogTarget = Annotated[Path | None, typer.Option(metavar="FILE.db", help="Add events to a log; see gatestream events.")]
VideoTarget = Annotated[Path | None, typer.Option(metavar="FILE", help="Save the video with what was seen drawn in.")]
MaxSeconds = Annotated[float | None, typer.Option(min=0, metavar="S", help="Stop after S seconds of the stream.")]
MaxFrames = Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N camera frames.")]
Policy = Annotated[Literal["auto", "every", "newest"], typer.Option(
    help="Which frames to take; auto: every frame of a file, the newest of a camera.")]
Fps = Annotated[float | None, typer.Option(min=0.001, metavar="F", help="Rate of images, or instead of a video's own.")]


@app.callback()
def gatestream(debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False) -> None:
    """Recognises gestures and actions in live egocentric video.

    [bold]gatestream run[/bold] shows a simulated camera, [bold]gatestream run 0[/bold] your webcam.
    Every command explains itself with --help.
    """


@app.command()
def run(source: SourceName = DEMO, model: ModelName = "gesture", engine: EngineName = "auto",
        json: JsonTarget = None, log: LogTarget = None, save_video: VideoTarget = None,
        max_seconds: MaxSeconds = None, max_frames: MaxFrames = None, policy: Policy = "auto", fps: Fps = None,
        camera: CameraName = None, hop: Hop = None) -> None:
    """Recognise one stream, live or recorded.

    [bold]Examples[/bold]

      gatestream run                          a minute of the simulated camera

      gatestream run sim://gestures           the same until Ctrl-C

      gatestream run 0 --log events.db        a webcam; its events are kept

      gatestream run in.mp4 --save-video out.mp4

      gatestream run 'frames/*.jpg' --fps 15 --json -
    """
    import engines
    from stream.recognizer import Recognizer
    from stream.runner import run as run_stream
    from stream.runner import stop_on_signals
    from stream.sinks.base import Sink
    from stream.sinks.terminal import TerminalView
    from stream.sources import open_source
    from stream.sources.address import mask_secrets, parse_scheme

    stop = threading.Event()
    with ExitStack() as stack:
        loaded = engines.load(model)
        opened = stack.enter_context(open_source(source, camera=camera, policy=policy, fps=fps))
        sinks: list[Sink] = []
        if log is not None:  # first: an event is durable before anyone hears of it
            from stream.sinks.log import EventLog
            name = mask_secrets(source) if parse_scheme(source) else source
            sinks.append(stack.enter_context(EventLog(log, loaded.contract.name, name)))
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
        console = _console(json)
        if console is not None:
            title = f"{loaded.contract.name}, {compiled.name} {compiled.precision}"
            view = TerminalView(opened.info.camera, title, loaded.contract.background, console)
            sinks.append(stack.enter_context(view))
        stack.enter_context(stop_on_signals(opened, stop))
        run_stream(opened, recognizer, sinks, max_seconds=max_seconds, max_frames=max_frames, stop=stop)


@app.command()
def record(source: SourceName, out: Annotated[Path, typer.Option(metavar="FILE", help="The recording, a new file.")],
           max_seconds: MaxSeconds = None, max_frames: MaxFrames = None, policy: Policy = "auto", fps: Fps = None,
           camera: CameraName = None) -> None:
    """Record a source's frames with their times, losing nothing: replayed, they give the same events.

    [bold]Examples[/bold]

      gatestream record 0 --out desk.frames --max-seconds 60

      gatestream run desk.frames
    """
    from stream.runner import stop_on_signals
    from stream.sinks.recorder import record as record_source
    from stream.sources import open_source

    stop = threading.Event()
    with open_source(source, camera=camera, policy=policy, fps=fps) as opened, stop_on_signals(opened, stop):
        frames = record_source(opened, out, max_seconds=max_seconds, max_frames=max_frames, stop=stop)
    print(f"{out}: {frames} frames")


@app.command()
def ui(model: ModelName = "gesture", engine: EngineName = "auto",
       host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where the page is served; cameras of browsers need "
                                         "https, or this machine itself.")] = "127.0.0.1",
       port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="Its port; 0: any.")] = 7860,
       browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
       auth: Annotated[Path | None, typer.Option(metavar="FILE", help="Let only users in this file see it.")] = None,
       add_user: Annotated[str | None, typer.Option(metavar="NAME", help=(
           "Add a user to the file of --auth, with a password that is asked for, and end."))] = None,
       lessons: Annotated[Path | None, typer.Option(metavar="FOLDER", help=(
           "Where recordings and models of the page Teach are kept. Default: a folder of your own."))] = None,
       service: Annotated[str | None, typer.Option(metavar="HOST:PORT", help=(
           "The health page of the service that the page Cameras shows. Default: that of gatestream serve."))] = None,
       ) -> None:
    """Open the page in a browser: look at a camera and at what is recognised, teach it more.

    [bold]Examples[/bold]

      gatestream ui

      gatestream ui --model mine.safetensors --port 8000

      gatestream ui --auth users --add-user ada, then gatestream ui --auth users --host 0.0.0.0
    """
    from importlib import import_module

    if add_user is not None:
        if auth is None:
            raise UsageError("--add-user without --auth", "the file of users", "add --auth FILE")
        import_module("demo.users").add(auth, add_user, typer.prompt("Password", hide_input=True,
                                                                     confirmation_prompt=True))
        print(f"{auth}: {add_user} may see the page")
        return
    try:
        page = import_module("demo.ui")  # the only look upwards: what a person looks at is the floor above
    except ImportError as error:
        raise UsageError(f"the page without {error.name}", "it", "pip install 'gatestream[ui]'") from error
    page.serve(model, engine, host, port, browser, auth, lessons, service)


def _console(json: str | None) -> Console | None:
    """Where the view goes: stdout, or stderr when results take stdout; not at all where nobody would look."""
    from rich.console import Console

    console = Console(stderr=json == "-")
    return console if json != "-" or console.is_terminal else None


def _moment(text: str) -> float:
    """Seconds, or a date and time of this machine's zone."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither seconds nor a time such as 2026-01-31T14:05") from error


@app.command()
def events(log: Annotated[Path, typer.Argument(metavar="FILE.db", help="A log of gatestream run or serve.")],
           form: Annotated[Literal["table", "csv", "jsonl", "vtt", "elan", "epic", "ssv2"], typer.Option(
               "--format", help="What to write; vtt: subtitles for a saved video, elan: annotations of one; epic, "
                                "ssv2: a folder of a public dataset's annotation files, to train from.")] = "table",
           out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to, instead of stdout.")] = None,
           label: Annotated[str | None, typer.Option(metavar="NAME", help="Only this label.")] = None,
           camera: Annotated[str | None, typer.Option(metavar="NAME", help="Only this camera.")] = None,
           head: Annotated[str | None, typer.Option(metavar="NAME", help="Only this head of the model.")] = None,
           since: Annotated[float | None, typer.Option(metavar="TIME", parser=_moment, help=(
               "Only what ends at or after this: seconds, or 2026-01-31T14:05."))] = None,
           until: Annotated[float | None, typer.Option(metavar="TIME", parser=_moment,
                                                       help="Only what starts by then.")] = None,
           min_score: Annotated[float | None, typer.Option(min=0, max=1, metavar="P",
                                                           help="Only what scored at least this.")] = None,
           run: Annotated[int | None, typer.Option(metavar="N", help="Only run number N; -1: the latest.")] = None,
           ) -> None:
    """List, filter and export logged events.

    [bold]Examples[/bold]

      gatestream events events.db --run -1

      gatestream events events.db --label left --format csv --out left.csv

      gatestream events events.db --format ssv2 --out clips      for the videos that serve keeps there
    """
    from stream.sinks.base import output_path, sink_errors
    from stream.sinks.export import export
    from stream.sinks.export_dataset import write_epic, write_something
    from stream.sinks.log import read_events, read_runs

    chosen: dict[str, Any] = {"label": label, "camera": camera, "head": head, "since": since, "until": until,
                              "min_score": min_score, "run": run}
    if form in ("epic", "ssv2"):
        if out is None:
            raise UsageError(f"--format {form} without a folder", "--out FOLDER", "name one")
        found = read_events(log, **chosen)
        names = write_epic(out, found, read_runs(log)) if form == "epic" else write_something(out, found)
        print(f"{out}: {len(found)} events of {len(names)} videos ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")
        return
    with ExitStack() as stack:
        target = sys.stdout
        if out is not None:
            with sink_errors("opening", out):
                target = stack.enter_context(output_path(out).open("w", encoding="utf-8", newline=""))
        export(log, target, form, **chosen)


app.add_typer(service.commands)
app.add_typer(model.commands)
app.add_typer(train.commands)
app.add_typer(evaluate.commands)
app.add_typer(teach.commands)
app.add_typer(data.commands, name="data")


def main(argv: Sequence[str] | None = None) -> int:
    """The program: runs a command and returns its exit code (0 fine, 1 a fault, 2 wrong use, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments  # wherever it stands: it is often added to the end of a line that failed
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    try:
        with _terminated_like_interrupted(), log_to_stderr():
            return app(arguments, prog_name="gatestream", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if debug:
            import traceback
            traceback.print_exc()
        fault = _as_fault(error)
        if fault.exit_code:
            print("gatestream: error:", " ".join(str(fault).split()), file=sys.stderr)
        return fault.exit_code


def _as_fault(error: Exception) -> GatestreamError:
    if isinstance(error, GatestreamError):
        return error
    if isinstance(error, _ClickError):
        message = error.format_message().replace("Value error, ", "").rstrip(".")  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "gatestream"
        return UsageError(message[:1].lower() + message[1:], "the options and values the command takes",
                          f"see '{command} --help'")
    return GatestreamError(f"an unexpected {type(error).__name__}: {error}", "no such thing",
                           "this is a bug in gatestream: run it again with --debug and report what it prints")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that files are finished whenever it comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
