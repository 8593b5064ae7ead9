"""How far two engines' calibrated scores are apart, on a clip that is the same everywhere.

    frames_u8 = probe_clip(contract)                         # rendered gestures, as the model's camera would see them
    compare(contract, eager_scores, other_scores) <= TOLERANCE

Legend: T frames, H W the contract's input size, K labels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from engines.model.contract import Contract
from engines.model.preprocess import prepare
from engines.runtime.engine import Engine, Floats

TOLERANCE = 0.01  # largest difference of calibrated probabilities between engines of one model
PROBE_FRAMES = 90
PROBE_SEED = 20


def probe_clip(contract: Contract, frames: int = PROBE_FRAMES) -> NDArray[np.uint8]:
    """Frames of a simulated camera at the contract's rate and size: uint8 BGR [T, H, W, 3]."""
    from engines.synthetic import Simulation

    camera = Simulation(PROBE_SEED, size_hw=(240, 320), rate=contract.frame_rate, idle_s=(0.2, 0.6))
    return np.stack([prepare(camera.frame(k), contract) for k in range(frames)])


def run_clip(engine: Engine, frames_u8_THWC: NDArray[np.uint8], slot: int = 0) -> dict[str, Floats]:
    """Logits [T, K] of every head for one camera, frame by frame from a fresh state."""
    engine.reset([slot])
    steps = [engine.step(frame[None], [slot]).scores for frame in frames_u8_THWC]
    return {head: np.concatenate([scores[head] for scores in steps]) for head in engine.contract.heads}


def probabilities(logits: Floats, temperature: float) -> Floats:
    """Calibrated softmax over the last axis."""
    scaled = logits / np.float32(temperature)
    exp = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True), dtype=np.float32)


def compare(contract: Contract, one: Mapping[str, Floats], other: Mapping[str, Floats]) -> float:
    """The largest difference of calibrated probabilities over all heads, frames and labels; inf where one is NaN."""
    worst = 0.0
    for head in contract.heads:
        temperature = contract.temperature.get(head, 1.0)
        apart = np.abs(probabilities(one[head], temperature) - probabilities(other[head], temperature)).max()
        worst = max(worst, float(apart) if np.isfinite(apart) else float("inf"))
    return worst
