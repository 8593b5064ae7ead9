"""The engine seam: what `stream` sees of a network. Eager and compiled engines stand behind it.
Legend: B cameras in this step, H W the contract's input size, D features, K labels of a head."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.model.contract import Contract

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepResult:
    """features: float32 [B, D]; scores: logits of each head, float32 [B, K].
    spans: of an engine that scores clips, the frames since each camera's reset that its row is the mean of; None of an
    engine whose rows are of the newest frame."""

    features: Floats
    scores: dict[str, Floats]
    spans: tuple[range, ...] | None = None


class Engine(ABC):
    """Owns the state of `slots` cameras; a camera without a frame is simply not in the batch.
    `step` takes camera pixels at the contract's input size (BGR uint8, [B, H, W, 3]) and the slot of each
    row; colour order and normalisation happen inside. Outputs are the caller's to keep."""

    name: str
    precision: str
    contract: Contract
    slots: int
    batch_sizes: Sequence[int] = (1,)  # cameras that are advanced together, where that makes the numbers differ
    _pid: int

    def __new__(cls, *_: Any, **__: Any) -> Self:
        made = super().__new__(cls)
        made._pid = os.getpid()
        return made

    @abstractmethod
    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult: ...

    @abstractmethod
    def _reset(self, slots: Sequence[int]) -> None: ...

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes of state held per camera."""

    def close(self) -> None:  # noqa: B027 - an engine may hold nothing
        """Gives back what the engine holds. The engine cannot be used afterwards."""

    def step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        """Advances the cameras in `slots` by one frame each.
        Raises EngineError for a wrong image shape or type, a slot out of range or named twice, in a forked process."""
        height, width = self.contract.input_size_hw
        wanted = (len(slots), height, width, 3)
        shape, dtype = getattr(frames_u8_BHWC, "shape", None), getattr(frames_u8_BHWC, "dtype", None)
        if shape != wanted or dtype != np.uint8:
            raise EngineError(f"frames of shape {shape} and type {dtype or type(frames_u8_BHWC).__name__}",
                              f"uint8 {wanted} (one image per slot, BGR, the model's input size)",
                              "prepare images with engines.model.preprocess.prepare")
        self._check(slots)
        return self._step(frames_u8_BHWC, slots)

    def reset(self, slots: Sequence[int]) -> None:
        """Makes each slot as fresh as a new camera's."""
        self._check(slots)
        self._reset(slots)

    def check_process(self) -> None:
        """Raises EngineError in a forked process, where an engine has no threads and would wait for ever."""
        if os.getpid() != self._pid:
            raise EngineError(f"process {os.getpid()} using an engine of process {self._pid}, from which it was forked",
                              "an engine of its own in each process",
                              'open the recognizer in the process that uses it, or start that with "spawn"')

    def _check(self, slots: Sequence[int]) -> None:
        self.check_process()
        if len(set(slots)) != len(slots):
            raise EngineError(f"slots {list(slots)}", "each slot once in a step", "send one frame per camera and step")
        for slot in slots:
            if not isinstance(slot, int | np.integer) or not 0 <= slot < self.slots:
                raise EngineError(f"slot {slot!r}", f"0 to {self.slots - 1}", "build the engine with more slots")
