"""Clips that were left out: what a network says of them, and the temperatures that make it mean what it says.

`now` and `window` get their own: the window's logits are means over many frames, and so are smoother."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engines.datasets.base import Segment
from engines.datasets.decode import frames_at
from engines.errors import DatasetError
from engines.model.contract import Contract
from engines.networks.network import Network
from engines.training.pixels import normalise
from engines.training.temperature import LATE, Logits, temperature

log = logging.getLogger("gatestream.training")
T = TypeVar("T")


class ValidationClip(NamedTuple):
    """A clip that was left out: images uint8 [N, H, W, 3] at the input's size, times from 0 [N], labels by head."""

    images: NDArray[np.uint8]
    times_s: NDArray[np.float64]
    labels: Mapping[str, str]

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


class Scored(NamedTuple):
    """Logits [K] of one head with the index of the label that they should name: of late frames, of last windows."""

    now: list[tuple[Logits, int]]
    window: list[tuple[Logits, int]]


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
            if label in labels:
                known_from = 0 if label == contract.background else int(LATE * len(logits_TK))
                scored[head].now.extend((row_K, labels.index(label)) for row_K in logits_TK[known_from:])
                window_K = logits_TK[-contract.clip_frames * contract.window_clips:].mean(axis=0)
                scored[head].window.append((window_K, labels.index(label)))
    return scored


def calibrate(contract: Contract, network: Network, clips: Sequence[ValidationClip]) -> Contract:
    """The contract with the temperatures of each head that clips have labels of."""
    found = {head: scored for head, scored in score_clips(contract, network, clips).items() if scored.window}
    now, window = ({head: temperature(scored[kind]) for head, scored in found.items()} for kind in (0, 1))
    return contract.model_copy(update={"temperature": {**contract.temperature, **now},
                                       "window_temperature": {**contract.window_temperature, **window}})
