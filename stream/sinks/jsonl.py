"""JSON lines: one record, one object, one line."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from engines.errors import SinkError
from stream.frame import Frame, Record
from stream.sinks.base import Sink, output_path, sink_errors, write_text


class JsonLines(Sink):
    """Writes every record as a line of strict JSON; each line can be read as soon as it is written.
    target: a file (replaced) or "-" for standard output."""

    def __init__(self, target: str | Path) -> None:
        self._own = str(target) != "-"
        self._name = str(target) if self._own else "standard output"
        self._out: TextIO | None = sys.stdout
        if self._own:
            path = output_path(target)
            with sink_errors("opening", path):
                self._out = path.open("w", buffering=1, encoding="utf-8")

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if not records or self._out is None:
            return
        try:
            lines = "".join(json.dumps(record.as_json(), separators=(",", ":"), allow_nan=False) + "\n"
                            for record in records)
        except ValueError as error:
            raise SinkError("a record with a value that is not a finite number", "finite numbers (strict JSON)",
                            "check the model with gatestream doctor") from error
        write_text(self._out, lines, self._name)

    def close(self) -> None:
        out, self._out = self._out, None
        if out is not None and self._own:
            with suppress(OSError):  # write flushed every line: what is left is what it has failed on already
                out.close()
