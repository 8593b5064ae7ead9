"""A video file, recognised as `gatestream run` does it, for a page to show: events, curves, files to take away."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path

from stream.evaluation.metrics import lanes
from stream.frame import Event, Frame, Prediction, Record
from stream.recognizer import Recognizer
from stream.runner import run
from stream.sinks.base import Sink
from stream.sinks.export import export
from stream.sinks.log import EventLog, read_events
from stream.sinks.overlay import label_colour
from stream.sinks.video import AnnotatedVideo
from stream.sources import open_path

FORMATS = ("csv", "jsonl", "vtt")
POINTS = 300  # of a curve, at most
SEEN_FROM = 0.2  # a label that never scores this much has no curve


@dataclass(frozen=True)
class VideoResults:
    """What was found in a video."""

    events: list[Event]
    seconds: float  # the video's length
    curves: list[tuple[float, str, float]]  # time, label, highest score of the window by then
    annotated: Path  # the video with what was recognised drawn in
    files: list[Path]  # events in each of FORMATS


def recognize_video(recognizer: Recognizer, video: Path, folder: Path,
                    progress: Callable[[float], None]) -> VideoResults:
    """Recognises a video and writes files into a folder. Memory does not grow with the video's length.

    progress: takes the share that is done. Raises UsageError, SourceError for what cannot be read, SinkError."""
    contract = recognizer.contract
    log, annotated = folder / "events.db", folder / f"{video.stem}-annotated.mp4"
    with ExitStack() as stack:
        source = stack.enter_context(open_path(video, camera=video.name, policy="every"))
        curves = _Curves(contract.background)
        run(source, recognizer, [stack.enter_context(sink) for sink in (
            EventLog(log, contract.name, video.name), AnnotatedVideo(annotated, source.info.fps, contract.background),
            curves, _Progress(source.info.frames, progress))])
    files = []
    for form in FORMATS:
        files.append(folder / f"{video.stem}.{form}")
        with files[-1].open("w", encoding="utf-8", newline="") as out:
            export(log, out, form)
    return VideoResults([one.event for one in read_events(log)], curves.seconds, curves.rows(), annotated, files)


def render_track(found: VideoResults, player: str) -> str:
    """The events as HTML: a line of time with a button for each, which makes the player (a CSS selector) jump there."""
    parts, lane_of = [], lanes(found.events)
    tall = 24 / max([1, *(lane + 1 for lane in lane_of)])  # pixels
    for event, lane in zip(found.events, lane_of, strict=True):
        left = 100 * event.started_at / max(found.seconds, 1e-9)
        width = 100 * (event.ended_at - event.started_at) / max(found.seconds, 1e-9)
        colour = "rgb({}, {}, {})".format(*label_colour(event.label))
        jump = f"const v = document.querySelector('{player}'); if (v) {{ v.currentTime = {event.started_at:.2f}; }}"
        label = escape(f"{event.label}, {event.started_at:.1f} to {event.ended_at:.1f} s, score {event.score:.2f}")
        style = f"left:{left:.2f}%;width:max(6px,{width:.2f}%);top:{4 + tall * lane:.0f}px;height:{tall:.0f}px"
        parts.append(f'<button type="button" title="{label}" aria-label="{label}" onclick="{escape(jump)}" '
                     f'style="{style};background:{colour}">{escape(event.label)}</button>')
    return f'<div class="event-track">{"".join(parts)}</div>'


class _Curves(Sink):
    """The highest window score of each label in each of at most POINTS equal parts of the time so far."""

    def __init__(self, background: str | None) -> None:
        self._background = background
        self._cells: list[dict[str, float]] = []
        self._cell_s = 0.25
        self._first_at: float | None = None
        self.seconds = 0.0

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if frame is None:
            return
        self._first_at = frame.captured_at if self._first_at is None else self._first_at
        self.seconds = max(self.seconds, frame.captured_at - self._first_at)
        for record in records:
            if isinstance(record, Prediction):
                self._take(record)

    def _take(self, prediction: Prediction) -> None:
        place = int(self.seconds / self._cell_s)
        while place >= POINTS:  # twice as long parts from now on
            self._cells = [_highest(self._cells[i:i + 2]) for i in range(0, len(self._cells), 2)]
            self._cell_s *= 2
            place = int(self.seconds / self._cell_s)
        self._cells += [{} for _ in range(place + 1 - len(self._cells))]
        scores = {label: score for head in prediction.heads.values() for label, score in head.window
                  if label != self._background}
        self._cells[place] = _highest([self._cells[place], scores])

    def rows(self) -> list[tuple[float, str, float]]:
        """Time, label, score, of the labels that were ever likely."""
        seen = [label for label, score in _highest(self._cells).items() if score >= SEEN_FROM]
        return [((k + 0.5) * self._cell_s, label, round(cell.get(label, 0.0), 4))
                for k, cell in enumerate(self._cells) for label in seen]

    def close(self) -> None:
        pass


class _Progress(Sink):
    """Reports what share of the frames is done, where their number is known."""

    def __init__(self, frames: int | None, report: Callable[[float], None]) -> None:
        self._frames, self._report = frames, report

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        if frame is not None and self._frames and frame.index % 30 == 29:
            self._report(min(1.0, (frame.index + 1) / self._frames))

    def close(self) -> None:
        pass


def _highest(cells: Sequence[dict[str, float]]) -> dict[str, float]:
    return {label: max(cell.get(label, 0.0) for cell in cells) for label in dict.fromkeys(chain(*cells))}
