"""Whether memory stays flat: hours of the simulated camera through a recogniser, as fast as the machine goes."""

import os
import sys
from collections.abc import Sequence

import numpy as np

from engines.errors import UsageError
from stream.frame import Frame, Prediction
from stream.recognizer import Recognizer
from stream.service.worker.processes import resident_bytes
from stream.sources import open_source

WARM_UP = 0.2  # share of the run in which memory may still grow


def soak(model: str, minutes: float, engine: str) -> str:
    """Simulates `minutes` of stream; says how memory, sampled each second of it, grew. Raises UsageError off Linux."""
    if not resident_bytes(os.getpid()):
        raise UsageError(f"a memory watch on {sys.platform}", "Linux", "leave --soak out here")
    times, resident, predictions = list[float](), list[float](), 0
    source = open_source(f"sim://gestures?realtime=0&seconds={60 * minutes}", camera="soak")
    with Recognizer.open(model, engine=engine, slots=1) as recognizer, source:
        for frame in (item for item in source.frames() if isinstance(item, Frame)):
            items = recognizer.push(frame.image_bgr, frame.captured_at, "soak")
            predictions += sum(isinstance(one, Prediction) for one in items)
            if frame.captured_at >= len(times):
                times.append(frame.captured_at)
                resident.append(resident_bytes(os.getpid()) / 2**20)
    return (f"{times[-1] / 60:.1f} minutes of stream, {predictions} predictions: {resident[-1]:.0f} MB resident "
            f"(largest {max(resident):.0f}), growing {slope_mb_per_minute(times, resident):+.3f} MB a minute")


def slope_mb_per_minute(times_s: Sequence[float], resident_mb: Sequence[float]) -> float:
    """Growth of memory after the warm-up, by a straight line."""
    settled = int(WARM_UP * len(times_s))
    return 60 * float(np.polyfit(times_s[settled:], resident_mb[settled:], 1)[0])
