"""The eager engine: the torch network as it stands. Slow, needs no building, and what all others must agree with.
Legend: S slots, B cameras in a step, H W the input size, D features."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.model.contract import Contract
from engines.model.preprocess import normalise
from engines.networks.network import Network
from engines.runtime.backend import Backend, Facts, Spec
from engines.runtime.engine import Engine, StepResult

log = logging.getLogger("gatestream.engines")


class PooledEngine(Engine):
    """An engine whose state is torch tensors: one pool [S, ...] per leaf. Gather the rows, step, scatter them back."""

    _pool: Sequence[torch.Tensor]

    def _reset(self, slots: Sequence[int]) -> None:
        for leaf in self._pool:
            leaf[list(slots)] = 0

    @property
    def state_bytes(self) -> int:
        return sum(leaf[0].numel() * leaf.element_size() for leaf in self._pool)


class EagerEngine(PooledEngine):
    """The network itself, on the frames' own slots."""

    name = "eager"
    precision = "f32"

    def __init__(self, network: Network, contract: Contract, slots: int) -> None:
        if not network.causal:
            raise EngineError("a bidirectional network", "a causal one, which can run frame by frame",
                              "use engines.compile, which scores the clips of a bidirectional model")
        self.contract, self.slots = contract, slots
        self._network = network.eval()
        self._pool = network.fresh_state(slots)

    @torch.inference_mode()
    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        if not slots:
            return result_of(self._network, next(self._network.parameters()).new_zeros(0, self._network.width))
        rows = torch.tensor(list(slots))
        frames_B1CHW = torch.from_numpy(normalise(frames_u8_BHWC, self.contract))[:, None]
        features_B1D, state = self._network(frames_B1CHW, tuple(leaf[rows] for leaf in self._pool))
        for leaf, new in zip(self._pool, state, strict=True):
            leaf[rows] = new
        return result_of(self._network, features_B1D[:, 0])


def result_of(network: Network, features_BD: torch.Tensor, spans: tuple[range, ...] | None = None) -> StepResult:
    """A step's result from the network's features."""
    scores = network.scores(features_BD)
    return StepResult(features_BD.float().numpy(), {head: logits.float().numpy() for head, logits in scores.items()},
                      spans)


def open_engine(spec: Spec, precision: str, folder: Path, facts: Facts) -> Engine:
    """The network itself, frame by frame; a bidirectional one clip by clip."""
    from engines.runtime.windowed import WindowedEngine

    model = spec.model
    if model.network.causal:
        return EagerEngine(model.network, model.contract, spec.slots)
    windowed = WindowedEngine(model.network, model.contract, spec.slots)
    log.info("%s is bidirectional: the last %d frames are scored every %d, which computes %.1f times what one "
             "pass a frame does (%.1f times behind the first temporal module)", model.contract.name,
             windowed.segments, windowed.hop, windowed.cost, windowed.segments / windowed.hop)
    return windowed


BACKEND = Backend("eager", "the eager engine", precisions=lambda: ("f32",), open=open_engine, is_reference=True)
