"""Few-shot teaching of pooled heads: which statistics tell the recordings' labels apart is found by cross-validation.

    statistics ──view by view──► principal components ──► softmax regression ─┐ product of experts,
    (appearance, motion, order; of the middle layer, of the last, of hands)  ─┴─ weighted by held-out loss ─┐
    those of motion ──► principal components ──► a hidden layer (`hidden_layer.py`) ────────────────────────┴─► head

A product of linear softmax experts is one linear head, so what is learnt costs live what one head and the hidden layer
cost. The network stays as it is. Every recording is judged by experts that have not seen it.

Legend: N examples, X statistics, D features, K labels, T ticks, R recordings."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, eigh
from scipy.special import log_softmax

from engines.model import pooling
from engines.model.contract import NO_BACKGROUND_EVENTS, Contract
from engines.model.file import EXAMPLES, Array, Model
from engines.model.pooling import Floats, feature_blocks, motion_columns, statistic_columns
from engines.synthetic import BACKGROUND
from engines.training.few_shot import NO_BACKGROUND_SCORES, FewShotResult, HeldOut, report_of, temperatures_of
from engines.training.hidden_layer import UNITS, HiddenHead, MixedHead, fit_hidden
from engines.training.pooled_examples import Moments, choose_moments, play_statistics, surround_with_idle
from engines.training.softmax_regression import Examples, Float64Array, LinearHead, fit
from engines.training.support_clips import SupportClip
from engines.training.temperature import GRID, doubt_of

FOLDS = 5
L2 = (1e-2, 1e-3, 1e-4, 1e-5)  # for components whose squares sum to 1 in the mean
STEPS = 25  # of L-BFGS for each
COMPONENTS = 128  # of a view, at most
SOFTNESS = 0.7  # nats of held-out loss by which an expert's weight falls to 1/e
LEAST_KNOWN = 0.85  # an expert whose held-out loss is above this share of chance's is left out
WINDOW_S = (1.5, 10.0)  # the shortest and the longest window
NOW_S = (1.2, 3.0)
CLIPS = 24  # in a window, at least, where there are as many ticks
HIDDEN_SHARE = 0.7  # of the hidden layer's logits in all, where it knows anything
HIDDEN_SIZE = 8.0  # root of what the squares of a view's components sum to in the mean, where it reads them
EDGE_ERRORS = 0.05  # of the recordings called background when left out, above which their edges teach none


class _View(NamedTuple):
    """Some of the statistics: columns of X. whole: in the midst of an action they say little; motion: of the motion
    branch."""

    name: str
    columns: NDArray[np.intp]
    whole: bool
    motion: bool


@dataclass(frozen=True)
class _Experts:
    """What was learnt for one span: the head of all recordings, and of each fold the head without it."""

    head: MixedHead
    without: list[MixedHead]
    weights: dict[str, float]  # of each view


def teach_pooled(model: Model, clips: Sequence[SupportClip], head: str, background: str, *, seed: int = 0,
                 group_of: Mapping[str, str] | None = None,
                 note: Callable[[str], None] = lambda _: None) -> FewShotResult:
    """Teaches the pooled `head` the labels of some clips, and forgets those it had.
    background: the name that clips of background have; a head without any example of it does not know it, and rendered
    ones alone are none; group_of: of each recording, whom or where it shows: those of one group are held out together.
    None: each for itself."""
    named = tuple(dict.fromkeys(clip.label for clip in clips if clip.label != background))
    has_idle = any(clip.label == background and not clip.rendered for clip in clips)
    contract = _fit_spans(model.contract, clips, has_idle)
    assert contract.pooling is not None
    clips = [clip for clip in clips if has_idle or not clip.rendered]
    names = sorted({clip.recording for clip in clips})
    shown = [*clips, *surround_with_idle(contract, clips, seed)]
    moments = choose_moments(contract, shown, (*named, background), names)
    fold_R = _assign_folds(clips, names, group_of or {}, seed)
    if not has_idle and moments.edge_N.any():
        note("asking whether the recordings' edges show nothing")
        found = _learn(contract, shown, moments, (*named, background), fold_R, note)
        held_out = _hold_out(contract, clips, names, fold_R, found)
        called = sum(int(one.window_TK[-1].argmax()) == len(named) for one in held_out)
        if called > EDGE_ERRORS * len(held_out):
            moments = moments.select(~moments.edge_N)
    labels = (*named, background) if (moments.label_N == len(named)).any() else named
    found = _learn(contract, shown, moments, labels, fold_R, note)
    if contract.pooling.hands and not any("hands" in view for one in found.values() for view in one.weights):
        clips = [replace(clip, features_TD=clip.features_TD[:, :-contract.pooling.hands]) for clip in clips]
        contract, found = _without_hands(contract, found)
    held_out = _hold_out(contract, clips, names, fold_R, found)
    temperatures = temperatures_of(held_out, labels)
    report = report_of([clip for clip in clips if clip.label in labels], labels, background, held_out, temperatures[1],
                       (), 0.0)
    weights = {span: {name: round(weight, 3) for name, weight in experts.weights.items()}
               for span, experts in found.items()}
    changed = Contract.model_validate({
        **contract.model_dump(), "heads": {**contract.heads, head: labels},
        "background": background if background in labels else None,
        "events": (contract.events if background in labels else NO_BACKGROUND_EVENTS).model_dump(),
        "temperature": {**contract.temperature, head: temperatures[0]},
        "window_temperature": {**contract.window_temperature, head: temperatures[1]},
        "provenance": {**contract.provenance, "taught": [{"seed": seed, "views": weights, **report.as_json()}]}})
    tensors: dict[str, Array] = {name: value for name, value in model.tensors.items()
                                 if not name.startswith((f"{EXAMPLES}{head}.", f"{pooling.PREFIX}{head}."))}
    width = model.tensors[f"heads.{head}.weight"].shape[1]
    tensors |= {f"heads.{head}.weight": np.zeros((len(labels), width), np.float32),
                f"heads.{head}.bias": np.zeros(len(labels), np.float32)}
    for span, experts in found.items():
        tensors |= {f"{pooling.PREFIX}{head}.{span}.{name}": part.astype(np.float32)
                    for name, part in experts.head.parts().items()}
    return FewShotResult(changed, tensors, report, held_out, NO_BACKGROUND_SCORES)


def forget(model: Model, head: str, hands: int) -> Model:
    """The model with a pooled `head` that knows nothing yet. hands: the features of hands that it reads, 0 for none."""
    assert model.contract.pooling is not None
    labels = (BACKGROUND, "action")
    contract = model.contract.model_copy(update={
        "heads": {**model.contract.heads, head: labels}, "background": BACKGROUND,
        "pooling": model.contract.pooling.model_copy(update={"hands": hands, "hidden": 0})})
    width = model.tensors[f"heads.{head}.weight"].shape[1]
    shapes = pooling.tensor_shapes(contract, head, len(labels), width + contract.foreground_cells + hands)
    shapes |= {f"heads.{head}.weight": (len(labels), width), f"heads.{head}.bias": (len(labels),)}
    blank = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    kept = {name: value for name, value in model.tensors.items() if not name.startswith(f"{pooling.PREFIX}{head}.")}
    return replace(model, contract=contract, tensors={**kept, **blank})


def _without_hands(contract: Contract, found: dict[str, _Experts]) -> tuple[Contract, dict[str, _Experts]]:
    """The same for a model that looks for no hands."""
    assert contract.pooling is not None
    width, hands = pooling.statistics_width(1), contract.pooling.hands
    contract = contract.model_copy(update={"pooling": contract.pooling.model_copy(update={"hands": 0})})

    def cut(head: MixedHead) -> MixedHead:
        blocks_KBD = head.linear.weight_KD.reshape(len(head.linear.bias_K), width, -1)[..., :-hands]
        linear = LinearHead(blocks_KBD.reshape(len(head.linear.bias_K), -1), head.linear.bias_K)
        return MixedHead(linear, head.hidden, motion_columns(contract, blocks_KBD.shape[-1]))

    return contract, {span: _Experts(cut(experts.head), [cut(head) for head in experts.without], experts.weights)
                      for span, experts in found.items()}


def _fit_spans(contract: Contract, clips: Sequence[SupportClip], has_idle: bool) -> Contract:
    """The contract with spans as long as the actions: the window as the median one, the present moment as its half; and
    with a hidden layer where it can tell actions from what resembles them: to tell labels apart takes more examples."""
    rate, ticks = contract.frame_rate, [clip.ended - clip.started for clip in clips if clip.natural and clip.ended]
    action_s = float(np.median(ticks)) / rate
    window, now = (math.ceil(min(max(span_s, least_s), most_s) * rate) for span_s, (least_s, most_s) in
                   ((action_s, WINDOW_S), (action_s / 2, NOW_S)))
    clip_frames = max(1, window // CLIPS)
    window_clips = math.ceil(window / clip_frames)
    assert contract.pooling is not None
    return contract.model_copy(update={
        "clip_frames": clip_frames, "window_clips": window_clips,
        "pooling": contract.pooling.model_copy(update={
            "now_clips": min(math.ceil(now / clip_frames), window_clips),
            "hidden": UNITS if has_idle and contract.network.motion_features else 0})})


def _assign_folds(clips: Sequence[SupportClip], names: Sequence[str], group_of: Mapping[str, str], seed: int
                  ) -> NDArray[np.intp]:
    """The fold of each recording. Groups stay together, if there are several; else every fold has recordings of every
    label where there are enough."""
    rng, fold_R = np.random.default_rng(seed), np.zeros(len(names), int)
    groups = [group_of.get(name, name) for name in names]
    if 1 < len(set(groups)) < len(names):
        order = {group: i for i, group in enumerate(rng.permutation(sorted(set(groups))).tolist())}
        return np.array([order[group] % FOLDS for group in groups])
    of = {clip.recording: clip.label for clip in clips}
    for label in sorted(set(of.values())):
        mine = [i for i, name in enumerate(names) if of[name] == label]
        fold_R[rng.permutation(mine)] = np.arange(len(mine)) % FOLDS
    return fold_R


def _learn(contract: Contract, clips: Sequence[SupportClip], moments: Moments, labels: Sequence[str],
           fold_R: NDArray[np.intp], note: Callable[[str], None]) -> dict[str, _Experts]:
    """The experts of each span."""
    found = {}
    for span in pooling.SPANS:
        note(f"learning from {len(moments.label_N)} moments ({span})")
        rows_NX = moments.statistics(contract, clips, span)
        found[span] = _combine(contract, rows_NX, moments, len(labels), fold_R)
    return found


def _views(contract: Contract, features: int) -> list[_View]:
    """Statistics of the last layer and of the middle one, apart; what still shows, what changes, and in what order."""
    kinds = {"mean": ("mean",), "change": ("deviation", "change"), "order": ("order",)}
    return [_View(f"{block}, {kind}", np.concatenate([statistic_columns(one, *span, features) for one in statistics]),
                  kind == "order", block == "motion")
            for block, span in feature_blocks(contract, features).items() for kind, statistics in kinds.items()]


def _combine(contract: Contract, rows_NX: Floats, moments: Moments, K: int, fold_R: NDArray[np.intp]) -> _Experts:
    fold_N, features = fold_R[moments.recording_N], rows_NX.shape[1] // pooling.statistics_width(1)
    folds = [f for f in range(FOLDS) if (fold_N == f).any() and (fold_N != f).any()]
    learn_FN = [fold_N != f for f in folds]

    def hold_out(heads: Sequence[LinearHead | HiddenHead], inputs: NDArray[np.floating]) -> Float64Array:
        """Logits of every moment by the head that has not seen it; 0 where there is none."""
        logits_NK = np.zeros((len(fold_N), K))
        for learn_N, head in zip(learn_FN, heads, strict=True):
            logits_NK[~learn_N] = head.logits(inputs[~learn_N])
        return logits_NK

    views = _views(contract, features)
    experts, losses, motion = [], [], []  # heads of all recordings and without each fold
    for view in views:
        parts_NC, centre_Y, basis_YC = _components(rows_NX[:, view.columns])
        knows_N = moments.whole_N | (not view.whole)
        found = []
        for l2 in L2:
            heads = [_fit(parts_NC, moments, K, knows_N & learn_N, l2) for learn_N in learn_FN]
            found.append((_loss(hold_out(heads, parts_NC), moments), l2, heads))
        loss, l2, heads = min(found, key=lambda one: one[0])
        whole = _fit(parts_NC, moments, K, knows_N, l2)
        experts.append([_unfold(head, centre_Y, basis_YC) for head in (whole, *heads)])
        losses.append(loss)
        if view.motion and contract.pooling is not None and contract.pooling.hidden:
            motion.append((parts_NC, centre_Y, basis_YC))
    weight_V = _weigh(losses, math.log(K))
    linear = [LinearHead(np.zeros((K, rows_NX.shape[1])), np.zeros(K)) for _ in range(1 + len(folds))]
    for view, heads, weight in zip(views, experts, weight_V.tolist(), strict=True):
        for into, head in zip(linear, heads, strict=True):
            into.weight_KD[:, view.columns] += weight * head.weight_KD
            into.bias_K[:] += weight * head.bias_K
    weights = {view.name: weight for view, weight in zip(views, weight_V.tolist(), strict=True) if weight}
    total = [MixedHead(head) for head in linear]
    if motion:
        columns = motion_columns(contract, features)
        hidden = _fit_hidden(motion, moments, K, learn_FN)
        share, scale = _mix(hold_out(linear[1:], rows_NX), hold_out(hidden[1:], rows_NX[:, columns]), moments)
        total = [MixedHead(one.scale(scale), other.scale(share), columns)
                 for one, other in zip(linear, hidden, strict=True)]
        weights = {name: weight * (1 - share) for name, weight in weights.items()} | {"motion, hidden layer": share}
    without = dict(zip(folds, total[1:], strict=True))
    return _Experts(total[0], [without.get(f, total[0]) for f in range(FOLDS)], weights)


def _fit_hidden(motion: Sequence[tuple[Float64Array, Float64Array, Float64Array]], moments: Moments, K: int,
                learn_FN: Sequence[NDArray[np.bool_]]) -> list[HiddenHead]:
    """Hidden layers of all recordings and without each fold, on the statistics themselves. motion: `_components` of
    the motion branch's views."""
    parts_NC = HIDDEN_SIZE * np.concatenate([parts_NC for parts_NC, _, _ in motion], axis=1)
    centre_Y = np.concatenate([centre_Y for _, centre_Y, _ in motion])
    basis_YC = block_diag(*(basis_YC for _, _, basis_YC in motion))
    found = []
    for learn_N in (np.ones(len(parts_NC), bool), *learn_FN):
        head = fit_hidden(parts_NC[learn_N], moments.label_N[learn_N], moments.weight_N[learn_N], K)
        weight_HY = HIDDEN_SIZE * head.weight_HC @ basis_YC.T
        found.append(replace(head, weight_HC=weight_HY.astype(np.float32),
                             bias_H=(head.bias_H - weight_HY @ centre_Y).astype(np.float32)))
    return found


