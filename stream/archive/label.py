"""Labels archives of videos, several at a time on as many machines as there are, with Ray Data.

    label(Path("archive"), Path("events.parquet"))          # gatestream label archive --out events.parquet

A row for each event; one row for a recording without events or that cannot be read. The rows are what `gatestream run`
reports of each file."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import engines
from engines.decoding.paths import is_hidden, is_video, natural_key, printable
from engines.errors import GatestreamError, UsageError
from stream.archive.ray import connect_ray
from stream.recognizer import Recognizer
from stream.runner import recognize_file
from stream.sinks.base import output_path, sink_errors
from stream.sources.replay import is_recording

NO_EVENT = dict.fromkeys(("head", "label", "started_at", "ended_at", "score"))


class LabelSummary(NamedTuple):
    """What was done."""

    recordings: int
    events: int
    failed: dict[str, str]  # recordings that could not be read, and why


class Labeller:
    """Labels one recording at a time; one of these in each worker."""

    def __init__(self, model: str, engine: str) -> None:
        loaded = engines.load(model).require_taught()
        self._recognizer = Recognizer(loaded, engines.compile(loaded, engine=engine, slots=1))

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a recording: {"file": bytes} -> path, head, label, started_at, ended_at, score, error."""
        file = Path(os.fsdecode(row["file"]))  # tables hold UTF-8 only, names of files any bytes
        path = printable(file)
        try:
            found = recognize_file(self._recognizer, file, path)
        except GatestreamError as error:
            self._recognizer.reset(path)
            return [{"path": path, **NO_EVENT, "error": str(error)}]
        return [{"path": path, **{name: event[name] for name in NO_EVENT}, "error": None}
                for event in (event.as_json() for event in found)] or [{"path": path, **NO_EVENT, "error": None}]


def find_recordings(folder: Path) -> list[Path]:
    """Videos and recordings below a folder. Raises UsageError where there are none."""
    found = sorted((path for path in folder.rglob("*") if path.is_file() and not is_hidden(path)
                    and (is_video(path) or is_recording(path))), key=natural_key)
    if not found:
        raise UsageError(f"{folder}, in which there is no video", "a folder of videos", "check the path")
    return found


def label(folder: Path, out: Path, model: str = "gesture", engine: str = "auto", workers: int | None = None,
          address: str | None = None) -> LabelSummary:
    """Labels every video below a folder and writes one Parquet file.
    workers: at a time, by default one for each two cores; address: of a running Ray cluster, whose machines see the
    folder at the same path. Raises UsageError without Ray or videos, SinkError where `out` cannot be written."""
    target, paths = output_path(out), [path.resolve() for path in find_recordings(folder)]
    with connect_ray(address) as ray:
        data: Any = importlib.import_module("ray.data")
        data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        cores = int(ray.cluster_resources()["CPU"])
        at_a_time = min(workers or max(1, cores // 2), len(paths))
        files = data.from_items([{"file": os.fsencode(path)} for path in paths], override_num_blocks=len(paths))
        rows = files.flat_map(Labeller, fn_constructor_args=(model, engine), concurrency=at_a_time,
                              num_cpus=max(1, cores // at_a_time)).take_all()
    import pyarrow  # comes with Ray Data
    from pyarrow import parquet

    rows.sort(key=lambda row: (row["path"], row["started_at"] or 0.0))
    schema = pyarrow.schema([(name, pyarrow.float64() if name in ("started_at", "ended_at", "score") else
                              pyarrow.string()) for name in ("path", *NO_EVENT, "error")])
    with sink_errors("writing", target):
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), target)
    return LabelSummary(len(paths), sum(row["label"] is not None for row in rows),
                    {row["path"]: row["error"] for row in rows if row["error"] is not None})
