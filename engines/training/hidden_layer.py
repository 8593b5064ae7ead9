"""A head with one hidden layer on the statistics of the motion branch: what a linear head cannot, it tells a taught
movement from others that resemble it.

Adam (Kingma and Ba, 2015) with decoupled weight decay, all examples at each step, dropout before and in the hidden
layer. Solved by L-BFGS instead, the same head found fewer actions in streams and more where there are none. Imports no
torch, as teaching does not.

Legend: N examples, X statistics, C inputs, H hidden units, K labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from engines.training.softmax_regression import Float64Array, LinearHead

UNITS = 64
STEPS, RATE, DECAY = 200, 4e-3, 1.2e-3  # the rate falls as half a cosine
INPUT_DROPOUT, DROPOUT = 0.3, 0.5
SMOOTHING = 0.02  # of labels
FIRST, SECOND, LEAST = 0.9, 0.999, 1e-8  # of Adam: decay of the two means, and what keeps quotients finite

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HiddenHead:
    """weight [H, C] and bias [H] of the hidden layer, out [K, H] and out_bias [K] of what reads it."""

    weight_HC: Floats
    bias_H: Floats
    out_KH: Floats
    out_bias_K: Floats

    def logits(self, inputs_NC: NDArray[np.floating]) -> Float64Array:
        """[N, K]."""
        hidden_NH = np.maximum(inputs_NC @ self.weight_HC.T + self.bias_H, 0)
        return np.asarray(hidden_NH @ self.out_KH.T + self.out_bias_K, np.float64)

    def scale(self, factor: float) -> "HiddenHead":
        """The head whose logits are this many times as large."""
        return HiddenHead(self.weight_HC, self.bias_H, self.out_KH * np.float32(factor),
                          self.out_bias_K * np.float32(factor))


@dataclass(frozen=True)
class MixedHead:
    """A linear head on all statistics, and one with a hidden layer on those of motion, `columns`, if there is one."""

    linear: LinearHead
    hidden: HiddenHead | None = None
    columns: NDArray[np.intp] | None = None

    def logits(self, statistics_NX: NDArray[np.floating]) -> Float64Array:
        """[N, K]."""
        logits_NK = self.linear.logits(statistics_NX)
        return logits_NK if self.hidden is None else logits_NK + self.hidden.logits(statistics_NX[:, self.columns])

    def parts(self) -> dict[str, NDArray[np.floating]]:
        """By the names that a model file has for them."""
        if self.hidden is None:
            return {"weight": self.linear.weight_KD, "bias": self.linear.bias_K}
        return {"weight": self.linear.weight_KD, "bias": self.linear.bias_K + self.hidden.out_bias_K,
                "hidden.weight": self.hidden.weight_HC, "hidden.bias": self.hidden.bias_H,
                "hidden.out": self.hidden.out_KH}


def fit_hidden(inputs_NC: NDArray[np.floating], label_N: NDArray[np.intp], weight_N: Float64Array, K: int,
               seed: int = 0) -> HiddenHead:
    """The head with about the least mean cross-entropy. inputs: each of about variance 1, the strongest; label, weight:
    of each example; the same numbers for the same seed."""
    rng = np.random.default_rng(seed)
    X, C = np.asarray(inputs_NC, np.float32), inputs_NC.shape[1]
    wanted_NK = np.eye(K, dtype=np.float32)[label_N] * (1 - SMOOTHING) + SMOOTHING / K
    share_N1 = (weight_N / weight_N.sum()).astype(np.float32)[:, None]
    parts = [_draw(rng, C, UNITS), np.zeros(UNITS, np.float32), _draw(rng, UNITS, K), np.zeros(K, np.float32)]
    means, squares = ([np.zeros_like(part) for part in parts] for _ in range(2))
    for step in range(STEPS):
        rate = (1 + np.cos(np.pi * step / STEPS)) / 2
        kept_NC = X * _keep(rng, X.shape, INPUT_DROPOUT)
        sum_NH, keep_NH = kept_NC @ parts[0] + parts[1], _keep(rng, (len(X), UNITS), DROPOUT)
        hidden_NH = np.maximum(sum_NH, 0) * keep_NH
        slope_NK = share_N1 * (np.exp(log_softmax(hidden_NH @ parts[2] + parts[3], axis=1)) - wanted_NK)
        slope_NH = slope_NK @ parts[2].T * keep_NH * (sum_NH > 0)
        slopes = (kept_NC.T @ slope_NH, slope_NH.sum(axis=0), hidden_NH.T @ slope_NK, slope_NK.sum(axis=0))
        for part, mean, square, slope in zip(parts, means, squares, slopes, strict=True):
            mean += (1 - FIRST) * (slope - mean)
            square += (1 - SECOND) * (slope * slope - square)
            towards = mean / (1 - FIRST ** (step + 1)) / (np.sqrt(square / (1 - SECOND ** (step + 1))) + LEAST)
            part -= np.float32(rate) * (np.float32(RATE) * towards + np.float32(DECAY) * part)
    weight_CH, bias_H, out_HK, out_bias_K = parts
    return HiddenHead(weight_CH.T, bias_H, out_HK.T, out_bias_K)


def _draw(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    return np.asarray(rng.uniform(-1, 1, (rows, columns)) / np.sqrt(rows), np.float32)


def _keep(rng: np.random.Generator, shape: tuple[int, ...], dropout: float) -> Floats:
    """What each value is multiplied by."""
    return np.asarray((rng.random(shape, dtype=np.float32) >= dropout) / np.float32(1 - dropout), np.float32)