def _mix(linear_NK: Float64Array, hidden_NK: Float64Array, moments: Moments) -> tuple[float, float]:
    """The share of the hidden layer, and what the linear head's logits are multiplied by, from those of what was left
    out. Weak as they are, the linear head's are made to mean what they say; a hidden layer's do, as it learns from
    smoothed labels."""
    if _loss(hidden_NK, moments) > LEAST_KNOWN * math.log(hidden_NK.shape[1]):
        return 0.0, 1.0
    doubt = doubt_of(len(np.unique(moments.recording_N)))
    temperature = min(GRID.tolist(), key=lambda value: _loss(linear_NK / value, moments, doubt))
    return HIDDEN_SHARE, (1 - HIDDEN_SHARE) / temperature


def _loss(logits_NK: Float64Array, moments: Moments, doubt: float = 0.0) -> float:
    """Mean cross-entropy of whole actions and of background that were left out. doubt: see `temperature`."""
    weight_N = moments.weight_N * (moments.whole_N & ~moments.edge_N)
    logp_NK = log_softmax(logits_NK, axis=1)
    logp_N = (1 - doubt) * logp_NK[np.arange(len(weight_N)), moments.label_N] + doubt * logp_NK.mean(axis=1)
    return float(-(weight_N @ logp_N) / weight_N.sum())


