"""The eager engine of a bidirectional network: a live stream as one clip after the other, each overlapping the last.

    engine = engines.compile(model, hop=2)      # picked for every model whose contract is not causal

    frame ──backbone before the first temporal module──► ring of T maps ──every `hop` frames──► the rest ──► scores

Scores are those of `clip_scores` on the last T frames, T = the network's segments. They are renewed at a stream's
first frame, at frame T, and every `hop` frames before and after that; in between a step repeats them. While fewer
than T frames were seen, those are the clip: a contract's `warmup_frames` = T makes frame T the first that counts.
The features are the mean over the clip, so the scores are the heads' answer to them. A step's `spans` say which frames
that clip is of, so that a live window (`stream/window.py`) takes no frame twice: a prediction's `now` is the score of
the last clip, its `window` that of the last `window_clips` clips side by side, and the same where that is one.

What comes before the block of the first temporal module runs once a frame, the rest T / hop times (see `cost`). All
of the rest runs in the step that renews the scores: that step takes as long as a clip, the others hardly anything.

Legend: S slots, B cameras in a step, T frames of a clip, C H W a map, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engines.errors import EngineError, UsageError
from engines.model.contract import Contract
from engines.model.preprocess import normalise
from engines.networks.network import Network
from engines.runtime.eager import to_numpy
from engines.runtime.engine import Engine, StepResult


class WindowedEngine(Engine):
    """Per slot: the last T maps [S, T, C, H, W] in a ring, how many came, the features last computed and their end.

    cost: arithmetic a frame, where 1 is the whole network once a frame.
    hop: frames from one clip's scores to the next, 1 to T; None for the network's own. Raises UsageError for another
    hop, EngineError for a causal network.
    """

    name = "eager"
    precision = "f32"

    def __init__(self, network: Network, contract: Contract, slots: int, hop: int | None = None) -> None:
        if network.causal:
            raise EngineError("a causal network in a window", "a bidirectional one",
                              "use engines.compile, which runs causal networks frame by frame")
        self.hop, self.segments = network.hop if hop is None else hop, network.segments
        if not 1 <= self.hop <= self.segments:
            raise UsageError(f"a hop of {self.hop} frames", f"1 to {self.segments}, the frames of this model's clips",
                             "choose one of these")
        self.contract, self.slots = contract, slots
        self._network = network.eval()
        self._split, like = split(network)
        self._maps = like.new_zeros((slots, self.segments, *like.shape[1:]))
        self._features = like.new_zeros((slots, network.width))
        self._counts, self._ends = [0] * slots, [0] * slots
        self.cost = self._cost(like)

    def _cost(self, map_1CHW: Tensor) -> float:
        """Arithmetic a frame on a long stream, where 1 is the whole network once a frame."""
        with torch.no_grad(), FlopCounterMode(display=False) as first:
            self._network.backbone(_blank(self._network), _keep, slice(self._split))
        with torch.no_grad(), FlopCounterMode(display=False) as rest:
            self._network(map_1CHW[None], (), slice(self._split, None))
        once, again = int(first.get_total_flops()), int(rest.get_total_flops())
        return (once + again * self.segments / self.hop) / (once + again)

    @torch.inference_mode()
    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        if slots:
            frames_BCHW = torch.from_numpy(normalise(frames_u8_BHWC, self.contract)).to(self._maps.dtype)
            maps_BCHW = self._network.backbone(frames_BCHW, _keep, slice(self._split))
            for slot, map_CHW in zip(slots, maps_BCHW, strict=True):
                self._maps[slot, self._counts[slot] % self.segments] = map_CHW
                self._counts[slot] += 1
                count = self._counts[slot]
                if count == 1 or (count - self.segments) % self.hop == 0:
                    self._renew(slot)
        features_BD = self._features[list(slots)]
        return StepResult(to_numpy(features_BD),
                          {head: to_numpy(logits) for head, logits in self._network.scores(features_BD).items()},
                          tuple(range(max(0, self._ends[slot] - self.segments), self._ends[slot]) for slot in slots))

    def _renew(self, slot: int) -> None:
        count = self._counts[slot]
        oldest_first = [frame % self.segments for frame in range(max(0, count - self.segments), count)]
        features_1TD, _ = self._network(self._maps[slot, oldest_first][None], (), slice(self._split, None))
        self._features[slot] = features_1TD[0].mean(dim=0)
        self._ends[slot] = count

    def _reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._counts[slot] = 0

    @property
    def state_bytes(self) -> int:
        return sum(pool[0].numel() * pool.element_size() for pool in (self._maps, self._features))


def _blank(network: Network) -> Tensor:
    like = next(network.parameters())
    return torch.zeros(1, 3, *network.input_size_hw, dtype=like.dtype, device=like.device)


def _keep(_: str, x: Tensor) -> Tensor:
    return x


def split(network: Network) -> tuple[int, Tensor]:
    """How many of the backbone's steps come before the first temporal module, and the map [1, C, H, W] (or features
    [1, D], without any module) of a blank image there."""
    met: set[str] = set()

    def note(place: str, x: Tensor) -> Tensor:
        met.add(place)
        return x

    x, steps = _blank(network), network.backbone.steps()
    with torch.no_grad():
        for count, step in enumerate(steps):
            after = step(x, note)
            if not met.isdisjoint(network.temporal):
                return count, x
            x = after
    return len(steps), x
