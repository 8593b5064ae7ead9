"""The command line. Thin: every command calls one function that scripts can call too.
Imports wait until a command needs them, so that help is instant and `run` never loads what training needs."""

import errno
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from engines.errors import GatestreamError, UsageError, first_line, is_interrupt, missing_package
from stream.commands import bench, data, evaluate, events, label, model, run, service, teach, train, ui
from stream.commands.interrupt import interruptible
from stream.commands.output import StandardOutput
from stream.commands.start import ForeignPackageError, __version__
from stream.notices import log_to_stderr

INTERRUPTED = 130  # exit code, as shells have it for Ctrl-C
PANELS = {
    "Recognise": "run record events label ui",
    "Many cameras": "serve camera keys tokens",
    "Models": "models doctor bench export import-official",
    "Train": "train teach evaluate data",
}


class _Commands(TyperGroup):
    """All commands, in panels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for title, names in PANELS.items():
            for name in names.split():
                command = self.commands[name] = self.commands.pop(name)  # to the end: the order in help
                command.rich_help_panel = title  # type: ignore[attr-defined]


app = typer.Typer(name="gatestream", cls=_Commands, no_args_is_help=True, rich_markup_mode="rich",
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
                  epilog="Exit codes: 0 fine, 1 a fault while running, 2 wrong use, 130 interrupted (Ctrl-C).")

# Wrong options, unknown commands and the like; typer carries its own copy of click or uses the installed one.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


def _show_versions(asked: bool) -> None:
    """Prints one line for the report of a fault, from what pip has installed: importing torch takes seconds."""
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    found = []
    for package in ("torch", "openvino"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    print(f"gatestream {__version__} (Python {python_version()}, {', '.join(found)})")
    raise typer.Exit


@app.callback()
def gatestream(
        version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_versions, help=(
            "Show the versions of gatestream, Python, torch and openvino, and exit."))] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False) -> None:
    """Recognises gestures and actions in live egocentric video.

    [bold]gatestream run[/bold] shows a simulated camera, [bold]gatestream run 0[/bold] your webcam.
    Every command explains itself with --help."""


for group in (run, ui, events, label, service, model, train, evaluate, teach):
    app.add_typer(group.commands)
app.add_typer(bench.commands, name="bench")
app.add_typer(data.commands, name="data")


def main(argv: Sequence[str] | None = None) -> int:
    """The program: runs a command and returns its exit code (0 fine, 1 a fault, 2 wrong use, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments  # wherever it stands: it is often added to the end of a line that failed
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    with StandardOutput() as output:
        try:
            with interruptible(), log_to_stderr():
                code = app(arguments, prog_name="gatestream", standalone_mode=False)
                output.flush()
            return code or 0
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except (Exception, SystemExit) as error:
            cause = error.__context__ if isinstance(error, SystemExit) else error
            if not isinstance(cause, Exception):
                raise
            if isinstance(cause, OSError) and output.reader_left(cause):  # typer and rich make SystemExit of it
                return 0
            return _report(cause, debug)


def _report(error: Exception, debug: bool) -> int:
    """Prints in one line what went wrong; returns the exit code."""
    if is_interrupt(error):
        return INTERRUPTED
    if debug:
        import traceback
        traceback.print_exception(error)
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
    if isinstance(error, ForeignPackageError):
        return GatestreamError(*error.parts)
    if (missing := missing_package(error)) is not None:
        return missing
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return GatestreamError(f"no space left for {error.filename or 'standard output'}", "space for it",
                               "free some, or choose another output")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{str(error.filename)[:40]!r}..., no such name", "a name that a file can have", "check it")
    # Torch raises RuntimeErrors of several kinds.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(
            "can't allocate memory|out of memory", str(error))):
        return GatestreamError(f"too little memory ({first_line(error)})", "more memory, or less to do at once",
                               "lower the batch, the size or the number of workers")
    return GatestreamError(f"an unexpected {type(error).__name__}: {error}", "no such thing",
                           "this is a bug in gatestream: run it again with --debug and report what it prints")
