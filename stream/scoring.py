"""From one engine step to calibrated probabilities of this frame and of the window.
Legend: D features of a frame, K labels of a head."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.model.file import Model
from engines.model.pooling import StatisticsWindow
from engines.model.scores import probabilities
from engines.runtime.engine import StepResult
from stream.frame import Ranked
from stream.window import ClipWindow, Floats, Window

TOP = 5  # labels of a Prediction, per head
Probs = NDArray[Any]


class Scores(NamedTuple):
    """Scores of one tick."""

    now: dict[str, Probs]  # probabilities [K] of each head at this frame
    window: dict[str, Probs]  # and over the sliding window
    gates: tuple[float, ...]  # of each clip in the window, oldest first
    features_D: Floats  # of this frame
    descriptor_D: Floats  # of the window; empty of a model whose heads are pooled


class Scorer:
    """Scores the steps of one camera and keeps its window."""

    def __init__(self, model: Model) -> None:
        self._model, self._contract = model, model.contract
        self._clip_window = ClipWindow(self._contract.window_clips, model.clip_fusion)
        self._window: Window | None = None  # made at the first step, when D is known
        self._statistics: StatisticsWindow | None = None  # likewise

    def score(self, result: StepResult) -> Scores:
        """Takes a step of this camera alone (B = 1)."""
        contract, features_D = self._contract, result.features[0]
        gates: tuple[float, ...] = ()
        if contract.pooling is not None:
            descriptor_D = features_D[:0]
            now_logits, window_logits = self._pool(features_D, contract.pooling.now_clips)
        else:
            descriptor_D, gates_C = self._fuse(result)
            gates = tuple(gates_C.tolist())
            now_logits = {head: logits[0] for head, logits in result.scores.items()}
            window_logits = self._model.head_logits(descriptor_D)
        now = {head: probabilities(now_logits[head], contract.temperature.get(head, 1.0)) for head in contract.heads}
        window = {head: probabilities(window_logits[head], contract.window_temperature.get(head, 1.0))
                  for head in contract.heads}
        return Scores(now, window, gates, features_D, descriptor_D)

    def _pool(self, features_D: Floats, now_clips: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        contract, heads = self._contract, self._model.pooled_heads
        pool = self._statistics = self._statistics or StatisticsWindow(contract.clip_frames, contract.window_clips,
                                                                       len(features_D))
        pool.push(features_D)
        now_X, window_X = pool.statistics(now_clips), pool.statistics(contract.window_clips)
        return ({head: heads[head, "now"].logits(now_X) for head in contract.heads},
                {head: heads[head, "window"].logits(window_X) for head in contract.heads})

    def _fuse(self, result: StepResult) -> tuple[Floats, Floats]:
        contract, features_D = self._contract, result.features[0]
        if result.spans is not None:
            return self._clip_window.push(features_D, result.spans[0])
        self._window = self._window or Window(contract.clip_frames, contract.window_clips, len(features_D),
                                              self._model.clip_fusion)
        return self._window.push(features_D)

    def reset(self) -> None:
        """Empties the window."""
        self._clip_window.reset()
        if self._statistics is not None:
            self._statistics.reset()
        if self._window is not None:
            self._window.reset()


def top_labels(labels: tuple[str, ...], probs_K: Probs) -> Ranked:
    """The TOP labels with their probabilities, best first."""
    return tuple((labels[index], float(probs_K[index])) for index in np.argsort(-probs_K, kind="stable")[:TOP])
