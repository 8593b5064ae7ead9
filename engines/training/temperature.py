"""The temperature that makes logits mean what they say (Guo et al., "On Calibration of Modern Neural Networks", 2017).

Logits are divided by one number per head, once for `now` and once for `window`. Imports no torch, as teaching does not.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

LATE = 0.75  # from this share of a clip on, its label can be known
GRID = np.exp(np.linspace(np.log(0.2), np.log(5.0), 161))

Logits = NDArray[np.float32]


def temperature(scored: Sequence[tuple[Logits, int]], doubt: float = 0.0) -> float:
    """The temperature with the least mean negative log-likelihood; 1 when there is nothing to fit.
    doubt: share of each truth that is spread evenly over all labels, see `doubt_of`."""
    if not scored:
        return 1.0
    logits_NK = np.stack([logits for logits, _ in scored]).astype(np.float64)
    rows_N, truth_N = np.arange(len(scored)), [label for _, label in scored]
    logp_of = [log_softmax(logits_NK / value, axis=1) for value in GRID]
    losses = [-(1 - doubt) * logp_NK[rows_N, truth_N].mean() - doubt * logp_NK.mean() for logp_NK in logp_of]
    return round(float(GRID[int(np.argmin(losses))]), 3)


def doubt_of(recordings: int) -> float:
    """How likely the next recording is wrong after so many, all of them right, by Jeffreys' prior. Without such doubt a
    few easy recordings ask for boundless certainty."""
    return 0.5 / (recordings + 1)


def binary_loss(logits_N: NDArray[np.float64], true_N: NDArray[np.float64]) -> float:
    """Mean negative log-likelihood of labels that are true with these probabilities; NaN: not known."""
    known = ~np.isnan(true_N)
    costs_N = np.logaddexp(0, logits_N[known]) - true_N[known] * logits_N[known]
    return float(costs_N.mean()) if known.any() else 0.0


def smooth(true_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Labels that are true (1) or not (0) as Platt asks for them: less sure the fewer there are of each."""
    right_K, wrong_K = ((true_NK == value).sum(axis=0) for value in (1, 0))
    return np.where(true_NK == 1, (right_K + 1) / (right_K + 2), np.where(true_NK == 0, 1 / (wrong_K + 2), true_NK))


def label_scales(scored: Sequence[tuple[Logits, NDArray[np.float64]]]
                 ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each label of a multi-label head a scale and a shift of its logits (Platt, 1999), [K] each; 1 and 0 for a
    label that was never true, or always."""
    logits_NK, true_NK = (np.stack(column).astype(np.float64) for column in zip(*scored, strict=True))
    scales_K, shifts_K = np.ones(logits_NK.shape[1]), np.zeros(logits_NK.shape[1])
    smooth_NK = smooth(true_NK)
    for k, logits_N in enumerate(logits_NK.T):
        if {0.0, 1.0} <= set(true_NK[:, k].tolist()):
            def cost(ab: NDArray[np.float64], z: NDArray[np.float64] = logits_N,
                     y: NDArray[np.float64] = smooth_NK[:, k]) -> float:
                return binary_loss(ab[0] * z + ab[1], y)
            scales_K[k], shifts_K[k] = minimize(cost, np.array([1.0, 0.0]), bounds=[(0.05, 20), (-20, 20)]).x
    return scales_K, shifts_K


def label_temperature(scored: Sequence[tuple[Logits, NDArray[np.float64]]]) -> float:
    """As `temperature`, of a multi-label head."""
    logits_NK, true_NK = (np.stack(column).astype(np.float64) for column in zip(*scored, strict=True))
    losses = [binary_loss((logits_NK / value).ravel(), smooth(true_NK).ravel()) for value in GRID]
    return round(float(GRID[int(np.argmin(losses))]), 3)
