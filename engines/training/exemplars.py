"""Exemplars: what stands for the labels that a model knows when it is taught others without their recordings.

A causal model file carries them (features, not images) for every label that it was trained on or taught:

    examples.<head>.features [N, D]    examples.<head>.facts [N, 3]: label, weight, 0 for `now` or 1 for a window

For labels that have none, pseudo-exemplars are made from the head's own rows: features that vary as those of the
recordings do, and that the head takes for the label. Their targets are the head's own scores.

Legend: N examples, D features, K labels; B rows, T frames of a chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engines.model.contract import Contract
from engines.model.file import EXAMPLES
from engines.model.scores import probabilities
from engines.training.softmax_regression import Examples, Float64Array, LinearHead
from engines.training.support_clips import Floats
from engines.training.temperature import LATE

if TYPE_CHECKING:  # teaching imports no torch
    from engines.networks.network import Network
    from engines.networks.temporal import State
    from engines.training.stream_loader import Batch

MAX_PER_LABEL = 96  # exemplars in a model file
MAX_OF_BACKGROUND = 2000  # of background: a stream is full of it, and of many kinds
PSEUDO_PER_LABEL = 100
PSEUDO_WEIGHT = 3.0  # of a label that has pseudo-exemplars against a taught one: they stand for more than they show
MARGINS = (1.0, 2.0, 4.0, 8.0)  # by which the head takes pseudo-exemplars for their label, in logits


def select_exemplars(examples: Examples, head: str, background_index: int) -> dict[str, Floats]:
    """Some of the examples as tensors of a model file, evenly chosen, with the weight of all."""
    label_N = examples.target_NK.argmax(axis=1)
    chosen: list[int] = []
    weight_N = np.zeros(len(label_N))
    for label in np.unique(label_N):
        rows = np.flatnonzero(label_N == label)
        most = min(MAX_OF_BACKGROUND if label == background_index else MAX_PER_LABEL, len(rows))
        few = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
        weight_N[few] = examples.weight_N[rows].sum() / len(few)
        chosen += few.tolist()
    facts = np.column_stack([label_N[chosen], weight_N[chosen], examples.window_N[chosen]])
    return {f"{EXAMPLES}{head}.features": examples.features_ND[chosen].astype(np.float32),
            f"{EXAMPLES}{head}.facts": facts.astype(np.float32)}


def exemplars_from_streams(contract: Contract, network: Network, batches: Iterable[Batch],
                           truths: Sequence[tuple[int, ...]]) -> dict[str, Floats]:
    """Exemplars of every head as tensors of a model file, from streams that a causal network was trained on.
    Late moments of actions stand for their labels, for `now` and for windows; for background all moments do, and
    windows that show nothing else. truths: see `StreamTask`."""
    import torch

    from engines.training.loss import UNKNOWN

    with torch.no_grad():
        moments = list(_moments(contract, network, batches))
    tensors: dict[str, Floats] = {}
    for h, (head, labels) in enumerate(contract.heads.items()):
        background_index = labels.index(contract.background) if contract.background in labels else UNKNOWN
        chosen: list[tuple[Floats, int, bool]] = []  # features, label, whether of a window
        for features_D, window_D, window_truths, progress in moments:
            label = truths[window_truths[-1]][h]
            if label == UNKNOWN or (label != background_index and progress < LATE):
                continue
            chosen.append((features_D, label, False))
            if label != background_index or all(truths[one][h] == label for one in window_truths):
                chosen.append((window_D, label, True))
        if chosen:
            ones_N = np.ones(len(chosen))
            examples = Examples(np.array([row_D for row_D, *_ in chosen], np.float64),
                                np.eye(len(labels))[[label for _, label, _ in chosen]], ones_N, ones_N,
                                np.full(len(chosen), -1), np.array([window for *_, window in chosen]))
            tensors |= select_exemplars(examples, head, background_index)
    return tensors


def _moments(contract: Contract, network: Network, batches: Iterable[Batch]
             ) -> Iterator[tuple[Floats, Floats, tuple[int, ...], float]]:
    """Of each frame: features, their mean over the window that ends with it, the window's truths, its progress."""
    from engines.training.pixels import normalise

    state: State = ()
    recent: list[deque[tuple[Floats, int]]] = []
    for batch in batches:
        if not recent:
            state = network.fresh_state(len(batch.pixels))
            recent = [deque(maxlen=contract.clip_frames * contract.window_clips) for _ in batch.pixels]
        state = tuple(leaf * (~batch.fresh).float().view(-1, *[1] * (leaf.ndim - 1)) for leaf in state)
        features, state = network(normalise(batch.pixels, contract), state)
        for b, features_TD in enumerate(features.numpy()):
            if batch.fresh[b]:
                recent[b].clear()
            for t, features_D in enumerate(features_TD):
                recent[b].append((features_D, int(batch.truth.label[b, t])))
                if batch.truth.weight[b, t] > 0:
                    rows, window_truths = zip(*recent[b], strict=True)
                    yield features_D, np.mean(rows, axis=0), window_truths, float(batch.truth.progress[b, t])


