"""The command line. Thin: every command calls one function that scripts can call too.

Imports wait until a command needs them, so that help is instant and `run` never loads what training needs.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from engines.errors import GatestreamError, UsageError
from stream.commands import data, evaluate, events, model, run, service, teach, train, ui
from stream.notices import log_to_stderr

app = typer.Typer(name="gatestream", no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})

# Wrong options, unknown commands and the like; typer carries its own copy of click or uses the installed one.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


@app.callback()
def gatestream(debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False) -> None:
    """Recognises gestures and actions in live egocentric video.

    [bold]gatestream run[/bold] shows a simulated camera, [bold]gatestream run 0[/bold] your webcam.
    Every command explains itself with --help.
    """


for group in (run, ui, events, service, model, train, evaluate, teach):
    app.add_typer(group.commands)
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
