"""Softmax regression that starts from a head instead of from zero, solved by L-BFGS.

A row's weights are drawn back to where they start (zero for a new label) by an L2 penalty; frozen rows stay there.
Features are standardised, so that their sizes do not matter.

Legend: N examples, D features, K labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

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


def fit(examples: Examples, start: LinearHead, frozen_K: NDArray[np.bool_], l2_to_start: float) -> LinearHead:
    """The head with the least mean cross-entropy plus l2_to_start / 2 times the squared distance from `start`.
    frozen_K: rows that stay as they are. To test on what was left out, `start` must not have been fitted to it."""
    free = torch.from_numpy(~frozen_K)
    scale_D = examples.features_ND.std(axis=0) + 1e-3
    centre_D = examples.features_ND.mean(axis=0)
    X = torch.from_numpy((examples.features_ND - centre_D) / scale_D)
    base_NK = torch.from_numpy(start.logits(examples.features_ND))
    target, weight = torch.from_numpy(examples.target_NK), torch.from_numpy(examples.weight_N / examples.weight_N.sum())
    inverse_temperature = torch.from_numpy(1 / examples.temperature_N)[:, None]
    direction_FD, direction_F = (torch.from_numpy(np.zeros_like(part[~frozen_K])).requires_grad_()
                     for part in (start.weight_KD, start.bias_K))
    solver = torch.optim.LBFGS([direction_FD, direction_F], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        logits = base_NK.clone()
        logits[:, free] += X @ direction_FD.T + direction_F
        loss_N = F.cross_entropy(logits * inverse_temperature, target, reduction="none")
        value = (weight * loss_N).sum() + l2_to_start / 2 * (direction_FD ** 2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    weight_KD, bias_K = start.weight_KD.copy(), start.bias_K.copy()
    found = direction_FD.detach().numpy() / scale_D
    weight_KD[~frozen_K] += found
    bias_K[~frozen_K] += direction_F.detach().numpy() - found @ centre_D
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
        logits_NK = torch.from_numpy(head.logits(asked.features_ND) / asked.temperature_N[:, None])
        loss_N = F.cross_entropy(logits_NK, torch.from_numpy(asked.target_NK), reduction="none")
        total += float(asked.weight_N @ loss_N.numpy())
        weight += float(asked.weight_N.sum())
    return total / weight if weight else 0.0


def _folds(recording_N: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which examples are left out, fold by fold; whole recordings, and never what has no recording."""
    recordings = np.unique(recording_N[recording_N >= 0])
    shuffled = np.random.default_rng(seed).permutation(recordings)
    folds = min(FOLDS, len(shuffled))
    for first in range(folds if folds > 1 else 0):
        yield np.isin(recording_N, shuffled[first::folds])