def load_exemplars(tensors: Mapping[str, Floats], head: str, start: LinearHead, temperatures: tuple[float, float]
                   ) -> Examples:
    """The exemplars that the tensors of a model file carry for a head, which is `start` by now; perhaps none."""
    K, D = start.weight_KD.shape
    features_ND = tensors.get(f"{EXAMPLES}{head}.features", np.zeros((0, D), np.float32)).astype(np.float64)
    label_N, weight_N, window_N = tensors.get(f"{EXAMPLES}{head}.facts", np.zeros((0, 3), np.float32)).T
    return Examples(features_ND, np.eye(K)[label_N.astype(int)], weight_N.astype(np.float64),
                    np.array(temperatures)[window_N.astype(int)], np.full(len(label_N), -1), window_N > 0)


def pseudo_exemplars(seen: Examples, start: LinearHead, known: int, wanted: Sequence[int],
                     rng: np.random.Generator) -> Examples:
    """Made-up examples of the `wanted` labels, by a head whose first `known` rows are of labels that it has learnt.
    seen: examples from recordings, which show how features vary."""
    if not wanted:
        return seen.select(np.zeros(len(seen.weight_N), bool))
    D = seen.features_ND.shape[1]
    label_N = seen.target_NK.argmax(axis=1)
    shown, place_N = np.unique(label_N, return_inverse=True)
    mean_LD = np.array([seen.features_ND[label_N == label].mean(axis=0) for label in shown])
    residual_ND = seen.features_ND - mean_LD[place_N]
    spread_DD = residual_ND.T @ residual_ND / len(residual_ND)
    spread_DD += np.eye(D) * (np.trace(spread_DD) / D * 1e-2 + 1e-9)
    middle_D = mean_LD.mean(axis=0)
    low_D, high_D = seen.features_ND.min(axis=0), seen.features_ND.max(axis=0)
    room_D = 0.25 * (high_D - low_D)
    rows = LinearHead(start.weight_KD[:known], start.bias_K[:known])
    made: list[Float64Array] = []
    for label in wanted:
        direction_D = spread_DD @ (rows.weight_KD[label] - np.delete(rows.weight_KD, label, axis=0).mean(axis=0))
        for margin in MARGINS:
            place_D = middle_D + _distance_to_margin(rows, label, middle_D, direction_D, margin) * direction_D
            variation_ND = residual_ND[rng.integers(len(residual_ND), size=PSEUDO_PER_LABEL // len(MARGINS))]
            made.append(np.clip(place_D + variation_ND, np.minimum(low_D, place_D) - room_D,
                                np.maximum(high_D, place_D) + room_D))
    features_ND = np.concatenate(made)
    target_NK = np.pad(probabilities(rows.logits(features_ND)), ((0, 0), (0, len(start.bias_K) - known)))
    weight = 2 * PSEUDO_WEIGHT / PSEUDO_PER_LABEL  # 2: as `now` and window examples together
    return Examples(features_ND, target_NK, np.full(len(features_ND), weight), np.ones(len(features_ND)),
                    np.full(len(features_ND), -1), np.zeros(len(features_ND), bool))


def _distance_to_margin(rows: LinearHead, label: int, from_D: Float64Array, direction_D: Float64Array,
                        margin: float) -> float:
    """How far along the direction the head prefers the label by `margin`; 0 where it never does."""
    logits_K, slope_K = rows.logits(from_D[None])[0], rows.weight_KD @ direction_D
    lead_K, gain_K = (np.delete(values[label] - values, label) for values in (logits_K, slope_K))
    short = lead_K < margin
    if (gain_K[short] <= 0).any():
        return 0.0
    distance = float(((margin - lead_K[short]) / gain_K[short]).max(initial=0.0))
    return distance if (lead_K + distance * gain_K > margin - 1e-6).all() else 0.0  # another label may overtake
