"""Which moments of a lesson's recordings are examples of which label, and what a stream shows at them.

    a recording, from its start                     ─► late moments of its action: the label
    a recording between pieces of idle footage      ─► the same, as a stream shows them, and just after the action
    idle footage, rendered rooms without gestures   ─► background

Legend: N examples, X statistics, D features, T ticks."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engines.model.contract import Contract
from engines.model.pooling import SPANS, Floats, StatisticsWindow, foreground_of, statistics_width
from engines.training.softmax_regression import Float64Array
from engines.training.support_clips import SupportClip

EXAMPLES_OF_CLIP = 3
IDLE_EXAMPLES, RENDERED_EXAMPLES = 240, 240  # at most
STREAMED = 3  # times that a recording is shown between idle footage
LEAST_EDGE_S = 1.0  # of a recording before the action, from which on it shows what nothing looks like
BEFORE_S, AFTER_S = (2.0, 8.0), 4.0  # of idle footage around a recording
AFTER_ACTION = (0.25, 0.5)  # of `now`: what it shows besides when it is an example of the action all the same


@dataclass(frozen=True)
class Moments:
    """Moments of clips, and what each is of."""

    clip_N: NDArray[np.intp]  # place in the list of clips
    tick_N: NDArray[np.intp]
    label_N: NDArray[np.intp]
    recording_N: NDArray[np.intp]  # place in the list of recordings
    edge_N: NDArray[np.bool_]  # whether it is an edge of a recording, taken for background
    whole_N: NDArray[np.bool_]  # whether what it is of is over by then
    weight_N: Float64Array

    def select(self, which_N: NDArray[np.bool_]) -> "Moments":
        """Some of the moments."""
        return Moments(*(column[which_N] for column in vars(self).values()))

    def statistics(self, contract: Contract, clips: Sequence[SupportClip], span: str) -> Floats:
        """Of one span, [N, X]: for each span when it is wanted, since those of all take much memory."""
        width = statistics_width(clips[0].features_TD.shape[1])
        rows_NX, n = np.empty((len(self.clip_N), width), np.float32), 0
        for index in dict.fromkeys(self.clip_N.tolist()):
            ticks = self.tick_N[self.clip_N == index].tolist()
            for _, statistics in play_statistics(contract, clips[index].features_TD, ticks, (span,)):
                rows_NX[n] = statistics[span]
                n += 1
        return rows_NX


def choose_moments(contract: Contract, clips: Sequence[SupportClip], labels: Sequence[str], names: Sequence[str]
                   ) -> Moments:
    """Late moments of actions, edges, and moments of background, evenly chosen. Every label weighs the same in all,
    and so does every recording of a label; what is rendered counts as a label of its own."""
    least_edge, background = round(LEAST_EDGE_S * contract.frame_rate), len(labels) - 1
    assert contract.pooling is not None
    now_ticks = contract.pooling.now_clips * contract.clip_frames
    idle = Counter(clip.rendered for clip in clips if not clip.ended)
    most = {False: IDLE_EXAMPLES, True: RENDERED_EXAMPLES}
    each_idle = {rendered: max(1, most[rendered] // count) for rendered, count in idle.items()}
    facts: list[tuple[int, int, int, int, bool, bool, bool]] = []
    for i, clip in enumerate(clips):
        chosen: dict[int, tuple[int, bool]] = {}
        if clip.ended:
            if clip.natural:
                edges = range(least_edge, clip.started - 1)  # after its end, the window still shows the action
                chosen |= dict.fromkeys(_evenly(edges, EXAMPLES_OF_CLIP), (background, True))
            late = range(clip.late_from, clip.ended)
            after = () if clip.natural else [clip.ended - 1 + round(share * now_ticks) for share in AFTER_ACTION]
            chosen |= {tick: (labels.index(clip.label), False) for tick in (*_evenly(late, EXAMPLES_OF_CLIP), *after)
                       if tick < len(clip.features_TD)}
        else:
            chosen |= dict.fromkeys(_evenly(range(len(clip.features_TD)), each_idle[clip.rendered]),
                                    (background, False))
        recording = names.index(clip.recording)
        facts += [(i, tick, label, recording, edge, label == background or tick == clip.ended - 1, clip.rendered)
                  for tick, (label, edge) in sorted(chosen.items())]
    clip_N, tick_N, label_N, recording_N, edge_N, whole_N, rendered_N = (
        np.array(column) for column in zip(*facts, strict=True))
    kinds = list(zip(label_N.tolist(), rendered_N.tolist(), recording_N.tolist(), strict=True))
    share = Counter(kinds)
    recordings = Counter(kind[:2] for kind in share)
    weight_N = np.array([1 / share[kind] / recordings[kind[:2]] for kind in kinds])
    return Moments(clip_N, tick_N, label_N, recording_N, edge_N, whole_N, weight_N)


def _evenly(ticks: Sequence[int], most: int) -> list[int]:
    """Up to `most` of the ticks, the last one among them."""
    chosen = np.linspace(len(ticks) - 1, 0, min(len(ticks), most)).round().astype(int)
    return [ticks[i] for i in chosen]


def play_statistics(contract: Contract, features_TD: Floats, ticks: Collection[int], spans: Sequence[str] = SPANS
                    ) -> Iterator[tuple[int, dict[str, Floats]]]:
    """Statistics of these spans at these ticks of a clip."""
    window = StatisticsWindow(contract.clip_frames, contract.window_clips, features_TD.shape[1])
    assert contract.pooling is not None
    clips = {"now": contract.pooling.now_clips, "window": contract.window_clips}
    for tick, features_D in enumerate(features_TD):
        window.push(features_D.astype(np.float32))
        if tick in ticks:
            yield tick, {span: window.statistics(clips[span]) for span in spans}


def surround_with_idle(contract: Contract, clips: Sequence[SupportClip], seed: int) -> list[SupportClip]:
    """Each recording of an action STREAMED times more, between some seconds of filmed idle footage: as a stream shows
    it, whose windows reach beyond the action. None where the clips have no such footage."""
    idle = [clip.features_TD for clip in clips if not (clip.ended or clip.rendered)]
    rng, found = np.random.default_rng(seed), []

    def piece(seconds: float) -> Floats:
        other_TD = idle[int(rng.integers(len(idle)))]
        count = min(round(seconds * contract.frame_rate), len(other_TD))
        first = int(rng.integers(len(other_TD) - count + 1))
        return other_TD[first:first + count]

    for clip in [clip for clip in clips if idle and clip.ended and clip.natural for _ in range(STREAMED)]:
        before_TD, after_TD = piece(float(rng.uniform(*BEFORE_S))), piece(AFTER_S)
        features_TD = _with_foreground(contract, np.concatenate([before_TD, clip.features_TD, after_TD]))
        found.append(replace(clip, features_TD=features_TD, started=clip.started + len(before_TD),
                             ended=clip.ended + len(before_TD), natural=False))
    return found


def _with_foreground(contract: Contract, features_TD: Floats) -> Floats:
    """The features, with those of the foreground as they are when frames follow one another like this."""
    foreground, rule = foreground_of(contract), contract.pooling
    if foreground is None or rule is None:
        return features_TD
    stop = features_TD.shape[1] - rule.hands
    first = stop - contract.foreground_cells
    seen_TP = np.array([foreground.push(features_D[:first]) for features_D in features_TD])
    return np.concatenate([features_TD[:, :first], seen_TP, features_TD[:, stop:]], axis=1)
