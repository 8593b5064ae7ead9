"""Clip fusion at run time, without torch: the `fusion.*` tensors of a model file applied to a live window.

`engines.networks.fusion` is the same computation in the form that trains; what is known and what is assumed of the
paper is said there. A model file names its form in the contract's `fusion`, see `engines.contract.FusionRule`.

Legend: C clips, oldest first, D features of a clip, d inner width, N directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from engines.contract import FusionRule

PREFIX = "fusion."
EPSILON = 1e-6  # the least sum of weights, in frames, that a window descriptor is divided by

Floats = NDArray[np.float32]


def directions(rule: FusionRule) -> tuple[str, ...]:
    """The names of the parts that look along the window: at earlier clips, later clips, or both with one weight."""
    if rule.relate == "none":
        return ()
    return ("both",) if rule.tied else ("past", "future")


def tensor_shapes(rule: FusionRule, width: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model file with this fusion holds, for descriptors of `width`."""
    inner = rule.inner_width(width)
    shapes: dict[str, tuple[int, ...]] = {}
    for direction in directions(rule):
        at = f"{PREFIX}relate.{direction}"
        if rule.relate == "attention":
            shapes |= {f"{at}.{part}.weight": (inner, width) for part in ("query", "key", "value")}
        else:
            shapes |= {f"{at}.cell.weight_ih": (3 * inner, width), f"{at}.cell.weight_hh": (3 * inner, inner),
                       f"{at}.cell.bias_ih": (3 * inner,), f"{at}.cell.bias_hh": (3 * inner,)}
        shapes[f"{at}.out.weight"] = (width, inner)
    if rule.gate:
        at = f"{PREFIX}gate"
        shapes |= {f"{at}.squeeze.weight": (inner, 2 * width), f"{at}.squeeze.bias": (inner,),
                   f"{at}.score.weight": (1, inner), f"{at}.score.bias": (1,)}
    return shapes


