"""Clips that were left out: what a network says of them, and the temperatures that make it mean what it says.

`now` and `window` get their own: the window's logits are means over many frames, and so are smoother."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engines.datasets.base import Segment
from engines.datasets.decode import frames_at
from engines.errors import DatasetError
from engines.model.contract import Contract
from engines.networks.network import Network
from engines.training.pixels import normalise
from engines.training.temperature import LATE, Logits, label_scales, label_temperature, temperature

log = logging.getLogger("gatestream.training")
T = TypeVar("T")


class ValidationClip(NamedTuple):
    """A clip that was left out: images uint8 [N, H, W, 3] at the input's size, times from 0 [N], labels by head, and
    those of what overlaps it, which may be true in it or not."""

    images: NDArray[np.uint8]
    times_s: NDArray[np.float64]
    labels: Mapping[str, str]
    overlapping: Sequence[Mapping[str, str]] = ()

    @property
    def duration_s(self) -> float:
        """From the first frame to the end of the last one."""
        n = len(self.times_s)
        return float(self.times_s[-1] * n / (n - 1)) if n > 1 else 0.0


def read_each(segments: Iterable[Segment], read: Callable[[Segment], T], strict: bool) -> Iterator[tuple[Segment, T]]:
    """What `read` makes of segments; unreadable ones are named in the log and left out, unless strict."""
    for segment in segments:
        try:
            found = read(segment)
        except DatasetError as error:
            if strict:
                raise
            log.warning("left out of the validation: %s", error)
        else:
            yield segment, found


# Index of the label; of a multi-label head, which labels are true (1) or not (0) [K], NaN where that is not known.
Wanted = Any


class Scored(NamedTuple):
    """Logits [K] of one head with what they should say: of late frames, of last windows."""

    now: list[tuple[Logits, Wanted]]
    window: list[tuple[Logits, Wanted]]


@torch.no_grad()
def score_clips(contract: Contract, network: Network, clips: Sequence[ValidationClip], spread: int = 0
                ) -> dict[str, Scored]:
    """What a network says of clips from fresh state, at its frame rate or of `spread` frames evenly over each; for each
    head, of those that have a label of it."""
    scored = {head: Scored([], []) for head in contract.heads}
    for clip in clips:
        ticks_s = (np.arange(spread) + 0.5) * clip.duration_s / spread if spread else \
            np.arange(0, max(clip.duration_s, 1 / contract.frame_rate), 1 / contract.frame_rate)
        pixels = torch.from_numpy(clip.images[frames_at(clip.times_s, ticks_s)]).to(next(network.parameters()).device)
        features, _ = network(normalise(pixels, contract)[None], network.fresh_state(1))
        for head, (logits,) in network.scores(features).items():
            logits_TK = logits.float().cpu().numpy()
            labels, label = contract.heads[head], clip.labels.get(head)
            multi_label = head in contract.multi_label
            if label in labels or (multi_label and label is not None):
                wanted = _truth_of_each(labels, label, [one.get(head) for one in clip.overlapping]) if multi_label \
                    else labels.index(label)
                known_from = int(LATE * len(logits_TK)) if label in labels and label != contract.background else 0
                scored[head].now.extend((row_K, wanted) for row_K in logits_TK[known_from:])
                window_K = logits_TK[-contract.clip_frames * contract.window_clips:].mean(axis=0)
                scored[head].window.append((window_K, wanted))
    return scored


def _truth_of_each(labels: Sequence[str], label: str, overlapping: Sequence[str | None]) -> NDArray[np.float64]:
    """What of a multi-label head is true [K]."""
    return np.array([1.0 if one == label else np.nan if one in overlapping else 0.0 for one in labels])


def calibrate(contract: Contract, network: Network, clips: Sequence[ValidationClip]) -> Contract:
    """The contract with the temperatures of each head that clips have labels of. Of a multi-label head each label is
    calibrated for itself: its weights in the network are changed, and `window` gets a temperature beside."""
    found = {head: scored for head, scored in score_clips(contract, network, clips).items() if scored.window}
    for head in set(found) & set(contract.multi_label):
        scales_K, shifts_K = label_scales(found[head].now)
        layer = network.get_submodule(f"heads.{head}")
        with torch.no_grad():
            layer.get_parameter("weight").mul_(torch.from_numpy(scales_K).float()[:, None])
            layer.get_parameter("bias").mul_(torch.from_numpy(scales_K).float()).add_(torch.from_numpy(shifts_K).float())
        found[head] = Scored([], [((logits_K * scales_K + shifts_K).astype(np.float32), true)
                                   for logits_K, true in found[head].window])
    now = {head: temperature(scored.now) for head, scored in found.items()}
    window = {head: (label_temperature if head in contract.multi_label else temperature)(scored.window)
              for head, scored in found.items()}
    return contract.model_copy(update={"temperature": {**contract.temperature, **now},
                                       "window_temperature": {**contract.window_temperature, **window}})
