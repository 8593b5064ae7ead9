"""Clip fusion at run time, without torch: the `fusion.*` tensors of a model file applied to a live window.
The same computation as `engines.networks.clip_fusion`, which trains; what of the paper is known is written there.
Legend: C clips, oldest first, D features of a clip, d inner width, N directions, X what one product makes at once."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.networks.config import EPSILON, PREFIX, FusionRule, directions

Floats = NDArray[np.float32]


class FrameCounts(NamedTuple):
    """What follows from the clips' frame counts alone."""

    frames_C: Floats
    ones_C: Floats
    mix_CX: Floats  # makes hidden gate units of [own of clip 0, window of clip 0, own of clip 1, ...]
    attention_NCC: Floats  # added to logits: the logarithm of counts, -inf for clips that a direction leaves out


class GatedFusion:
    """Fuses the clips of a window; keeps nothing between calls, so that all cameras may share one.
    Everything that is linear in a clip alone is its projection: a window keeps those of complete clips, and projects
    the growing one only. What costs is the number of numpy calls at every frame; `a.dot(b)` is the cheapest."""

    def __init__(self, rule: FusionRule, tensors: Mapping[str, Floats]) -> None:
        """tensors: those of `tensor_shapes`; others are ignored."""
        self._rule, self._directions = rule, directions(rule)
        held = {name.removeprefix(PREFIX): np.asarray(value, np.float32) for name, value in tensors.items()
                if name.startswith(PREFIX)}
        parts_XD: list[Floats] = []
        if self._directions:
            at = [f"relate.{direction}" for direction in self._directions]
            if rule.relate == "attention":
                inner = held[f"{at[0]}.out.weight"].shape[1]
                parts_XD += [held[f"{each}.{part}.weight"] * np.float32(inner ** -0.5 if part == "query" else 1)
                             for part in ("query", "key", "value") for each in at]
            else:
                at = [at[0], at[-1]]
                cells = [f"{each}.cell" for each in at]
                parts_XD += [held[f"{cell}.weight_ih"] for cell in cells]
                self._own_NdX = np.stack([held[f"{cell}.weight_hh"].T for cell in cells])
                self._in_bias_N1X, self._own_bias_N1X = (
                    np.stack([held[f"{cell}.bias_{part}"] for cell in cells])[:, None] for part in ("ih", "hh"))
            self._out_XD = np.concatenate([held[f"{each}.out.weight"].T for each in at])
        self._relate_width = sum(map(len, parts_XD))
        if rule.gate:
            own_dD, window_dD = np.split(held["gate.squeeze.weight"], 2, axis=1)
            parts_XD += [own_dD, window_dD]
            if self._directions:  # what the gate makes of what `_out_XD` makes
                self._gate_Xd = (self._out_XD.astype(np.float64) @ np.concatenate([own_dD, window_dD]).T).astype("f4")
            bias_d, self._score_d = held["gate.squeeze.bias"], held["gate.score.weight"][0]
            self._least_d = -bias_d  # relu(x + bias) = max(x, -bias) + bias
            self._score_bias = held["gate.score.bias"] + bias_d.dot(self._score_d)
        self._project_DX = np.ascontiguousarray(np.concatenate(parts_XD).T) if parts_XD else None
        self._counts = lru_cache(maxsize=1024)(self._count)

    def project(self, clips_CD: Floats) -> Floats:
        """What `fuse` needs of each clip on its own, [C, X]; X may be 0."""
        return np.zeros((len(clips_CD), 0), np.float32) if self._project_DX is None else clips_CD.dot(self._project_DX)

    def fuse(self, clips_CD: Floats, counts_C: NDArray[np.int64],
             projected_CX: Floats | None = None) -> tuple[Floats, Floats]:
        """Descriptor [D] and gate [C] of each clip, from clip descriptors, oldest first, and their frame counts.
        projected_CX: the clips' projections, where they are known. Counts are at least 1. The gate of a clip that
        `keep` or `keep_above` leaves out is 0."""
        counts = self._counts(counts_C.tobytes())
        projected_CX = self.project(clips_CD) if projected_CX is None else projected_CX
        relate_CX, gate_CX = projected_CX[:, :self._relate_width], projected_CX[:, self._relate_width:]
        related_CX: Floats | None = None
        if self._rule.relate == "attention":
            related_CX = self._attend(relate_CX, counts)
        elif self._rule.relate == "bigru":
            related_CX = self._recur(relate_CX, counts.frames_C / counts.frames_C.max())
        if related_CX is not None and self._rule.gate:
            gate_CX = gate_CX + related_CX.dot(self._gate_Xd)
        gates_C = self._gates(gate_CX, counts.mix_CX)
        weights_C = counts.frames_C * gates_C
        weights_C /= max(counts.frames_C.dot(gates_C), EPSILON)
        descriptor_D: Floats = weights_C.dot(clips_CD)
        if related_CX is not None:
            descriptor_D += weights_C.dot(related_CX).dot(self._out_XD)
        return descriptor_D, gates_C

    def _count(self, counts: bytes) -> FrameCounts:
        frames_C = np.frombuffer(counts, np.int64).astype(np.float32)
        C = len(frames_C)
        mix_CC2 = np.zeros((C, C, 2), np.float32)
        mix_CC2[range(C), range(C), 0] = 1
        mix_CC2[..., 1] = frames_C / frames_C.sum()
        later = np.triu(np.full((C, C), -np.inf, np.float32), 1)
        hidden_NCC = np.zeros((1, C, C), np.float32) if self._rule.tied else np.stack([later, later.T])
        return FrameCounts(frames_C, np.ones_like(frames_C), mix_CC2.reshape(C, -1), hidden_NCC + np.log(frames_C))

    def _attend(self, relate_CX: Floats, counts: FrameCounts) -> Floats:
        C, N = len(relate_CX), len(self._directions)
        query_NCd, key_NCd, value_NCd = relate_CX.reshape(C, 3, N, -1).transpose(1, 2, 0, 3)
        logits_NCC = query_NCd @ key_NCd.transpose(0, 2, 1)
        logits_NCC += counts.attention_NCC
        logits_NCC -= np.maximum.reduce(logits_NCC, axis=-1, keepdims=True)
        shares_NCC = np.exp(logits_NCC, out=logits_NCC)
        shares_NCC /= shares_NCC.dot(counts.ones_C)[..., None]
        related_CNd = np.empty((C, N, value_NCd.shape[2]), np.float32)
        np.matmul(shares_NCC, value_NCd, out=related_CNd.transpose(1, 0, 2))
        return related_CNd.reshape(C, -1)

    def _recur(self, relate_CX: Floats, shares_C: Floats) -> Floats:
        """A recurrent unit from each end, side by side; a clip with part of the frames moves it by that part."""
        C, d = len(relate_CX), self._own_NdX.shape[1]
        into_CNX = relate_CX.reshape(C, 2, -1)
        into_NCX = np.stack([into_CNX[:, 0], into_CNX[::-1, 1]]) + self._in_bias_N1X
        shares_NC = np.stack([shares_C, shares_C[::-1]])
        hidden_N1d = np.zeros((2, 1, d), np.float32)
        hidden_NCd = np.empty((2, C, d), np.float32)
        for clip in range(C):
            into_N1X, own_N1X = into_NCX[:, clip, None], hidden_N1d @ self._own_NdX + self._own_bias_N1X
            both = sigmoid(into_N1X[..., :2 * d] + own_N1X[..., :2 * d])
            reset, stay = both[..., :d], both[..., d:]
            new = np.tanh(into_N1X[..., 2 * d:] + reset * own_N1X[..., 2 * d:])
            hidden_N1d = hidden_N1d + shares_NC[:, clip, None, None] * (1 - stay) * (new - hidden_N1d)
            hidden_NCd[:, clip] = hidden_N1d[:, 0]
        return np.concatenate([hidden_NCd[0], hidden_NCd[1, ::-1]], axis=1)

    def _gates(self, gate_CX: Floats, mix_CX: Floats) -> Floats:
        """gate_CX: what the clips themselves, and the window of them, give the hidden layer, side by side."""
        if not self._rule.gate:
            return np.ones(len(gate_CX), np.float32)
        hidden_Cd = mix_CX.dot(gate_CX.reshape(mix_CX.shape[1], -1))
        np.maximum(hidden_Cd, self._least_d, out=hidden_Cd)
        gates_C = sigmoid(hidden_Cd.dot(self._score_d) + self._score_bias)
        keep, keep_above = self._rule.keep, self._rule.keep_above
        if keep is not None and keep < len(gates_C):
            gates_C = np.where(gates_C >= np.sort(gates_C)[-keep], gates_C, np.float32(0))
        if keep_above is not None:
            gates_C = np.where((gates_C >= np.float32(keep_above)) | (gates_C == gates_C.max()), gates_C, np.float32(0))
        return gates_C


def sigmoid(x: Floats) -> Floats:
    """Without overflow, and with every digit of small results."""
    return np.asarray(np.exp(-np.logaddexp(np.float32(0), -x)))