class GatedFusion:
    """Fuses the clips of a window; keeps nothing between calls, so that all cameras may share one.

    A clip counts by its number of frames in attention, in the window's mean and in the descriptor, so with open
    gates and no relation between clips the descriptor is the mean over all frames.
    """

    def __init__(self, rule: FusionRule, tensors: Mapping[str, Floats]) -> None:
        """tensors: those of `tensor_shapes`; others are ignored."""
        self._rule, self._directions = rule, directions(rule)
        held = {name.removeprefix(PREFIX): np.asarray(value, np.float32) for name, value in tensors.items()
                if name.startswith(PREFIX)}
        if self._directions:
            at = [f"relate.{direction}" for direction in self._directions]
            self._out_NdD = np.stack([held[f"{each}.out.weight"].T for each in at])
            if rule.relate == "attention":  # one product serves every direction
                inner = self._out_NdD.shape[1]
                self._project_DX = np.ascontiguousarray(np.concatenate(
                    [held[f"{each}.{part}.weight"] * np.float32(inner ** -0.5 if part == "query" else 1)
                     for part in ("query", "key", "value") for each in at]).T)
                self._out_XD = self._out_NdD.reshape(-1, self._out_NdD.shape[-1])
            else:
                self._cells = [_Cell({name.removeprefix(f"{each}.cell."): value for name, value in held.items()})
                               for each in at]
        if rule.gate:
            own_dD, window_dD = np.split(held["gate.squeeze.weight"], 2, axis=1)
            self._own_Dd, self._window_Dd = np.ascontiguousarray(own_dD.T), np.ascontiguousarray(window_dD.T)
            self._squeeze_bias_d = held["gate.squeeze.bias"]
            self._score_d, self._score_bias = held["gate.score.weight"][0], held["gate.score.bias"]

    def fuse(self, clips_CD: Floats, counts_C: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Descriptor [D] and gate [C] of each clip, from clip descriptors, oldest first, and their frame counts.

        Counts are at least 1. The gate of a clip that `keep` or `keep_above` leaves out is 0.
        """
        frames_C = counts_C.astype(np.float32)
        if self._rule.relate == "attention":
            clips_CD = clips_CD + self._attend(clips_CD, frames_C)
        elif self._rule.relate == "bigru":
            clips_CD = clips_CD + self._recur(clips_CD, frames_C / frames_C.max())
        gates_C = self._gates(clips_CD, frames_C / frames_C.sum())
        weights_C = frames_C * gates_C
        weights_C = np.divide(weights_C, max(weights_C.sum(), EPSILON), dtype=np.float32)
        descriptor_D: Floats = weights_C @ clips_CD
        return descriptor_D, gates_C

    def _attend(self, clips_CD: Floats, frames_C: Floats) -> Floats:
        C, N = len(clips_CD), len(self._directions)
        projected_3NCd = (clips_CD @ self._project_DX).reshape(C, 3, N, -1).transpose(1, 2, 0, 3)
        query_NCd, key_NCd, value_NCd = projected_3NCd
        logits_NCC = query_NCd @ key_NCd.transpose(0, 2, 1) + np.log(frames_C)
        if not self._rule.tied:
            order = np.arange(C)
            logits_NCC[0][order[:, None] < order] = -np.inf
            logits_NCC[1][order[:, None] > order] = -np.inf
        shares_NCC = np.exp(logits_NCC - logits_NCC.max(axis=-1, keepdims=True))
        shares_NCC /= shares_NCC.sum(axis=-1, keepdims=True)
        seen_CNd = (shares_NCC @ value_NCd).transpose(1, 0, 2)
        related_CD: Floats = seen_CNd.reshape(C, -1) @ self._out_XD
        return related_CD

    def _recur(self, clips_CD: Floats, shares_C: Floats) -> Floats:
        past, future = self._cells * 2 if self._rule.tied else self._cells
        out_past_dD, out_future_dD = self._out_NdD[[0, -1]]
        related_CD: Floats = past.run(clips_CD, shares_C) @ out_past_dD
        related_CD += future.run(clips_CD[::-1], shares_C[::-1])[::-1] @ out_future_dD
        return related_CD

    def _gates(self, clips_CD: Floats, shares_C: Floats) -> Floats:
        if not self._rule.gate:
            return np.ones(len(shares_C), np.float32)
        window_d = (shares_C @ clips_CD) @ self._window_Dd
        hidden_Cd = np.maximum(clips_CD @ self._own_Dd + (window_d + self._squeeze_bias_d), 0)
        gates_C = sigmoid(hidden_Cd @ self._score_d + self._score_bias)
        kept_C = np.ones(len(gates_C), bool)
        if self._rule.keep is not None and self._rule.keep < len(gates_C):
            kept_C &= gates_C >= np.sort(gates_C)[-self._rule.keep]
        if self._rule.keep_above is not None:
            kept_C &= (gates_C >= np.float32(self._rule.keep_above)) | (gates_C == gates_C.max())
        kept: Floats = gates_C * kept_C
        return kept


class _Cell:
    """A gated recurrent unit with torch's weights, run along the clips."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self._in_DX, self._own_dX = weights["weight_ih"].T, weights["weight_hh"].T
        self._in_bias_X, self._own_bias_X = weights["bias_ih"], weights["bias_hh"]

    def run(self, clips_CD: Floats, shares_C: Floats) -> Floats:
        """What is known after each clip, [C, d]; a clip with part of the frames moves it by that part."""
        known_d = np.zeros(len(self._own_dX), np.float32)
        rows = []
        for into_X, share in zip(clips_CD @ self._in_DX + self._in_bias_X, shares_C, strict=True):
            own_X = known_d @ self._own_dX + self._own_bias_X
            (in_reset, in_stay, in_new), (own_reset, own_stay, own_new) = np.split(into_X, 3), np.split(own_X, 3)
            stay = sigmoid(in_stay + own_stay)
            new = np.tanh(in_new + sigmoid(in_reset + own_reset) * own_new)
            known_d = known_d + share * (1 - stay) * (new - known_d)
            rows.append(known_d)
        return np.stack(rows)


def sigmoid(x: Floats) -> Floats:
    """Without overflow, and with every digit of small results."""
    result: Floats = np.exp(-np.logaddexp(np.float32(0), -x))
    return result
