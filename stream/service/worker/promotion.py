"""Whether a changed model may go live: it has to find the events of a recording that the one before it found."""

from __future__ import annotations

from pathlib import Path

from engines.errors import ModelError
from stream.evaluation.metrics import event_f1, match
from stream.frame import Event

OVERLAP = 0.5  # of two events, intersection over union, that are the same one


def check(wanted: list[Event], found: list[Event], least_f1: float, recording: Path) -> None:
    """Raises ModelError unless the events agree: their F1, of label and time, is `least_f1` at least."""
    if not wanted and not found:
        return
    agreement = event_f1(wanted, found, OVERLAP)
    if agreement < least_f1:
        same = len(match(wanted, found, OVERLAP))
        raise ModelError(f"a model that finds {same} of {len(wanted)} events in {recording}, and {len(found) - same} "
                         f"others (F1 {agreement:.2f})", f"an F1 of {least_f1:g} or more",
                         "train it further, or allow a lower F1 under [gate]")
