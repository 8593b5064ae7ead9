"""What recordings teach: which moments of them are examples of what.

    motion ──► span of the action ──► late moments: its label
                                      before it, and after it: background

Legend: T ticks of the model's clock, N examples, D features, K labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.training.softmax_regression import Examples

Floats = NDArray[np.float32]

LATE = 0.75  # from this share of an action on, its label can be known
GRACE_TICKS = 3  # after an action's end, in which either answer is right
EDGE_MOST = 0.4  # of a recording, that is edge at each side
MOVING = 0.25  # of the way from quiet to loud, above which there is motion
LOUDER = 2.0  # than quiet, by this factor, is what motion has to be to be told
ENOUGH = 60  # examples a kind from one lesson, at most


@dataclass(frozen=True)
class SupportClip:
    """One play of a recording, through the engine, from fresh state.

    recording: its name; plays of one recording share it; features [T, D] and window descriptors [T, D] of every tick;
    started, ended: ticks of the action, [started, ended); none of them in a lesson of background; natural: the
    recording as it is, with no change of speed and nothing before or after it.
    """

    recording: str
    label: str
    features_TD: Floats
    windows_TD: Floats
    started: int
    ended: int
    natural: bool = True


def action_span(motion_T: NDArray[np.floating]) -> tuple[int, int]:
    """First and one past the last tick of the action, from how much each tick's image differs from the one before.

    The whole recording, where motion does not stand out; an edge is never more than EDGE_MOST of the recording.
    """
    T = len(motion_T)
    if T < 4:
        return 0, T
    smooth_T = np.convolve(np.pad(motion_T, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    quiet, loud = np.percentile(smooth_T, [10, 90])
    if loud <= LOUDER * quiet or loud <= 0:
        return 0, T
    moving = np.flatnonzero(smooth_T > quiet + MOVING * (loud - quiet))
    most = int(EDGE_MOST * T)
    return min(max(int(moving[0]) - 1, 0), most), max(min(int(moving[-1]) + 2, T), T - most)


def make_examples(lessons: Sequence[SupportClip], labels: Sequence[str], background: str, warmup: int,
                temperatures: tuple[float, float]) -> Examples:
    """Examples for `now` and for windows, whose logits are divided by the two temperatures in turn.

    Every label counts the same, and so does every recording of a label.
    """
    numbers = {name: i for i, name in enumerate(sorted({lesson.recording for lesson in lessons}))}
    taken: list[tuple[Floats, str, int, int]] = []  # features, label, recording, kind
    for lesson in lessons:
        number, T = numbers[lesson.recording], len(lesson.features_TD)
        if lesson.label == background:
            before, late = np.arange(min(warmup, T - 1), T), np.zeros(0, np.int64)
            after = late
        else:
            length = lesson.ended - lesson.started
            late = np.arange(lesson.started + int(LATE * length), lesson.ended)
            before, after = np.arange(warmup, lesson.started), np.arange(lesson.ended + GRACE_TICKS, T)
        for rows_TD, ticks, label, kind in ((lesson.features_TD, late, lesson.label, 0),
                                            (lesson.windows_TD, late, lesson.label, 1),
                                            (lesson.features_TD, np.concatenate([before, after]), background, 0),
                                            (lesson.windows_TD, before, background, 1)):
            taken += [(rows_TD[tick], label, number, kind) for tick in subsample(ticks)]
    share = Counter((label, number, kind) for _, label, number, kind in taken)
    recordings = Counter((label, kind) for label, _, kind in share)
    weight_N = [1 / share[label, number, kind] / recordings[label, kind] for _, label, number, kind in taken]
    return Examples(np.array([row for row, *_ in taken], np.float64),
                    np.eye(len(labels))[[labels.index(label) for _, label, *_ in taken]], np.array(weight_N),
                    np.array([temperatures[kind] for *_, kind in taken]),
                    np.array([number for *_, number, _ in taken], np.int64),
                    np.array([kind == 1 for *_, kind in taken]))


def subsample(ticks: NDArray[np.int64], most: int = ENOUGH) -> NDArray[np.int64]:
    """At most so many of them, evenly."""
    return ticks if len(ticks) <= most else ticks[np.linspace(0, len(ticks) - 1, most).astype(np.int64)]
