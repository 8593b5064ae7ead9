"""Labels archives of videos, several at a time on as many machines as there are, with Ray.

    label(Path("archive"), Path("events.parquet"))          # gatestream label archive --out events.parquet

A row for each event; one row for a recording without events or that cannot be read. The rows are what `gatestream run`
reports of each file. They are written as videos finish."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import engines
from engines.decoding.paths import is_hidden, is_video, natural_key, printable
from engines.errors import EngineError, GatestreamError, UsageError, first_line
from stream.archive.parts import Existing, LabelFolder, Row
from stream.archive.ray import connect_ray
from stream.frame import Frame
from stream.recognizer import Recognizer
from stream.runner import recognize_file
from stream.sources.replay import is_recording

EVENT = ("head", "label", "started_at", "ended_at", "score")
POLL_S = 1.0
Progress = Callable[[int, int], None]  # videos that are done, videos in all


class LabelSummary(NamedTuple):
    """What was done."""

    recordings: int
    events: int
    failed: dict[str, str]  # recordings that could not be labelled, and why
    earlier: int  # of the recordings, those that an earlier run had labelled


class Labeller:
    """Labels one recording at a time; one of these in each worker."""

    def __init__(self, model: str, engine: str) -> None:
        self._model, self._engine = model, engine
        self._recognizer: Recognizer | None = None

    def prepare(self) -> Exception | None:
        """Builds the engine, once; returns what went wrong."""
        try:
            if self._recognizer is None:
                loaded = engines.load(self._model).require_taught()
                self._recognizer = Recognizer(loaded, engines.compile(loaded, engine=self._engine, slots=1))
        except Exception as error:
            return error if isinstance(error, GatestreamError) else EngineError(
                f"no engine ({type(error).__name__}: {first_line(error)})", "one that can be built",
                "see what gatestream doctor says")
        return None

    def label(self, name: bytes) -> list[Row]:
        """The rows of a recording."""
        file = Path(os.fsdecode(name))
        failed, path = self.prepare(), printable(file)
        if failed is not None or self._recognizer is None:
            return [{"path": path, "error": str(failed)}]
        engine, first, last = self._recognizer.engine, list[Frame](), list[Frame]()

        def see(frame: Frame) -> None:
            first[:] = first or [frame]
            last[:] = [frame]

        row: Row = {"path": path, "engine": f"{engine.name} {engine.precision}"}
        try:
            found = recognize_file(self._recognizer, file, path, see)
        except Exception as error:  # whatever it is costs this recording and no other one
            self._recognizer.reset(path)
            return [{**row, "error": str(error) if isinstance(error, GatestreamError) else
                     f"an unexpected {type(error).__name__}: {first_line(error)}"}]
        if first and (seconds := last[0].captured_at - first[0].captured_at) > 0:
            rate = (last[0].index - first[0].index) / seconds
            row |= {"frame_rate": rate, "duration_s": seconds + 1 / rate}
        events = [event.as_json() for event in found]
        return [{**row, **{part: event[part] for part in EVENT}} for event in events] or [row]


def find_recordings(folder: Path) -> list[Path]:
    """Videos and recordings below a folder. Raises UsageError where there are none."""
    found = sorted((path for path in folder.rglob("*") if path.is_file() and not is_hidden(path)
                    and (is_video(path) or is_recording(path))), key=natural_key)
    if not found:
        raise UsageError(f"{folder}, in which there is no video", "a folder of videos", "check the path")
    return found


def label(folder: Path, out: Path, model: str = "gesture", engine: str = "auto", workers: int | None = None,
          address: str | None = None, existing: Existing = "refuse",
          progress: Progress = lambda done, total: None) -> LabelSummary:
    """Labels every video below a folder and writes a folder of Parquet files, one for each, as they finish.
    workers: at a time, by default one for each two cores; address: of a running Ray cluster, whose machines see the
    folder at the same path; existing: what to do where `out` has labels: "refuse", "resume", or "overwrite".
    An error costs one video, a worker that dies too. Raises UsageError without Ray or videos or for an `out` that is
    not to be touched, EngineError, SinkError where `out` cannot be written."""
    paths = find_recordings(folder.resolve())
    output = LabelFolder(out, folder.resolve(), engines.load(model).require_taught(), existing)
    todo = [path for path in paths if not output.is_done(path)]
    earlier = len(paths) - len(todo)
    progress(earlier, len(paths))
    if todo:
        with connect_ray(address, log_to_driver=False) as ray:
            cores = int(ray.cluster_resources()["CPU"])
            at_a_time = min(workers or max(1, cores // 2), len(todo))
            start = partial(ray.remote(Labeller).options(num_cpus=max(1, cores // at_a_time)).remote, model, engine)
            for number, (path, rows) in enumerate(_label_each(ray, start, at_a_time, todo), earlier + 1):
                output.write(path, rows)
                progress(number, len(paths))
    parts = {printable(path): output.part(path) for path in paths}
    return LabelSummary(len(paths), sum(part.events for part in parts.values()),
                        {name: part.error for name, part in parts.items() if part.error is not None}, earlier)


def _label_each(ray: Any, start: Callable[[], Any], at_a_time: int,
                paths: Sequence[Path]) -> Iterator[tuple[Path, list[Row]]]:
    """The rows of each video, as they finish. start: makes a worker, one in the place of one that dies, too."""
    idle, waiting, busy = [start() for _ in range(at_a_time)], deque(paths), dict[Any, tuple[Any, Path]]()
    for failed in ray.get([worker.prepare.remote() for worker in idle]):
        if failed is not None:
            raise failed
    while waiting or busy:
        while idle and waiting:
            worker, path = idle.pop(), waiting.popleft()
            busy[worker.label.remote(os.fsencode(path))] = worker, path
        for answer in ray.wait(list(busy), timeout=POLL_S)[0]:
            worker, path = busy.pop(answer)
            try:
                rows = ray.get(answer)
            except ray.exceptions.RayError as error:
                worker, why = start(), f"its worker ended ({type(error).__name__}): too little memory, or a faulty file"
                rows = [{"path": printable(path), "error": why}]
            idle.append(worker)
            yield path, rows
