"""Whether a changed model may go live: it has to find the events of a recording that the one before it found."""

from __future__ import annotations

from pathlib import Path

from engines.errors import FrameError, ModelError
from engines.training.metrics import event_f1, matched
from stream.frame import Event, Frame
from stream.recognizer import Recognizer
from stream.sources import open_source

CAMERA = "gate"
OVERLAP = 0.5  # of two events, intersection over union, that are the same one


def events_of(recognizer: Recognizer, recording: Path) -> list[Event]:
    """The events in a recording. Raises UsageError or SourceError where it cannot be read."""
    closed: list[Event] = []
    with open_source(str(recording), camera=CAMERA, policy="every") as source:
        for frame in source.frames():
            if not isinstance(frame, Frame):
                continue
            try:
                caused = recognizer.push(frame.image_bgr, frame.captured_at, CAMERA, frame.index, frame.lost)
            except FrameError:
                continue
            closed += [item for item in caused if isinstance(item, Event) and not item.open]
    return closed + recognizer.flush(CAMERA)


def check(wanted: list[Event], found: list[Event], least_f1: float, recording: Path) -> None:
    """Raises ModelError unless the events agree: their F1, of label and time, is `least_f1` at least."""
    if not wanted and not found:
        return
    agreement = event_f1(wanted, found, OVERLAP)
    if agreement < least_f1:
        same = len(matched(wanted, found, OVERLAP))
        raise ModelError(f"a model that finds {same} of {len(wanted)} events in {recording}, and {len(found) - same} "
                         f"others (F1 {agreement:.2f})", f"an F1 of {least_f1:g} or more",
                         "train it further, or allow a lower F1 under [gate]")
