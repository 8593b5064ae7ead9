"""From one engine step to calibrated probabilities of this frame and of the window.
Legend: N moments, D features of a frame, K labels of a head."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.errors import ModelError, UsageError
from engines.model.contract import Contract
from engines.model.file import Model
from engines.model.pooling import StatisticsWindow, foreground_of
from engines.model.scores import calibrated
from engines.runtime.engine import StepResult
from stream.frame import Image, Points, Ranked
from stream.window import ClipWindow, Floats, Window

if TYPE_CHECKING:
    from engines.hands import HandTracker

TOP = 5  # labels of a Prediction, per head
PARTS, ACTION = ("verb", "noun"), "action"  # heads that name an action together, and what their pairs are called
Probs = NDArray[Any]


class Scores(NamedTuple):
    """Scores of one tick."""

    now: dict[str, Probs]  # probabilities [K] of each head at this frame
    window: dict[str, Probs]  # and over the sliding window
    gates: tuple[float, ...]  # of each clip in the window, oldest first
    features_D: Floats  # of this frame
    descriptor_D: Floats  # of the window; empty of a model whose heads are pooled


class Scorer:
    """Scores the steps of one camera and keeps its window."""

    def __init__(self, model: Model) -> None:
        self._model, self._contract = model, model.contract
        self._clip_window = ClipWindow(self._contract.window_clips, model.clip_fusion)
        self._window: Window | None = None  # made at the first step, when D is known
        self._statistics: StatisticsWindow | None = None  # likewise
        rule, self._foreground = model.contract.pooling, foreground_of(model.contract)
        self._tracker: HandTracker | None = None
        self.hands: Mapping[str, Points] | None = None  # in view in the newest frame, of a model that looks for them
        self.hand_features_D: Floats = np.zeros(rule.hands if rule else 0, "f4")

    def score(self, result: StepResult) -> Scores:
        """Takes a step of this camera alone (B = 1)."""
        contract, features_D = self._contract, result.features[0]
        if contract.pooling is not None:
            foreground_P = features_D[:0] if self._foreground is None else self._foreground.push(features_D)
            features_D = np.concatenate([features_D, foreground_P, self.hand_features_D])
        gates: tuple[float, ...] = ()
        if contract.pooling is not None:
            descriptor_D = features_D[:0]
            now_logits, window_logits = self._pool(features_D, contract.pooling.now_clips)
        else:
            descriptor_D, gates_C = self._fuse(result)
            gates = tuple(gates_C.tolist())
            now_logits = {head: logits[0] for head, logits in result.scores.items()}
            window_logits = self._model.head_logits(descriptor_D)
        now = {head: calibrated(contract, head, now_logits[head]) for head in contract.heads}
        window = {head: calibrated(contract, head, window_logits[head], window=True) for head in contract.heads}
        return Scores(now, window, gates, features_D, descriptor_D)

    def find_hands(self, image_bgr: Image) -> None:
        """Looks for hands in the next frame, of a model that reads them. Raises UsageError without their models,
        EngineError."""
        from engines import hands

        self._tracker = self._tracker or hands.HandTracker()
        found = self._tracker.step(image_bgr)
        self.hands, self.hand_features_D = found.in_view(), hands.hand_features(found)

    def _pool(self, features_D: Floats, now_clips: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        contract, heads = self._contract, self._model.pooled_heads
        pool = self._statistics = self._statistics or StatisticsWindow(contract.clip_frames, contract.window_clips,
                                                                       len(features_D))
        pool.push(features_D)
        now_X, window_X = pool.statistics(now_clips), pool.statistics(contract.window_clips)
        return ({head: heads[head, "now"].logits(now_X) for head in contract.heads},
                {head: heads[head, "window"].logits(window_X) for head in contract.heads})

    def _fuse(self, result: StepResult) -> tuple[Floats, Floats]:
        contract, features_D = self._contract, result.features[0]
        if result.spans is not None:
            return self._clip_window.push(features_D, result.spans[0])
        self._window = self._window or Window(contract.clip_frames, contract.window_clips, len(features_D),
                                              self._model.clip_fusion)
        return self._window.push(features_D)

    def reset(self) -> None:
        """Empties the window."""
        self._clip_window.reset()
        if self._statistics is not None:
            self._statistics.reset()
        if self._foreground is not None:
            self._foreground.reset()
        self._tracker = self.hands = None
        self.hand_features_D = np.zeros_like(self.hand_features_D)
        if self._window is not None:
            self._window.reset()


def open_hand_models(contract: Contract) -> None:
    """Makes ready what looks for hands, of a model that reads them. Raises UsageError where their models are not
    installed, ModelError for a model that reads other features of hands than these."""
    if not contract.looks_for_hands:
        return
    from engines.hands import HAND_FEATURES, open_models

    assert contract.pooling is not None
    if contract.pooling.hands != HAND_FEATURES:
        raise ModelError(f"{contract.name}, which reads {contract.pooling.hands} features of hands",
                         f"{HAND_FEATURES} of them", "teach it again")
    try:
        open_models()
    except UsageError as error:
        raise UsageError(f"{contract.name}, which looks at hands: {error.got}", error.wanted, error.do) from error


def parts_of(contract: Contract, head: str) -> tuple[str, ...]:
    """The model's heads that a head of results is made from: itself, but for an action of verb and noun."""
    return PARTS if head == ACTION and ACTION not in contract.heads else (head,)