def _weigh(losses: Sequence[float], chance: float) -> Float64Array:
    """The experts' weights by their held-out losses. Never far from equal where losses are: what is best on recordings
    of one place is seldom best at another. chance: the loss of an expert that knows nothing."""
    loss_V = np.array(losses)
    share_V = np.exp(-(loss_V - loss_V.min()) / SOFTNESS)
    share_V[loss_V > max(loss_V.min(), LEAST_KNOWN * chance)] = 0
    return np.asarray(share_V / share_V.sum())


def _components(rows_NY: Floats) -> tuple[Float64Array, Float64Array, Float64Array]:
    """The rows' strongest directions, whose squares sum to 1 in the mean [N, C]; the centre [Y] and the basis [Y, C]
    that they are in. Of all recordings, those that are left out among them: no label is looked at."""
    centre_Y = rows_NY.mean(axis=0, dtype=np.float64)
    spread_Y = rows_NY.std(axis=0, dtype=np.float64)
    spread_Y = np.maximum(spread_Y, 0.05 * spread_Y.mean() + 1e-9)
    scaled_NY = rows_NY - centre_Y.astype(np.float32)
    scaled_NY /= spread_Y.astype(np.float32)
    N = len(rows_NY)
    strongest = [max(N - COMPONENTS, 0), N - 1]
    values, vectors = eigh((scaled_NY @ scaled_NY.T).astype(np.float64), subset_by_index=strongest)
    kept = values > 1e-6 * max(values[-1], 1e-12)
    root_C = np.sqrt(values[kept])
    size = math.sqrt(max(values[kept].sum() / N, 1e-12))
    basis_YC = scaled_NY.T @ (vectors[:, kept] / root_C).astype(np.float32)
    return vectors[:, kept] * (root_C / size), centre_Y, basis_YC / spread_Y[:, None] / size


