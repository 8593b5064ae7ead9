"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017) on clips that were left out.

Logits are divided by one number per head so that scores mean what they say. `now` and `window` get their own: the
window's logits are means over many frames, and so are smoother.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engines.datasets.egogestar import UNCLASSIFIED
from engines.datasets.footage import Footage, frames_at
from engines.model.contract import Contract
from engines.model.preprocess import fit, normalise
from engines.networks.network import Network
from engines.training.sampling import middle_frames

LATE = 0.75  # from this share of a clip on, its label can be known
GRID = np.exp(np.linspace(np.log(0.2), np.log(5.0), 161))

Logits = NDArray[np.float32]


def calibrated(contract: Contract, network: Network, head: str, held_out: Sequence[Footage]) -> Contract:
    """The contract with the temperatures of `head` fitted on held-out footage (clips of gestures, or of none)."""
    labels = contract.heads[head]
    now: list[tuple[Logits, int]] = []
    window: list[tuple[Logits, int]] = []
    for footage in held_out:
        label = contract.background if footage.label in (UNCLASSIFIED, contract.background) else footage.label
        if label not in labels:
            continue
        logits_TK = clip_logits(contract, network, head, footage)
        known_from = 0 if label == contract.background else int(LATE * len(logits_TK))
        now += [(row_K, labels.index(label)) for row_K in logits_TK[known_from:]]
        window.append((logits_TK[-contract.clip_frames * contract.window_clips:].mean(axis=0), labels.index(label)))
    return contract.model_copy(update={
        "temperature": {**contract.temperature, head: temperature(now)},
        "window_temperature": {**contract.window_temperature, head: temperature(window)}})


def clip_logits(contract: Contract, network: Network, head: str, footage: Footage, spread: int = 0) -> Logits:
    """Logits [T, K] of a clip from fresh state, at the model's frame rate, or of `spread` frames evenly over it."""
    if spread:
        picks = middle_frames(len(footage.times_s), spread)
    else:
        ticks_s = np.arange(0, footage.duration_s, 1 / contract.frame_rate)
        picks = frames_at(footage.times_s, ticks_s)
    pixels = np.stack([fit(footage.images[i], contract.cover_hw, contract.input_size_hw) for i in picks])
    with torch.no_grad():
        frames = torch.from_numpy(normalise(pixels, contract)).to(next(network.parameters()).device)
        features, _ = network(frames[None], network.fresh_state(1))
        return np.asarray(network.scores(features)[head][0].float().cpu().numpy())


def temperature(scored: Sequence[tuple[Logits, int]]) -> float:
    """The temperature with the least mean negative log-likelihood; 1 when there is nothing to fit."""
    if not scored:
        return 1.0
    logits_NK = np.stack([logits for logits, _ in scored]).astype(np.float64)
    truth_N = np.array([label for _, label in scored])
    losses = []
    for value in GRID:
        scaled = logits_NK / value
        peak_N = scaled.max(axis=1)
        total_N = peak_N + np.log(np.exp(scaled - peak_N[:, None]).sum(axis=1))
        losses.append(float((total_N - scaled[np.arange(len(truth_N)), truth_N]).mean()))
    return round(float(GRID[int(np.argmin(losses))]), 3)
