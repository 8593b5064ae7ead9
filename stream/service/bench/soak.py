"""Does memory stay flat? Hours of the simulated camera through a recogniser, as fast as the machine goes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.errors import UsageError
from stream.frame import Frame, Prediction
from stream.recognizer import Recognizer
from stream.sources import open_source

WARM_UP = 0.2  # share of the run in which memory may still grow


@dataclass(frozen=True)
class Soak:
    """minutes of stream time; resident memory in MB at the end, its largest value, its growth per stream minute after
    the warm-up; predictions made."""

    minutes: float
    resident_mb: float
    largest_mb: float
    slope_mb_per_minute: float
    predictions: int


def soak(model: str, minutes: float, engine: str = "auto") -> Soak:
    """Runs `minutes` of simulated stream and watches resident memory once a stream second."""
    times: list[float] = []
    resident: list[float] = []
    predictions = 0
    source = open_source(f"sim://gestures?realtime=0&seconds={60 * minutes}", camera="soak")
    with Recognizer.open(model, engine=engine, slots=1) as recognizer, source:
        for item in source.frames():
            if not isinstance(item, Frame):
                continue
            items = recognizer.push(item.image_bgr, item.captured_at, "soak")
            predictions += sum(isinstance(one, Prediction) for one in items)
            if item.captured_at >= len(times):
                times.append(item.captured_at)
                resident.append(resident_mb())
    settled = int(WARM_UP * len(times))
    slope = np.polyfit(times[settled:], resident[settled:], 1)[0] * 60
    return Soak(times[-1] / 60, resident[-1], max(resident), float(slope), predictions)


def resident_mb() -> float:
    """Resident memory of this process. Linux only: UsageError elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise UsageError(f"a memory watch on {sys.platform}", "Linux", "leave --soak out here")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
