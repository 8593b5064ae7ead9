"""Lessons of a few numbers a frame, which take no network and no time."""

from __future__ import annotations

from typing import Any

import numpy as np
from fakes import contract

from engines.model.contract import PoolingRule
from engines.model.file import Model
from engines.training.pooled_few_shot import forget
from engines.training.support_clips import SupportClip

D, T = 12, 24  # features, and ticks of a recording
RNG = np.random.default_rng


def model(hands: int = 0) -> Model:
    blank = Model(contract(heads={"action": ("background", "action")}, background="background", frame_rate=8.0,
                           pooling=PoolingRule()), {"heads.action.weight": np.zeros((2, D), np.float32)}, "0")
    return forget(blank, "action", hands)


def action(kind: str, label: int, seed: int, T: int = T) -> np.ndarray[Any, Any]:
    """Features in which labels differ by what is seen, by how it changes, or by its order alone."""
    rng = RNG(seed)
    rows_TD = 3 + 0.3 * rng.standard_normal((T, D))
    if kind == "mean":
        rows_TD[:, label] += 1.5
    elif kind == "change":
        rows_TD[:, label] += 1.5 * rng.permutation(np.resize([-1, 1], T))
    else:
        rows_TD[:, 0] += 2 * np.linspace(-1, 1, T) * (-1) ** label
        rows_TD[:, 1] += 2 * np.abs(np.linspace(-1, 1, T)) * (label // 2)
    return rows_TD.astype(np.float32)


def lessons(kind: str, labels: int = 3, each: int = 5, idle: int = 0, edges: int = 0) -> list[SupportClip]:
    none_TD = np.zeros((0, 0), np.float32)
    clips = [SupportClip(f"{label}/{i}", f"label{label}", action(kind, label, 100 * label + i), none_TD, edges,
                         T - edges)
             for label in range(labels) for i in range(each)]
    return clips + [SupportClip(f"idle/{i}", "background", action("mean", 9, 7000 + i, 40), none_TD, 0, 0)
                    for i in range(idle)]
