"""The eager engine of a bidirectional network: a live stream as one clip after the other, each overlapping the last.

    frame ──backbone before the first temporal module──► ring of T maps ──every `hop` frames──► the rest ──► scores

Scores are those of `clip_scores` on the last T = `segments` frames (fewer at a stream's start), renewed at its first
frame, at frame T, and every `hop` frames around that; a step in between repeats them. `spans` say which frames those
are. The step that renews them takes as long as a clip, the others hardly anything.
Legend: S slots, B cameras in a step, T frames of a clip, C H W a map, D features."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engines.errors import EngineError
from engines.model.contract import Contract
from engines.model.preprocess import normalise
from engines.networks.network import Network
from engines.runtime.eager import PooledEngine, result_of
from engines.runtime.engine import StepResult


class WindowedEngine(PooledEngine):
    """Per slot: the last T maps [S, T, C, H, W] in a ring, how many came, the features last computed and their end.
    cost: arithmetic a frame, where 1 is the whole network once a frame; hop: frames from one clip's scores to the next.
    Raises EngineError for a causal network."""

    name = "eager"
    precision = "f32"

    def __init__(self, network: Network, contract: Contract, slots: int) -> None:
        if network.causal:
            raise EngineError("a causal network in a window", "a bidirectional one",
                              "use engines.compile, which runs causal networks frame by frame")
        self.hop, self.segments = network.hop, network.segments
        self.contract, self.slots = contract, slots
        self._network = network.eval()
        self._split, like = split(network)
        self._maps = like.new_zeros((slots, self.segments, *like.shape[1:]))
        self._features = like.new_zeros((slots, network.width))
        self._pool = (self._maps, self._features)
        self._counts, self._ends = [0] * slots, [0] * slots
        self.cost = self._cost(like)

    def _cost(self, map_1CHW: Tensor) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as first:
            self._network.backbone(_blank(self._network), part=slice(self._split))
        with torch.no_grad(), FlopCounterMode(display=False) as rest:
            self._network(map_1CHW[None], (), slice(self._split, None))
        once, again = int(first.get_total_flops()), int(rest.get_total_flops())
        return (once + again * self.segments / self.hop) / (once + again)

    @torch.inference_mode()
    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        if slots:
            frames_BCHW = torch.from_numpy(normalise(frames_u8_BHWC, self.contract)).to(self._maps.dtype)
            maps_BCHW = self._network.backbone(frames_BCHW, part=slice(self._split))
            renewed: dict[int, Tensor] = {}
            for slot, map_CHW in zip(slots, maps_BCHW, strict=True):
                count = self._counts[slot] + 1
                self._maps[slot, (count - 1) % self.segments] = map_CHW  # over the oldest, which no later clip has
                if count == 1 or (count - self.segments) % self.hop == 0:
                    renewed[slot] = self._mean_features(slot, count)
            for slot in slots:  # when all have run: a step that fails moves no camera
                self._counts[slot] += 1
                if slot in renewed:
                    self._features[slot], self._ends[slot] = renewed[slot], self._counts[slot]
        features_BD = self._features[list(slots)]
        return result_of(self._network, features_BD, tuple(
            range(max(0, self._ends[slot] - self.segments), self._ends[slot]) for slot in slots))

    def _mean_features(self, slot: int, count: int) -> Tensor:
        """Of the clip that ends with a stream's frame number `count`: [D]."""
        oldest_first = [frame % self.segments for frame in range(max(0, count - self.segments), count)]
        features_1TD: Tensor = self._network(self._maps[slot, oldest_first][None], (), slice(self._split, None))[0]
        return features_1TD[0].mean(dim=0)

    def _reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._counts[slot] = 0


def _blank(network: Network) -> Tensor:
    return next(network.parameters()).new_zeros(1, 3, *network.input_size_hw)


def split(network: Network) -> tuple[int, Tensor]:
    """How many of the backbone's steps come before the first temporal module, and the map [1, C, H, W] (or features
    [1, D], without any module) of a blank image there."""
    met: set[str] = set()

    def note(place: str, x: Tensor) -> Tensor:
        met.add(place)
        return x

    x, steps = _blank(network), network.backbone.steps()[:network.backbone.cuttable]
    with torch.no_grad():
        for count, step in enumerate(steps):
            after = step(x, note)
            if not met.isdisjoint(network.temporal):
                return count, x
            x = after
    return len(steps), x
