"""Clip fusion at run time, without torch: the `fusion.*` tensors of a model file applied to a live window.

`engines.networks.fusion` is the same computation in the form that trains; what is known and what is assumed of the
paper is said there. A model file names its form in the contract's `fusion`, see `engines.contract.FusionRule`.

Legend: C clips, oldest first, D features of a clip, d inner width, N directions, X what one product makes at once.
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
                self._hidden: dict[int, Floats] = {}
            else:
                cells = [f"{each}.cell" for each in (at[0], at[-1])]
                self._in_NDX, self._own_NdX = (np.stack([held[f"{cell}.weight_{part}"].T for cell in cells])
                                               for part in ("ih", "hh"))
                self._in_bias_N1X, self._own_bias_N1X = (
                    np.stack([held[f"{cell}.bias_{part}"] for cell in cells])[:, None] for part in ("ih", "hh"))
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
            clips_CD = clips_CD + self._recur(clips_CD, frames_C / np.maximum.reduce(frames_C))
        gates_C = self._gates(clips_CD, frames_C / np.add.reduce(frames_C))
        weights_C = frames_C * gates_C
        weights_C = np.divide(weights_C, max(np.add.reduce(weights_C), EPSILON), dtype=np.float32)
        descriptor_D: Floats = weights_C @ clips_CD
        return descriptor_D, gates_C

    def _attend(self, clips_CD: Floats, frames_C: Floats) -> Floats:
        C, N = len(clips_CD), len(self._directions)
        projected_3NCd = (clips_CD @ self._project_DX).reshape(C, 3, N, -1).transpose(1, 2, 0, 3)
        query_NCd, key_NCd, value_NCd = projected_3NCd
        logits_NCC = query_NCd @ key_NCd.transpose(0, 2, 1)
        logits_NCC += self._hidden_NCC(C) + np.log(frames_C)
        logits_NCC -= np.maximum.reduce(logits_NCC, axis=-1, keepdims=True)
        shares_NCC = np.exp(logits_NCC)
        shares_NCC /= np.add.reduce(shares_NCC, axis=-1, keepdims=True)
        seen_CNd = (shares_NCC @ value_NCd).transpose(1, 0, 2)
        related_CD: Floats = seen_CNd.reshape(C, -1) @ self._out_XD
        return related_CD

    def _hidden_NCC(self, clips: int) -> Floats:
        """Added to logits: minus infinity where a direction does not look."""
        if clips not in self._hidden:
            later = np.triu(np.full((clips, clips), -np.inf, np.float32), 1)
            self._hidden[clips] = np.zeros_like(later)[None] if self._rule.tied else np.stack([later, later.T])
        return self._hidden[clips]

    def _recur(self, clips_CD: Floats, shares_C: Floats) -> Floats:
        """A recurrent unit from each end, side by side; a clip with part of the frames moves it by that part."""
        d, past_and_future = self._own_NdX.shape[1], np.stack([clips_CD, clips_CD[::-1]])
        into_NCX = past_and_future @ self._in_NDX + self._in_bias_N1X
        shares_NC = np.stack([shares_C, shares_C[::-1]])
        known_N1d = np.zeros((2, 1, d), np.float32)
        known_NCd = np.empty((2, len(clips_CD), d), np.float32)
        for clip in range(len(clips_CD)):
            into_N1X, own_N1X = into_NCX[:, clip, None], known_N1d @ self._own_NdX + self._own_bias_N1X
            both = sigmoid(into_N1X[..., :2 * d] + own_N1X[..., :2 * d])
            reset, stay = both[..., :d], both[..., d:]
            new = np.tanh(into_N1X[..., 2 * d:] + reset * own_N1X[..., 2 * d:])
            known_N1d = known_N1d + shares_NC[:, clip, None, None] * (1 - stay) * (new - known_N1d)
            known_NCd[:, clip] = known_N1d[:, 0]
        related_CD: Floats = known_NCd[0] @ self._out_NdD[0] + known_NCd[1, ::-1] @ self._out_NdD[-1]
        return related_CD

    def _gates(self, clips_CD: Floats, shares_C: Floats) -> Floats:
        if not self._rule.gate:
            return np.ones(len(shares_C), np.float32)
        window_d = (shares_C @ clips_CD) @ self._window_Dd
        hidden_Cd = np.maximum(clips_CD @ self._own_Dd + (window_d + self._squeeze_bias_d), 0)
        gates_C = sigmoid(hidden_Cd @ self._score_d + self._score_bias)
        keep, keep_above = self._rule.keep, self._rule.keep_above
        if keep is not None and keep < len(gates_C):
            gates_C = np.where(gates_C >= np.sort(gates_C)[-keep], gates_C, np.float32(0))
        if keep_above is not None:
            gates_C = np.where((gates_C >= np.float32(keep_above)) | (gates_C == gates_C.max()), gates_C, np.float32(0))
        return gates_C


def sigmoid(x: Floats) -> Floats:
    """Without overflow, and with every digit of small results."""
    result: Floats = np.exp(-np.logaddexp(np.float32(0), -x))
    return result
