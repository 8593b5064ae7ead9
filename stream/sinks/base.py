"""The sink seam: where results go. One tiny interface; foreign exceptions become SinkError here."""

import hashlib
import json
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

import cv2

from engines.decoding.silence import discard_writes
from engines.errors import SinkError
from stream.frame import Frame, Record


class OutputClosed(SinkError):  # noqa: N818 - not a fault
    """Whoever read our output has left (`gatestream run --json - | head`): stop quietly, exit code 0."""

    exit_code = 0


class RefusedError(SinkError):
    """A record that whoever gets it will never take, however often it is sent."""


class Sink(ABC):
    """Writes results somewhere; used as a context manager, so that files are always finished.
    Its constructor refuses a path that cannot be written. It belongs to one thread at a time."""

    durable = False
    """Whether `write` returns, for a closed event or a gap, only when whoever gets it has it. A service then sends
    these one by one, in order, from its log: again after a SinkError, never again after a RefusedError."""
    takes_lasting_only = False
    """Whether it passes over everything but closed events and gaps."""
    fault: str | None = None
    """Why nothing gets through now, where the sink knows."""

    @abstractmethod
    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        """Takes one camera frame and the records it caused, often none.
        frame: None for records without an image (end of the stream, summary). Raises SinkError when the records cannot
        be written, OutputClosed when nobody reads them any more."""

    @abstractmethod
    def close(self) -> None:
        """Finishes the output so that others can read it. Closing twice does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def sink_errors(what: str, target: Path | str) -> Iterator[None]:
    """Turns the exceptions of files, SQLite and OpenCV into SinkError; `what` is being done to `target`."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed(f"no reader for {target}", "a reader that stays until the end",
                           "nothing to do if it had seen enough") from error
    except (OSError, sqlite3.Error, cv2.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        raise SinkError(f"{what} {target} failed: {' '.join(reason.split())}", "an output that can be written",
                        "check the folder, permissions and free space, or choose another output") from error


def output_path(target: str | Path) -> Path:
    """The path of an output file whose folder exists and which is no folder itself; else SinkError."""
    path = Path(target).expanduser()
    with sink_errors("writing", path):
        if path.is_dir():
            raise SinkError(f"output {path} is a folder", "a file name", "add a file name to the folder")
        if not path.parent.is_dir():
            raise SinkError(f"output {path} has no folder {path.parent}", "a folder that exists",
                            f"create {path.parent} or choose another output")
    return path


def plain_name(name: str, illegal: str = r"[^\w-]+", most: int | None = None) -> str:
    """A name as part of a topic or a file's name, up to `most` characters long; where that is not the name itself, four
    hexadecimal digits at the end tell it from others."""
    plain = re.sub(illegal, "-", name)[:most].strip("-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:4]}".lstrip("-")


def to_json(record: Record) -> str:
    """A record as a line of strict JSON, without its end. Raises RefusedError for a value that is no finite number."""
    try:
        return json.dumps(record.as_json(), separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise RefusedError("a record with a value that is not a finite number", "finite numbers (strict JSON)",
                           "check the model with gatestream doctor") from error


def write_text(out: IO[str], text: str, name: str) -> None:
    """Writes and flushes; SinkError when that fails, OutputClosed when the reader has left."""
    try:
        with sink_errors("writing", name):
            out.write(text)
            out.flush()
    except OutputClosed:
        # What is buffered goes to nowhere: Python would try again at exit, and complain.
        with suppress(OSError, ValueError):
            discard_writes(out.fileno())
        raise
