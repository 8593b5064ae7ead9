"""JSON lines: one record, one object, one line."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from stream.frame import Frame, Record
from stream.sinks.base import Sink, output_path, sink_errors, to_json, write_text


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
        write_text(self._out, "".join(f"{to_json(record)}\n" for record in records), self._name)

    def close(self) -> None:
        out, self._out = self._out, None
        if out is not None and self._own:
            with suppress(OSError):  # write flushed every line: what is left is what it has failed on already
                out.close()


def _is_open_as(file: TextIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
