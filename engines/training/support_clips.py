"""Support clips: which moments of a few recordings are examples of which label.

    motion ──► span of the action ──► its late moments: the label
                                      before and after it: background

Legend: T ticks of the model's clock, N examples, D features, K labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.training.softmax_regression import Examples
from engines.training.temperature import LATE

Floats = NDArray[np.float32]

GRACE_TICKS = 3  # after an action's end, in which either answer is right
MAX_EDGE = 0.4  # share of a recording that is edge, at each side
MOTION_AT = 0.25  # of the way from the quietest to the loudest ticks, above which there is motion
MIN_CONTRAST = 2.0  # of loud against quiet ticks, for motion to stand out
MAX_EXAMPLES = 60  # of a kind from one clip


@dataclass(frozen=True)
class SupportClip:
    """One play of a recording through the engine, from fresh state."""

    recording: str  # its name, the same for all plays of one
    label: str
    features_TD: Floats  # of every tick
    windows_TD: Floats  # descriptors of the window that ends with each tick
    started: int  # first tick of the action
    ended: int  # one past its last; 0 for a clip of background
    natural: bool = True  # the recording as it is: no change of speed, nothing before or after it
    rendered: bool = False  # background that no camera filmed

    @property
    def late_from(self) -> int:
        """The tick from which its label can be known."""
        return self.started + int(LATE * (self.ended - self.started))


def action_span(motion_T: NDArray[np.floating]) -> tuple[int, int]:
    """First and one past the last tick of the action, from how much each tick's image differs from the one before.
    The whole recording where motion does not stand out; an edge is never more than MAX_EDGE of the recording."""
    T = len(motion_T)
    if T < 4:
        return 0, T
    smooth_T = np.convolve(np.pad(motion_T, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    quiet, loud = np.percentile(smooth_T, [10, 90])
    if loud <= MIN_CONTRAST * quiet or loud <= 0:
        return 0, T
    moving = np.flatnonzero(smooth_T > quiet + MOTION_AT * (loud - quiet))
    most = int(MAX_EDGE * T)
    return min(max(int(moving[0]) - 1, 0), most), max(min(int(moving[-1]) + 2, T), T - most)


def make_examples(clips: Sequence[SupportClip], labels: Sequence[str], background: str, warmup: int,
                temperatures: tuple[float, float]) -> Examples:
    """Examples for `now` and for windows, whose logits are divided by these temperatures.
    Every label counts the same, and so does every recording of a label."""
    numbers = {name: i for i, name in enumerate(sorted({clip.recording for clip in clips}))}
    chosen: list[tuple[Floats, str, int, int]] = []  # features, label, recording, kind
    for clip in clips:
        number, T = numbers[clip.recording], len(clip.features_TD)
        before, after = np.arange(warmup, clip.started), np.arange(clip.ended + GRACE_TICKS, T)
        late = np.arange(clip.late_from, clip.ended)
        if clip.label == background:
            before, after, late = np.arange(min(warmup, T - 1), T), after[:0], late[:0]
        for rows_TD, ticks, label, kind in ((clip.features_TD, late, clip.label, 0),
                                            (clip.windows_TD, late, clip.label, 1),
                                            (clip.features_TD, np.concatenate([before, after]), background, 0),
                                            (clip.windows_TD, before, background, 1)):
            some = np.linspace(0, len(ticks) - 1, min(len(ticks), MAX_EXAMPLES)).astype(np.int64)
            chosen += [(rows_TD[tick], label, number, kind) for tick in ticks[some]]
    share = Counter((label, number, kind) for _, label, number, kind in chosen)
    recordings = Counter((label, kind) for label, _, kind in share)
    weight_N = [1 / share[label, number, kind] / recordings[label, kind] for _, label, number, kind in chosen]
    rows, named, number_N, kind_N = (np.array(column) for column in zip(*chosen, strict=True))
    return Examples(rows.astype(np.float64), np.eye(len(labels))[[labels.index(label) for label in named]],
                    np.array(weight_N), np.array(temperatures)[kind_N], number_N, kind_N == 1)
