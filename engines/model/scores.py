"""From logits to probabilities, the same for engines, training and streams. No torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def probabilities(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax over the last axis of logits divided by a (calibration) temperature."""
    scaled = logits.astype(np.float64) / temperature
    odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))
