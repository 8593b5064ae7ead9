"""From logits to probabilities, the same for engines, training and streams. No torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.model.contract import Contract


def probabilities(logits: NDArray[Any], temperature: float = 1.0, multi_label: bool = False) -> NDArray[np.float64]:
    """Softmax over the last axis of logits divided by a (calibration) temperature; of a multi-label head, sigmoid."""
    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return np.asarray(np.exp(-np.logaddexp(0, -scaled)))
    odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))


def calibrated(contract: Contract, head: str, logits: NDArray[Any], *, window: bool = False) -> NDArray[np.float64]:
    """Probabilities of a head's logits at one frame, or of a window."""
    temperature = (contract.window_temperature if window else contract.temperature).get(head, 1.0)
    return probabilities(logits, temperature, head in contract.multi_label)
