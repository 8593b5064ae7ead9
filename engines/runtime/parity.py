"""How far an engine's results are from eager's, on a clip that is the same everywhere.
Legend: T frames, H W the contract's input size, D features, K labels of a head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.model.contract import Contract
from engines.model.preprocess import prepare
from engines.model.scores import calibrated
from engines.runtime.engine import Engine, Floats, StepResult

TOLERANCE = 0.01  # largest difference of calibrated probabilities between engines of one model
# Of logits and features, relative to their spread: probabilities of many labels, all small, would hide any error.
# In OpenVINO, f32 stays under 2e-4; bf16 has 0.02 on the bundled model, 0.5 on an untrained one with 174 flat labels.
SPREAD_TOLERANCE = 0.1
PROBE_FRAMES = 90
PROBE_SEED = 20


@dataclass(frozen=True, slots=True)
class Parity:
    """How far results are from eager's; infinite where one is not finite."""

    probabilities: float  # the largest difference of calibrated ones, over all heads, frames and labels
    logits: float  # RMS difference over the spread of labels and frames, of the head that is farthest off
    features: float  # RMS difference over the spread in time

    @property
    def holds(self) -> bool:
        """Whether an engine with such results may stand in for eager."""
        return self.probabilities <= TOLERANCE and max(self.logits, self.features) <= SPREAD_TOLERANCE

    def __or__(self, other: "Parity") -> "Parity":
        """The worse of two in each respect."""
        return Parity(max(self.probabilities, other.probabilities), max(self.logits, other.logits),
                      max(self.features, other.features))

    def __str__(self) -> str:
        return (f"{self.probabilities:.1e} in probabilities, {self.logits:.1e} in logits, {self.features:.1e} in "
                "features")


def probe_clip(contract: Contract, frames: int = PROBE_FRAMES) -> NDArray[np.uint8]:
    """Frames of a simulated camera at the contract's rate and size: uint8 BGR [T, H, W, 3]."""
    from engines.synthetic import Simulation

    camera = Simulation(PROBE_SEED, size_hw=(240, 320), rate=contract.frame_rate, idle_s=(0.2, 0.6))
    return np.stack([prepare(camera.frame(k), contract) for k in range(frames)])


def run_clip(engine: Engine, frames_u8_THWC: NDArray[np.uint8], slot: int = 0,
             company: Sequence[int] = ()) -> StepResult:
    """Features [T, D] and logits [T, K] for one camera, frame by frame from a fresh state.
    company: slots of cameras that see the same, before it in each step."""
    slots = [*company, slot]
    engine.reset(slots)
    steps = [engine.step(np.repeat(frame[None], len(slots), 0), slots) for frame in frames_u8_THWC]
    return StepResult(np.stack([step.features[-1] for step in steps]),
                      {head: np.stack([step.scores[head][-1] for step in steps]) for head in engine.contract.heads})


def compare(contract: Contract, wanted: StepResult, got: StepResult) -> Parity:
    """Compares what `run_clip` gave for the same frames; `wanted` is eager's."""
    logits = []
    for head in contract.heads:  # without what all labels of a frame share, which changes no probability
        one, other = (found.scores[head] - found.scores[head].mean(1, keepdims=True) for found in (wanted, got))
        logits.append(_relative(one - other, one))
    return Parity(probability_difference(contract, wanted.scores, got.scores), max(logits),
                  _relative(wanted.features - got.features, wanted.features - wanted.features.mean(0),
                            1e-3 * wanted.features))


def probability_difference(contract: Contract, one: Mapping[str, Floats], other: Mapping[str, Floats]) -> float:
    """The largest difference of calibrated probabilities over all heads, frames and labels; inf where one is NaN."""
    sides = ((calibrated(contract, head, side[head]) for side in (one, other))
             for head in contract.heads)
    return _finite(np.max([np.abs(left - right).max() for left, right in sides]))


def _relative(difference: Floats, *spreads: Floats) -> float:
    """RMS of a difference over the largest RMS of some spreads."""
    apart, *sizes = (np.sqrt(np.mean(np.square(each, dtype=np.float64))) for each in (difference, *spreads))
    return _finite(apart / max(*sizes, 1e-12))


def _finite(found: np.float64) -> float:
    return float(found) if np.isfinite(found) else float("inf")