def _fit(parts_NC: Float64Array, moments: Moments, K: int, learn_N: NDArray[np.bool_], l2: float) -> LinearHead:
    parts_LC, start = parts_NC[learn_N], LinearHead(np.zeros((K, parts_NC.shape[1])), np.zeros(K))
    examples = Examples(parts_LC, np.eye(K)[moments.label_N[learn_N]], moments.weight_N[learn_N],
                        np.ones(len(parts_LC)), moments.recording_N[learn_N], np.zeros(len(parts_LC), bool))
    return fit(examples, start, np.zeros(K, bool), l2, standardise=False, steps=STEPS)


def _unfold(head: LinearHead, centre_Y: Float64Array, basis_YC: Float64Array) -> LinearHead:
    """The head on the statistics themselves."""
    weight_KY = head.weight_KD @ basis_YC.T
    return LinearHead(weight_KY, head.bias_K - weight_KY @ centre_Y)


def _hold_out(contract: Contract, clips: Sequence[SupportClip], names: Sequence[str], fold_R: NDArray[np.intp],
              found: dict[str, _Experts]) -> list[HeldOut]:
    """Every recording as it is, scored by experts that have not seen it; but for labels that no others show."""
    held_out = []
    fold_of = {clip.recording: int(fold_R[names.index(clip.recording)]) for clip in clips}
    folds_of_labels = Counter(label for label, _ in {(clip.label, fold_of[clip.recording]) for clip in clips})
    for clip in clips:
        if not clip.natural or folds_of_labels[clip.label] < 2:
            continue
        fold = fold_of[clip.recording]
        rows: dict[str, list[Float64Array]] = {span: [] for span in found}
        for _, statistics in play_statistics(contract, clip.features_TD, range(len(clip.features_TD))):
            for span, values_X in statistics.items():
                rows[span].append(found[span].without[fold].logits(values_X[None])[0])
        held_out.append(HeldOut(replace(clip, features_TD=clip.features_TD[:0]), np.array(rows["now"]),
                                np.array(rows["window"])))
    return held_out
