"""Statistics of frame features over spans of time, and heads that read them: what a model taught by `base` scores by.

    features of a frame, of the foreground, of hands ──sums──► clips ──► mean, deviation, change, order ──head──► logits

All are causal, and a clip costs its sums only: a camera keeps `window_clips` rows, however long they last. A live
stream and a lesson both compute them here. Legend: C clips, D features of a frame, X statistics, K labels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engines.model.contract import Contract

PREFIX = "pooled."  # begins the names of the heads' tensors in a model file
STATISTICS = ("mean", "deviation", "change", "order")
PARTS = 4  # of a span, whose means minus the span's are its order
SPANS = ("now", "window")

Floats = NDArray[np.float32]


def statistics_width(features: int) -> int:
    """X, the number of statistics of D features."""
    return features * (len(STATISTICS) - 1 + PARTS)


def statistic_columns(statistic: str, first: int, stop: int, features: int) -> NDArray[np.intp]:
    """Where a statistic of the features from `first` to before `stop` lies among all X."""
    block = STATISTICS.index(statistic)
    repeats = PARTS if statistic == "order" else 1
    return np.concatenate([np.arange(first, stop) + (block + i) * features for i in range(repeats)])


def feature_blocks(contract: Contract, features: int) -> dict[str, tuple[int, int]]:
    """Where the features of each origin lie among all of a frame: from, to before."""
    assert contract.pooling is not None
    widths = {"motion": contract.network.motion_features, "middle layer": contract.network.middle_features,
              "foreground": contract.foreground_cells, "hands": contract.pooling.hands}
    ends = accumulate((features - sum(widths.values()), *widths.values()), initial=0)
    return {name: span for name, span in zip(("last layer", *widths), pairwise(ends), strict=True) if span[0] < span[1]}


def motion_columns(contract: Contract, features: int) -> NDArray[np.intp]:
    """Where the statistics of the motion branch lie among all X; none of a network without it."""
    span = feature_blocks(contract, features).get("motion", (0, 0))
    return np.concatenate([statistic_columns(statistic, *span, features) for statistic in STATISTICS])


def tensor_shapes(contract: Contract, head: str, labels: int, features: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors of a pooled head."""
    assert contract.pooling is not None
    units, shapes = contract.pooling.hidden, dict[str, tuple[int, ...]]()
    for span in SPANS:
        shapes |= {f"{PREFIX}{head}.{span}.weight": (labels, statistics_width(features)),
                   f"{PREFIX}{head}.{span}.bias": (labels,)}
        if units:
            inputs = statistics_width(contract.network.motion_features)
            shapes |= {f"{PREFIX}{head}.{span}.hidden.weight": (units, inputs),
                       f"{PREFIX}{head}.{span}.hidden.bias": (units,),
                       f"{PREFIX}{head}.{span}.hidden.out": (labels, units)}
    return shapes


class PooledHead:
    """A head on statistics, for one span: linear, and where the contract says so with a hidden layer besides, which
    reads those of the motion branch."""

    def __init__(self, contract: Contract, tensors: Mapping[str, Floats], head: str, span: str) -> None:
        assert contract.pooling is not None
        def read(name: str) -> Floats:
            return np.ascontiguousarray(tensors[f"{PREFIX}{head}.{span}.{name}"], np.float32)

        self._weight_KX, self._bias_K, self._hidden = read("weight"), read("bias"), contract.pooling.hidden > 0
        if self._hidden:
            self._columns = motion_columns(contract, self._weight_KX.shape[1] // statistics_width(1))
            self._hidden_HC, self._hidden_bias_H = read("hidden.weight"), read("hidden.bias")
            self._out_KH = read("hidden.out")

    def logits(self, statistics_X: Floats) -> Floats:
        """[K]."""
        logits_K = self._weight_KX @ statistics_X + self._bias_K
        if self._hidden:
            hidden_H = np.maximum(self._hidden_HC @ statistics_X[self._columns] + self._hidden_bias_H, 0)
            logits_K += self._out_KH @ hidden_H
        return np.asarray(logits_K)


class Foreground:
    """Where in the picture something is that was not there before: of each cell of the middle layer's grid, how far its
    features are from their running mean. It tells the order of a movement from few recordings."""

    def __init__(self, cells: int, middle: int, ticks: int) -> None:
        """middle: how many features are the grid's, channel by channel; ticks: how far the running mean reaches."""
        self._cells, self._middle, self._ticks = cells, middle, ticks
        self._mean_CP: Floats | None = None
        self._frames = 0

    def push(self, features_D: Floats) -> Floats:
        """Takes a frame's features, of which the grid's are the last; returns those of the cells."""
        seen_CP = features_D[len(features_D) - self._middle:].reshape(-1, self._cells)
        self._frames = min(self._frames + 1, self._ticks)
        mean_CP = seen_CP if self._mean_CP is None else self._mean_CP
        self._mean_CP = mean_CP + (seen_CP - mean_CP) / np.float32(self._frames)
        return np.asarray(np.abs(seen_CP - self._mean_CP).mean(axis=0))

    def reset(self) -> None:
        """The next frame is the first."""
        self._mean_CP, self._frames = None, 0


def foreground_of(contract: Contract) -> Foreground | None:
    """What follows the foreground of one camera; None where pooled heads do not read it."""
    rule, cells = contract.pooling, contract.foreground_cells
    if rule is None or not cells:
        return None
    return Foreground(cells, contract.network.middle_features, round(rule.foreground_s * contract.frame_rate))


class StatisticsWindow:
    """The last clips of one camera, as sums of features, of their squares, and of their changes from frame to frame."""

    def __init__(self, clip_frames: int, window_clips: int, features: int) -> None:
        self._clip_frames = clip_frames
        self._sums_C3D = np.zeros((window_clips, 3, features), np.float32)  # the newest clip's is the last
        self._frames_C = np.zeros(window_clips, np.float32)
        self._last_D: Floats | None = None

    def push(self, features_D: Floats) -> None:
        """Adds one frame's features."""
        if not 0 < self._frames_C[-1] < self._clip_frames:
            self._sums_C3D[:-1], self._frames_C[:-1] = self._sums_C3D[1:], self._frames_C[1:]
            self._sums_C3D[-1], self._frames_C[-1] = 0, 0
        newest = self._sums_C3D[-1]
        newest[0] += features_D
        newest[1] += features_D * features_D
        if self._last_D is not None:
            newest[2] += np.abs(features_D - self._last_D)
        self._last_D = features_D
        self._frames_C[-1] += 1

    def statistics(self, clips: int) -> Floats:
        """Statistics [X] over the newest `clips` clips, or as many as there are."""
        count = min(clips, int(np.count_nonzero(self._frames_C)))
        sums_C3D, frames_C = self._sums_C3D[-count:], self._frames_C[-count:]
        mean_D, square_D, change_D = sums_C3D.sum(axis=0) / frames_C.sum()
        deviation_D = np.sqrt(np.maximum(square_D - mean_D * mean_D, 0))
        firsts = [part * count // PARTS for part in range(PARTS)]
        stops = [max((part + 1) * count // PARTS, first + 1) for part, first in enumerate(firsts)]
        parts = [sums_C3D[a:b, 0].sum(axis=0) / frames_C[a:b].sum() - mean_D
                 for a, b in zip(firsts, stops, strict=True)]
        return np.concatenate([mean_D, deviation_D, change_D, *parts])

    def reset(self) -> None:
        """Empties it."""
        self._frames_C[:] = 0
        self._last_D = None
