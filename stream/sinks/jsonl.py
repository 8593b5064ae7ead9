"""JSON lines: one record, one object, one line."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from stream.frame import Frame, Record
from stream.sinks.base import RefusedError, Sink, output_path, sink_errors, write_text


class JsonLines(Sink):
    """Writes every record as a line of strict JSON; each line can be read as soon as it is written.
    target: a file or "-" for standard output; append: to what the file has, instead of replacing it; then it is opened
    anew when it was moved away, by a log rotation say."""

    durable = True

    def __init__(self, target: str | Path, append: bool = False) -> None:
        self._own, self._append = str(target) != "-", append
        self._name = str(target) if self._own else "standard output"
        self._out: TextIO | None = sys.stdout
        if self._own:
            self._path = output_path(target)
            self._open()

    def _open(self) -> None:
        with sink_errors("opening", self._path):
            self._out = self._path.open("a" if self._append else "w", buffering=1, encoding="utf-8")

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if not records or self._out is None:
            return
        if self._append and not _is_open_as(self._out, self._path):
            self._out.close()
            self._open()
        try:
            lines = "".join(json.dumps(record.as_json(), separators=(",", ":"), allow_nan=False) + "\n"
                            for record in records)
        except ValueError as error:
            raise RefusedError("a record with a value that is not a finite number", "finite numbers (strict JSON)",
                            "check the model with gatestream doctor") from error
        write_text(self._out, lines, self._name)

    def close(self) -> None:
        out, self._out = self._out, None
        if out is not None and self._own:
            with suppress(OSError):  # write flushed every line: what is left is what it has failed on already
                out.close()


def _is_open_as(file: TextIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