def result_heads(contract: Contract) -> tuple[str, ...]:
    """The heads of predictions and events: the model's, and `action` where it has verb and noun heads."""
    paired = set(PARTS) <= set(contract.heads) and ACTION not in contract.heads
    return (*contract.heads, ACTION) if paired else tuple(contract.heads)


def top_labels(contract: Contract, head: str, probs: Mapping[str, Probs]) -> Ranked:
    """The TOP labels of a head of results with their probabilities, best first; of actions beside background."""
    if head in contract.heads:
        labels, probs_K = contract.heads[head], probs[head]
        return tuple((labels[k], float(probs_K[k])) for k in np.argsort(-probs_K, kind="stable")[:TOP])
    labels_of, one_of = [contract.heads[part] for part in PARTS], [probs[part][None] for part in PARTS]
    backgrounds = [labels.index(contract.background) if contract.background in labels else None for labels in labels_of]
    verb_1K, noun_1K = (without_label(probs_1K, k) for probs_1K, k in zip(one_of, backgrounds, strict=True))
    (pairs_k2,) = top_pairs(verb_1K, noun_1K, TOP)
    found = [(" ".join(labels[k] for labels, k in zip(labels_of, pair, strict=True)),
              float(one_of[0][0, pair[0]] * one_of[1][0, pair[1]])) for pair in pairs_k2.tolist()
             if not any(k == background for k, background in zip(pair, backgrounds, strict=True))]
    known = [1 - probs_1K[0, k] for probs_1K, k in zip(one_of, backgrounds, strict=True) if k is not None]
    if known and contract.background is not None:
        found.append((contract.background, 1 - float(np.prod(known))))
    return tuple(sorted(found, key=lambda one: -one[1])[:TOP])


def without_label(probs_NK: Probs, label: int | None) -> Probs:
    """The probabilities with that of one label, by its index, set to 0."""
    kept_NK = probs_NK.copy()
    if label is not None:
        kept_NK[:, label] = 0
    return kept_NK


def top_pairs(first_NK: Probs, second_NK: Probs, k: int) -> Probs:
    """The k best pairs of labels by the product of their probabilities, best first, [N, k, 2], as EPIC-KITCHENS-100's
    server ranks actions; of equal ones the first."""
    # A pair among the k best has both its labels among the k best of their heads: no table of all pairs is made.
    first_NA, second_NB = ranks(first_NK, k), ranks(second_NK, k)
    products_NAB = (np.take_along_axis(first_NK, first_NA, 1)[:, :, None]
                    * np.take_along_axis(second_NK, second_NB, 1)[:, None, :])
    rows, wide = len(products_NAB), second_NB.shape[1]
    best_Nk = ranks(products_NAB.reshape(rows, first_NA.shape[1] * wide), k)
    return np.stack([np.take_along_axis(first_NA, best_Nk // wide, 1),
                     np.take_along_axis(second_NB, best_Nk % wide, 1)], axis=2)


def ranks(scores_NK: Probs, k: int) -> Probs:
    """The k best labels of each row, best first, [N, min(k, K)]; of equal scores the first label."""
    return np.asarray(np.argsort(-np.asarray(scores_NK), axis=1, kind="stable")[:, :k])
