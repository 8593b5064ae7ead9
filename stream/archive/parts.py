"""The folder of Parquet files that labelling writes, one for each video, whole or not at all: whoever reads Parquet
reads the folder as one table, at any time, and a second run knows what is done."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from engines.decoding.paths import is_hidden, printable
from engines.errors import SinkError, UsageError, imports_of
from engines.model.file import Model, whole_file
from stream.sinks.base import sink_errors

NUMBERS = ("started_at", "ended_at", "score", "duration_s", "frame_rate")
COLUMNS = ("path", "video", "head", "label", "started_at", "ended_at", "score", "error", "duration_s", "frame_rate",
           "model", "digest", "engine")
Existing = Literal["refuse", "resume", "overwrite"]
Row = dict[str, Any]
_KEY = b"gatestream"  # of what a file's metadata says of its video


class Part(NamedTuple):
    """What is known of a labelled video."""

    events: int
    error: str | None
    digest: str  # of the model
    version: list[int]  # of the video: its size and time of change


class LabelFolder:
    """An output folder. existing: what to do where there is one with labelled videos.
    Raises UsageError for another program's folder or file, for one that is not to be touched, and for one of another
    model that is to be resumed; SinkError."""

    def __init__(self, path: Path, archive: Path, model: Model, existing: Existing = "refuse") -> None:
        with imports_of("cluster", "Ray with pyarrow", "labelling"):
            import pyarrow
            from pyarrow import parquet
        self._pyarrow, self._parquet = pyarrow, parquet
        self.path, self._archive = path.expanduser(), archive
        self._same = {"model": model.contract.name, "digest": model.digest}  # in all rows
        self.parts: dict[str, Part] = {}  # by file name
        with sink_errors("opening", self.path):
            if self.path.is_file():
                raise UsageError(f"{path}, which is a file", "a new name, or a folder of gatestream label",
                                 "delete it, or choose another one")
            if not self.path.absolute().parent.is_dir():
                raise SinkError(f"output {path} has no folder {self.path.parent}", "a folder that exists",
                                f"create {self.path.parent} or choose another output")
            for leftover in self.path.glob(".*.parquet.*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            for file in self.path.iterdir() if self.path.exists() else ():
                if not is_hidden(file):
                    self.parts[file.name] = self._read(file)
        if self.parts and existing == "refuse":
            raise UsageError(f"{path}, in which {len(self.parts)} videos are labelled already", "a new name",
                             "go on with --resume, begin again with --overwrite, or choose another name")
        if existing == "overwrite":
            for name in self.parts:
                (self.path / name).unlink()
            self.parts = {}
        if others := {part.digest for part in self.parts.values()} - {model.digest}:
            raise UsageError(f"{path}, labelled by another model ({others.pop()[:8]})", f"this one's labels "
                             f"({model.digest[:8]})", "name that model, begin again with --overwrite, or choose "
                             "another name")

    def is_done(self, video: Path) -> bool:
        """Whether a video is labelled, and has not changed since; not so where it failed."""
        part = self.parts.get(self._name(video))
        return part is not None and part.error is None and part.version == _version(video)

    def part(self, video: Path) -> Part:
        """What is known of a video that is labelled."""
        return self.parts[self._name(video)]

    def write(self, video: Path, rows: Sequence[Row]) -> None:
        """Writes a video's rows, whose other columns are None. Raises SinkError."""
        name, error = self._name(video), next((row["error"] for row in rows if row.get("error")), None)
        part = Part(sum(row.get("label") is not None for row in rows), error, self._same["digest"], _version(video))
        schema = self._pyarrow.schema(
            [(column, self._pyarrow.float64() if column in NUMBERS else self._pyarrow.string()) for column in COLUMNS],
            metadata={_KEY: json.dumps(part._asdict()).encode()})
        table = self._pyarrow.Table.from_pylist(
            [{"video": printable(self._relative(video)), **self._same, **row} for row in rows], schema=schema)
        with sink_errors("writing", self.path):
            self.path.mkdir(exist_ok=True)
            with whole_file(self.path / name) as aside:
                self._parquet.write_table(table, aside)
        self.parts[name] = part

    def _read(self, file: Path) -> Part:
        try:
            return Part(**json.loads(self._parquet.read_schema(file).metadata[_KEY]))
        except (OSError, self._pyarrow.ArrowException, TypeError, KeyError, ValueError) as error:
            raise UsageError(f"{self.path}, in which there is {file.name}", "a new name, or a folder of gatestream "
                             "label", "choose another name") from error

    def _name(self, video: Path) -> str:
        """Of a video's file; it does not begin as names do that readers pass over."""
        relative = self._relative(video)
        words = re.sub(r"[^\w.-]+", "-", relative, flags=re.ASCII)[-80:].lstrip("._-")
        return f"{words}-{hashlib.sha256(relative.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}.parquet"

    def _relative(self, video: Path) -> str:
        return video.relative_to(self._archive).as_posix()


def _version(video: Path) -> list[int]:
    try:
        found = video.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
