"""What following two hands costs on this machine, by a stream's own frames. Figures are milliseconds of one core's
processor time: the models run in the thread that asks them, and other work on the machine does not count."""

import time
from typing import Any

from engines.bench.overhead import Figures, percentiles
from engines.decoding.images import Image
from engines.hands import Hands, HandTracker, hand_features
from engines.hands.crop import Square
from engines.hands.models import HandModels, Landmarks, find_models
from engines.hands.palms import Palm


class _TimedModels(HandModels):
    """Notes the seconds of each run, the cutting out of its input and the reading of its outputs included."""

    def __init__(self) -> None:
        super().__init__(*find_models())
        self.detector_s: list[float] = []
        self.landmarks_s: list[float] = []

    def detect(self, image_bgr: Image) -> tuple[Square, list[Palm]]:
        began = time.thread_time()
        found = super().detect(image_bgr)
        self.detector_s.append(time.thread_time() - began)
        return found

    def landmarks(self, image_bgr: Image, square: Square) -> Landmarks:
        began = time.thread_time()
        found = super().landmarks(image_bgr, square)
        self.landmarks_s.append(time.thread_time() - began)
        return found


class HandBench:
    """Follows the hands of one stream and takes the time. Raises UsageError where the models are not installed."""

    def __init__(self) -> None:
        self._models = _TimedModels()
        self._tracker = HandTracker(self._models)
        self._frame_s: tuple[list[float], ...] = [], [], []  # of frames with 0, 1, 2 hands
        self._followed_s: list[float] = []  # of those with 2 that were there before: none is searched for

    def step(self, image_bgr: Image) -> Hands:
        """The hands in the next frame."""
        began, searches = time.thread_time(), len(self._models.detector_s)
        hands = self._tracker.step(image_bgr)
        hand_features(hands)
        took_s, count = time.thread_time() - began, int((hands.presence > 0).sum())
        self._frame_s[count].append(took_s)
        if count == 2 and len(self._models.detector_s) == searches:
            self._followed_s.append(took_s)
        return hands

    def report(self) -> dict[str, Any]:
        """Times of the two models and of whole frames by the hands in them, with how often each was; None for what did
        not come up."""
        rows = {"palm detector": self._models.detector_s, "landmarks of a hand": self._models.landmarks_s,
                **{f"frame with {count} hands": seconds for count, seconds in enumerate(self._frame_s)},
                "two hands followed": self._followed_s,
                "frame": [seconds for row in self._frame_s for seconds in row]}
        times: dict[str, Figures | None] = {name: percentiles(seconds) if seconds else None
                                            for name, seconds in rows.items()}
        return {"frames": sum(map(len, self._frame_s)), "times": {name: len(row) for name, row in rows.items()},
                "ms": times}


def format_lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    lines = [f"{report['frames']} frames", f"{'ms':24} {'times':>7} {'p50':>8} {'p95':>8} {'mean':>8}"]
    return lines + [f"{name:24} {report['times'][name]:7} {row['p50']:8.3f} {row['p95']:8.3f} {row['mean']:8.3f}"
                    for name, row in report["ms"].items() if row is not None]
