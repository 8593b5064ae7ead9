"""Few-shot teaching of pooled heads: which statistics tell the recordings' labels apart is found by cross-validation.

    statistics ──view by view──► principal components ──► softmax regression ─┐ product of experts,
    (appearance, motion, order; of the middle layer, of the last, of hands)  ─┴─ weighted by held-out loss ──► one head

A product of linear softmax experts is one linear head, so what is learnt costs live what one head costs. The network
stays as it is. Every recording is judged by experts that have not seen it.

Legend: N examples, X statistics, D features, K labels, T ticks, R recordings."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from engines.model import pooling
from engines.model.contract import Contract, PoolingRule
from engines.model.file import EXAMPLES, Array, Model
from engines.model.pooling import Floats, StatisticsWindow, statistic_columns
from engines.training.few_shot import NO_BACKGROUND_SCORES, FewShotResult, HeldOut, report_of, temperatures_of
from engines.training.softmax_regression import Examples, Float64Array, LinearHead, fit
from engines.training.support_clips import GRACE_TICKS, SupportClip

FOLDS = 5
L2 = (1e-2, 1e-3, 1e-4, 1e-5)  # for components whose squares sum to 1 in the mean
STEPS = 25  # of L-BFGS for each
COMPONENTS = 128  # of a view, at most
SOFTNESS = 0.5  # nats of held-out loss, by which an expert's weight falls to 1/e; experts are never far from equal,
# because what is best on recordings of one place is seldom best at another
LEAST_WEIGHT = 0.02  # of an expert that is kept
WINDOW_S = (1.5, 10.0)  # the shortest and the longest window
NOW_S = (1.2, 3.0)
EXAMPLES_OF_CLIP = 3
MAX_IDLE_EXAMPLES = 400
EDGE_ERRORS = 0.05  # of the recordings called background when left out, above which their edges teach none


class _View(NamedTuple):
    """Some of the statistics: columns of X."""

    name: str
    columns: NDArray[np.intp]


@dataclass(frozen=True)
class _Samples:
    """Statistics of moments: of both spans, [N, X]; and what each is of."""

    statistics: dict[str, Floats]
    label_N: NDArray[np.intp]
    recording_N: NDArray[np.intp]  # place in the list of recordings
    edge_N: NDArray[np.bool_]  # whether it is an edge of a recording, taken for background
    weight_N: Float64Array

    def select(self, which_N: NDArray[np.bool_]) -> "_Samples":
        return _Samples({span: rows[which_N] for span, rows in self.statistics.items()}, self.label_N[which_N],
                        self.recording_N[which_N], self.edge_N[which_N], self.weight_N[which_N])


@dataclass(frozen=True)
class _Experts:
    """What was learnt for one span: the head of all recordings, and of each fold the head without it."""

    head: LinearHead
    without: list[LinearHead]
    weights: dict[str, float]  # of each view


def teach_pooled(model: Model, clips: Sequence[SupportClip], head: str, background: str, *, seed: int = 0,
                 note: Callable[[str], None] = lambda _: None) -> FewShotResult:
    """Teaches the pooled `head` the labels of some clips, and forgets those it had.
    background: the name that clips of background have; a head without any example of it does not know it."""
    contract = _fit_spans(model.contract, clips)
    named = tuple(dict.fromkeys(clip.label for clip in clips if clip.label != background))
    samples = _collect(contract, clips, (*named, background))
    names = sorted({clip.recording for clip in clips})
    fold_R = _assign_folds(clips, names, seed)
    if not any(clip.label == background for clip in clips) and samples.edge_N.any():
        note("asking whether the recordings' edges show nothing")
        found = _learn(contract, samples, (*named, background), fold_R, note)
        held_out = _hold_out(contract, clips, names, fold_R, found)
        called = sum(int(one.window_TK[-1].argmax()) == len(named) for one in held_out)
        if called > EDGE_ERRORS * len(held_out):
            samples = samples.select(~samples.edge_N)
    labels = (*named, background) if (samples.label_N == len(named)).any() else named
    found = _learn(contract, samples, labels, fold_R, note)
    held_out = _hold_out(contract, clips, names, fold_R, found)
    temperatures = temperatures_of(held_out, labels)
    report = report_of([clip for clip in clips if clip.label in labels], labels, background, held_out, temperatures[1],
                       (), 0.0)
    weights = {span: {name: round(weight, 3) for name, weight in experts.weights.items()}
               for span, experts in found.items()}
    changed = Contract.model_validate({
        **contract.model_dump(), "heads": {**contract.heads, head: labels},
        "background": background if background in labels else None,
        "temperature": {**contract.temperature, head: temperatures[0]},
        "window_temperature": {**contract.window_temperature, head: temperatures[1]},
        "provenance": {**contract.provenance, "taught": [{"seed": seed, "views": weights, **report.as_json()}]}})
    tensors: dict[str, Array] = {name: value for name, value in model.tensors.items()
                                 if not name.startswith((f"{EXAMPLES}{head}.", f"{pooling.PREFIX}{head}."))}
    width = tensors[f"heads.{head}.weight"].shape[1]
    tensors |= {f"heads.{head}.weight": np.zeros((len(labels), width), np.float32),
                f"heads.{head}.bias": np.zeros(len(labels), np.float32)}
    for span, experts in found.items():
        tensors |= {f"{pooling.PREFIX}{head}.{span}.weight": experts.head.weight_KD.astype(np.float32),
                    f"{pooling.PREFIX}{head}.{span}.bias": experts.head.bias_K.astype(np.float32)}
    return FewShotResult(changed, tensors, report, held_out, NO_BACKGROUND_SCORES)


def _fit_spans(contract: Contract, clips: Sequence[SupportClip]) -> Contract:
    """The contract with spans as long as the actions: the window as the median one, the present moment shorter."""
    ticks = [clip.ended - clip.started for clip in clips if clip.natural and clip.ended]
    action_s = float(np.median(ticks)) / contract.frame_rate
    clip_s = contract.clip_frames / contract.frame_rate
    window_s = min(max(action_s, WINDOW_S[0]), WINDOW_S[1])
    now_s = min(max(action_s, NOW_S[0]), NOW_S[1])
    window_clips = math.ceil(window_s / clip_s)
    return contract.model_copy(update={
        "window_clips": window_clips, "pooling": PoolingRule(now_clips=min(math.ceil(now_s / clip_s), window_clips))})


def _spans(contract: Contract) -> dict[str, int]:
    """Clips in each span."""
    assert contract.pooling is not None
    return {"now": contract.pooling.now_clips, "window": contract.window_clips}


def _collect(contract: Contract, clips: Sequence[SupportClip], labels: Sequence[str]) -> _Samples:
    """Late moments of actions, edges, and moments of background, evenly chosen. Every label weighs the same in all,
    and so does every recording of a label."""
    names = {name: i for i, name in enumerate(sorted({clip.recording for clip in clips}))}
    background, idle = len(labels) - 1, [clip for clip in clips if not clip.ended]
    each_idle = max(1, MAX_IDLE_EXAMPLES // max(len(idle), 1))
    rows: dict[str, list[Floats]] = {span: [] for span in pooling.SPANS}
    facts: list[tuple[int, int, bool]] = []
    for clip in clips:
        T = len(clip.features_TD)
        chosen: dict[int, tuple[int, bool]] = {}
        if clip.ended:
            edges = [*range(clip.started - 1), *range(clip.ended + GRACE_TICKS, T)] if clip.natural else []
            chosen |= dict.fromkeys(_evenly(edges, EXAMPLES_OF_CLIP), (background, True))
            late = range(clip.late_from, clip.ended)
            chosen |= {tick: (labels.index(clip.label), False) for tick in _evenly(late, EXAMPLES_OF_CLIP)}
        else:
            chosen |= dict.fromkeys(_evenly(range(T), each_idle), (background, False))
        for tick, statistics in _play(contract, clip.features_TD):
            if tick in chosen:
                for span, values_X in statistics.items():
                    rows[span].append(values_X)
                facts.append((chosen[tick][0], names[clip.recording], chosen[tick][1]))
    label_N, recording_N, edge_N = (np.array(column) for column in zip(*facts, strict=True))
    pairs = list(zip(label_N.tolist(), recording_N.tolist(), strict=True))
    share = {pair: pairs.count(pair) for pair in set(pairs)}
    recordings = np.bincount([label for label, _ in share], minlength=len(labels))
    weight_N = np.array([1 / share[pair] / recordings[pair[0]] for pair in pairs])
    return _Samples({span: np.array(found) for span, found in rows.items()}, label_N, recording_N,
                    edge_N.astype(bool), weight_N)


def _evenly(ticks: Sequence[int], most: int) -> list[int]:
    """Up to `most` of the ticks, the last one among them."""
    chosen = np.linspace(len(ticks) - 1, 0, min(len(ticks), most)).round().astype(int)
    return [ticks[i] for i in chosen]


def _play(contract: Contract, features_TD: Floats) -> Iterator[tuple[int, dict[str, Floats]]]:
    """Statistics of both spans at each tick of a clip."""
    window = StatisticsWindow(contract.clip_frames, contract.window_clips, features_TD.shape[1])
    spans = _spans(contract)
    for tick, features_D in enumerate(features_TD):
        window.push(features_D.astype(np.float32))
        yield tick, {span: window.statistics(count) for span, count in spans.items()}


def _assign_folds(clips: Sequence[SupportClip], names: Sequence[str], seed: int) -> NDArray[np.intp]:
    """The fold of each recording, so that every fold has recordings of every label where there are enough."""
    rng, fold_R = np.random.default_rng(seed), np.zeros(len(names), int)
    of = {clip.recording: clip.label for clip in clips}
    for label in sorted(set(of.values())):
        mine = [i for i, name in enumerate(names) if of[name] == label]
        fold_R[rng.permutation(mine)] = np.arange(len(mine)) % FOLDS
    return fold_R


def _learn(contract: Contract, samples: _Samples, labels: Sequence[str], fold_R: NDArray[np.intp],
           note: Callable[[str], None]) -> dict[str, _Experts]:
    """The experts of each span."""
    found = {}
    for span, rows_NX in samples.statistics.items():
        features = rows_NX.shape[1] // pooling.statistics_width(1)
        note(f"learning from {len(rows_NX)} moments ({span})")
        found[span] = _combine(rows_NX, samples, len(labels), fold_R, _views(contract, features))
    return found


def _views(contract: Contract, features: int) -> list[_View]:
    """Statistics of the last layer and of the middle one, apart; what still shows, what changes, and in what order."""
    grid = contract.network.middle_features
    blocks = {"last layer": (0, features - grid), "middle layer": (features - grid, features)}
    kinds = {"mean": ("mean",), "change": ("deviation", "change"), "order": ("order",)}
    return [_View(f"{block}, {kind}", np.concatenate([statistic_columns(one, *span, features) for one in statistics]))
            for block, span in blocks.items() if span[0] < span[1] for kind, statistics in kinds.items()]


def _combine(rows_NX: Floats, samples: _Samples, K: int, fold_R: NDArray[np.intp], views: Sequence[_View]) -> _Experts:
    fold_N = np.where(samples.recording_N >= 0, fold_R[samples.recording_N], -1)
    folds = [f for f in range(FOLDS) if (fold_N == f).any() and (fold_N != f).any()]
    judge_N = ~samples.edge_N
    experts = []
    for view in views:
        centre_Y, basis_YC = _components(rows_NX[:, view.columns], samples.weight_N)
        parts_NC = (rows_NX[:, view.columns] - centre_Y) @ basis_YC
        found = []
        for l2 in L2:
            heads = [_fit(parts_NC, samples, K, fold_N != f, l2) for f in folds]
            loss = weight = 0.0
            for f, head in zip(folds, heads, strict=True):
                out_N = (fold_N == f) & judge_N
                logp_NK = log_softmax(head.logits(parts_NC[out_N]), axis=1)
                loss -= float(samples.weight_N[out_N] @ logp_NK[np.arange(out_N.sum()), samples.label_N[out_N]])
                weight += float(samples.weight_N[out_N].sum())
            found.append((loss / weight if weight else 0.0, l2, heads))
        loss, l2, heads = min(found, key=lambda one: one[0])
        whole = _fit(parts_NC, samples, K, np.ones(len(fold_N), bool), l2)
        experts.append((view, loss, [_unfold(head, centre_Y, basis_YC) for head in (whole, *heads)]))
    share = np.exp(-np.array([loss for _, loss, _ in experts]) / SOFTNESS)
    share = np.where(share < LEAST_WEIGHT * share.sum(), 0, share)
    share /= share.sum()
    heads = [LinearHead(np.zeros((K, rows_NX.shape[1])), np.zeros(K)) for _ in range(1 + len(folds))]
    for (view, _, parts), weight in zip(experts, share, strict=True):
        for total, part in zip(heads, parts, strict=True):
            total.weight_KD[:, view.columns] += weight * part.weight_KD
            total.bias_K[:] += weight * part.bias_K
    by_fold = dict(zip(folds, heads[1:], strict=True))
    return _Experts(heads[0], [by_fold.get(f, heads[0]) for f in range(FOLDS)],
                    {view.name: float(weight) for (view, *_), weight in zip(experts, share, strict=True) if weight})


def _components(rows_NY: Floats, weight_N: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Centre [Y] and a basis [Y, C] in which the rows' strongest directions have squares that sum to 1 in the mean."""
    centre_Y = rows_NY.mean(axis=0, dtype=np.float64)
    spread_Y = rows_NY.std(axis=0, dtype=np.float64)
    spread_Y = np.maximum(spread_Y, 0.05 * spread_Y.mean() + 1e-9)
    scaled_NY = ((rows_NY - centre_Y) / spread_Y).astype(np.float32)
    values, vectors = np.linalg.eigh((scaled_NY @ scaled_NY.T).astype(np.float64))
    kept = np.argsort(-values)[:COMPONENTS]
    kept = kept[values[kept] > 1e-6 * max(values[kept[0]], 1e-12)]
    basis_YC = scaled_NY.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    size = math.sqrt(max(values[kept].sum() / len(rows_NY), 1e-12))
    return centre_Y, basis_YC / spread_Y[:, None] / size


