"""Softmax regression that starts from a head instead of from zero, solved by L-BFGS.

A row's weights are drawn back to where they start (zero for a new label) by an L2 penalty; frozen rows stay there.
Features are standardised, so that their sizes do not matter.

Legend: N examples, D features, K labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Float64Array = NDArray[np.float64]

L2_CANDIDATES = (0.001, 0.003, 0.01, 0.03, 0.1)
FOLDS = 5  # of the cross-validation that chooses the penalty
MAX_STEPS = 60  # of L-BFGS: more change no answer


@dataclass(frozen=True)
class Examples:
    """What a head is fitted to."""

    features_ND: Float64Array
    target_NK: Float64Array  # wanted probabilities
    weight_N: Float64Array  # how much each example counts
    temperature_N: Float64Array  # that logits are divided by
    recording_N: NDArray[np.int64]  # that the example is of, -1 for none
    window_N: NDArray[np.bool_]  # whether it is a window's descriptor

    def select(self, which_N: NDArray[np.bool_]) -> Examples:
        """Some of the examples."""
        return Examples(*(column[which_N] for column in vars(self).values()))

    def concatenate(self, other: Examples) -> Examples:
        """These examples and the other ones."""
        return Examples(*map(np.concatenate, zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class LinearHead:
    """weight [K, D] and bias [K] of a linear head."""

    weight_KD: Float64Array
    bias_K: Float64Array

    def logits(self, features_ND: NDArray[np.floating]) -> Float64Array:
        """[N, K]."""
        return np.asarray(features_ND @ self.weight_KD.T + self.bias_K, np.float64)

    def scale(self, factor: float) -> LinearHead:
        """The head whose logits are this many times as large."""
        return LinearHead(factor * self.weight_KD, factor * self.bias_K)


def fit(examples: Examples, start: LinearHead, frozen_K: NDArray[np.bool_], l2_to_start: float,
        standardise: bool = True, steps: int = MAX_STEPS) -> LinearHead:
    """The head with the least mean cross-entropy plus l2_to_start / 2 times the squared distance from `start`.
    frozen_K: rows that stay as they are. To test on what was left out, `start` must not have been fitted to it."""
    D = examples.features_ND.shape[1]
    scale_D = examples.features_ND.std(axis=0) + 1e-3 if standardise else np.ones(D)
    centre_D = examples.features_ND.mean(axis=0) if standardise else np.zeros(D)
    X = np.column_stack([(examples.features_ND - centre_D) / scale_D, np.ones(len(examples.weight_N))])  # [N, D + 1]
    base_NK, target_NK = start.logits(examples.features_ND), examples.target_NK
    weight_N1 = (examples.weight_N / examples.weight_N.sum())[:, None]
    temperature_N1, shape = examples.temperature_N[:, None], (np.count_nonzero(~frozen_K), X.shape[1])

    def loss(flat: Float64Array) -> tuple[float, Float64Array]:
        """And its gradient."""
        direction_FX = flat.reshape(shape)
        logits_NK = base_NK.copy()
        logits_NK[:, ~frozen_K] += X @ direction_FX.T
        logp_NK = log_softmax(logits_NK / temperature_N1, axis=1)
        drawn_FX = l2_to_start * direction_FX
        drawn_FX[:, -1] = 0  # the bias is free
        slope_NK = weight_N1 / temperature_N1 * (np.exp(logp_NK) * target_NK.sum(axis=1, keepdims=True) - target_NK)
        value = (drawn_FX * direction_FX).sum() / 2 - (weight_N1 * target_NK * logp_NK).sum()
        return float(value), (slope_NK[:, ~frozen_K].T @ X + drawn_FX).ravel()

    solved = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B",
                      options={"maxiter": steps, "maxcor": steps, "ftol": 1e-12, "gtol": 1e-8})
    direction_FX = solved.x.reshape(shape)
    weight_KD, bias_K = start.weight_KD.copy(), start.bias_K.copy()
    found_FD = direction_FX[:, :-1] / scale_D
    weight_KD[~frozen_K] += found_FD
    bias_K[~frozen_K] += direction_FX[:, -1] - found_FD @ centre_D
    return LinearHead(weight_KD, bias_K)


def cross_validate(examples: Examples, start: LinearHead, frozen_K: NDArray[np.bool_], seed: int, l2_to_start: float,
                   learn_N: NDArray[np.bool_] | None = None, judge_N: NDArray[np.bool_] | None = None) -> float:
    """Mean cross-entropy on recordings left out, in folds drawn by `seed`; 0 for fewer than two recordings.
    learn_N, judge_N: examples that may be learnt from at all, and those to judge by; all if None."""
    every_N = np.ones(len(examples.weight_N), bool)
    learn_N, judge_N = every_N if learn_N is None else learn_N, every_N if judge_N is None else judge_N
    total = weight = 0.0
    for out_N in _folds(examples.recording_N, seed):
        head = fit(examples.select(~out_N & learn_N), start, frozen_K, l2_to_start)
        asked = examples.select(out_N & judge_N)
        logp_NK = log_softmax(head.logits(asked.features_ND) / asked.temperature_N[:, None], axis=1)
        total -= float(asked.weight_N @ (asked.target_NK * logp_NK).sum(axis=1))
        weight += float(asked.weight_N.sum())
    return total / weight if weight else 0.0


def _folds(recording_N: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which examples are left out, fold by fold; whole recordings, and never what has no recording."""
    recordings = np.unique(recording_N[recording_N >= 0])
    shuffled = np.random.default_rng(seed).permutation(recordings)
    folds = min(FOLDS, len(shuffled))
    for first in range(folds if folds > 1 else 0):
        yield np.isin(recording_N, shuffled[first::folds])
