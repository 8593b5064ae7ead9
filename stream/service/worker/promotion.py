"""Whether a new model may replace the running one."""

from pathlib import Path

from engines.errors import ModelError
from stream.evaluation.metrics import event_f1, match
from stream.frame import Event

OVERLAP = 0.5  # intersection over union from which two events are the same


def check_promotion(expected: list[Event], found: list[Event], least_f1: float, recording: Path) -> None:
    """Compares a new model's events in a recording with the running one's. Raises ModelError for a smaller F1."""
    agreement = event_f1(expected, found, OVERLAP)  # NaN, which is not less, where neither has any
    if agreement < least_f1:
        same = len(match(expected, found, OVERLAP))
        raise ModelError(f"a model that finds {same} of {len(expected)} events in {recording}, and {len(found) - same} "
                         f"others (F1 {agreement:.2f})", f"an F1 of {least_f1:g} or more",
                         "train it further, or allow a lower F1 under [gate]")