def _fit(parts_NC: Float64Array, samples: _Samples, K: int, learn_N: NDArray[np.bool_], l2: float) -> LinearHead:
    rows, C = samples.select(learn_N), parts_NC.shape[1]
    N = len(rows.label_N)
    examples = Examples(parts_NC[learn_N], np.eye(K)[rows.label_N], rows.weight_N, np.ones(N), rows.recording_N,
                        np.zeros(N, bool))
    return fit(examples, LinearHead(np.zeros((K, C)), np.zeros(K)), np.zeros(K, bool), l2, standardise=False,
               steps=STEPS)


def _unfold(head: LinearHead, centre_Y: Float64Array, basis_YC: Float64Array) -> LinearHead:
    """The head on the statistics themselves."""
    weight_KY = head.weight_KD @ basis_YC.T
    return LinearHead(weight_KY, head.bias_K - weight_KY @ centre_Y)


def _hold_out(contract: Contract, clips: Sequence[SupportClip], names: Sequence[str], fold_R: NDArray[np.intp],
              found: dict[str, _Experts]) -> list[HeldOut]:
    """Every recording as it is, scored by experts that have not seen it."""
    held_out = []
    for clip in clips:
        if not clip.natural or sum(fold_R == fold_R[names.index(clip.recording)]) == len(fold_R):
            continue
        fold = fold_R[names.index(clip.recording)]
        rows: dict[str, list[Float64Array]] = {span: [] for span in found}
        for _, statistics in _play(contract, clip.features_TD):
            for span, values_X in statistics.items():
                rows[span].append(found[span].without[fold].logits(values_X[None])[0])
        held_out.append(HeldOut(replace(clip, features_TD=clip.features_TD[:0]), np.array(rows["now"]),
                                np.array(rows["window"])))
    return held_out
