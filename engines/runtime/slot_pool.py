"""What compiled torch engines share: a pool of slots around one step of constant batch, in one CUDA graph on a GPU.

One pool tensor [S + 1, ...] per leaf of state, a slot each and a scratch slot. Every run has the same batch, filled
up with the scratch slot, so results do not depend on who else is there, and one CUDA graph fits every run: it takes
the rows of the cameras that are present, steps, and puts the new rows back.

Nothing of the CUDA half has been run on a GPU yet (`tests/gpu` is there to do it); what it gives is compared with
eager before it is used, as everywhere.

Legend: S slots, B the constant batch, H W the input size, D features, K labels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import EngineError
from engines.model.contract import Contract
from engines.runtime.eager import EagerEngine, PooledEngine
from engines.runtime.engine import Floats, StepResult
from engines.runtime.parity import TOLERANCE, compare, probe_clip, run_clip

if TYPE_CHECKING:
    from engines.model.file import Model

WARM_UP = 3  # runs before a CUDA graph is captured, as torch asks for
AnyEngine = TypeVar("AnyEngine", bound="CompiledPool")


class Step(Protocol):
    """Camera pixels uint8 BGR [B, H, W, 3] and state in; features [B, D], each head's logits [B, K], new state out."""

    def __call__(self, image_u8_BHWC: Tensor, *state: Tensor) -> Sequence[Tensor]: ...


class CompiledPool(PooledEngine):
    """See the file's top. leaves: the state of one fresh camera, in the step's types, each [1, ...]."""

    def __init__(self, contract: Contract, slots: int, precision: str, step: Step, leaves: Iterable[Tensor],
                 device: str, batch: int) -> None:
        self.contract, self.slots, self.precision = contract, slots, precision
        self._network: Step | None = step
        self._pool = [leaf.to(device).expand(slots + 1, *leaf.shape[1:]).clone() for leaf in leaves]
        self._images_u8 = torch.zeros(batch, *contract.input_size_hw, 3, dtype=torch.uint8, device=device)
        self._rows = torch.full((batch,), slots, device=device)
        self._widths: list[int] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results = self._advance()
        if device == "cuda":
            self._capture()

    @torch.no_grad()
    def _advance(self) -> Tensor:
        """One frame of the cameras in `_rows` with `_images_u8`; features and logits side by side, float32 [B, ...]."""
        if self._network is None:
            raise EngineError("a step of an engine that is closed", "an open engine", "compile a new one")
        out = self._network(self._images_u8, *(leaf[self._rows] for leaf in self._pool))
        results = out[:1 + len(self.contract.heads)]
        for leaf, new in zip(self._pool, out[len(results):], strict=True):
            leaf.index_copy_(0, self._rows, new)
        self._widths = [result.shape[1] for result in results]
        return torch.cat([result.float() for result in results], 1)  # one copy to the host instead of several

    def _capture(self) -> None:
        """Records a run, which is then replayed on the same memory. Only the scratch slot moves meanwhile."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = self._advance()

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        batch = len(self._rows)
        parts = [np.zeros((0, sum(self._widths)), np.float32)]
        try:
            parts += [self._run(frames_u8_BHWC[start:start + batch], slots[start:start + batch])
                      for start in range(0, len(slots), batch)]
        except RuntimeError as error:
            raise EngineError(f"{self.name} failing while it ran ({first_line(error)})", "a step without a fault",
                              "run `gatestream doctor`, or use --engine eager") from error
        features, *scores = np.split(np.concatenate(parts), np.cumsum(self._widths)[:-1], axis=1)
        return StepResult(features, dict(zip(self.contract.heads, scores, strict=True)))

    def _run(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> Floats:
        present = len(slots)
        self._images_u8[:present].copy_(torch.from_numpy(np.ascontiguousarray(frames_u8_BHWC)))
        self._rows.copy_(torch.tensor([*slots, *[self.slots] * (len(self._rows) - present)]))
        if self._graph is None:
            self._results = self._advance()
        else:
            self._graph.replay()
        return np.array(self._results[:present].cpu().numpy())

    @property
    def state(self) -> Sequence[Tensor]:
        """The pool of each leaf: [S + 1, ...], the last row being scratch."""
        return self._pool

    def close(self) -> None:
        self._graph, self._network = None, None
        self._pool = []


def fastest_that_agrees(model: Model, precisions: Iterable[str], open_one: Callable[[str], AnyEngine]
                        ) -> tuple[AnyEngine, dict[str, float]]:
    """Opens the model in one precision after another, until its calibrated scores agree with eager's on the probe clip.

    Returns the engine, as fresh as new, and the differences that were measured. Raises EngineError when none agrees.
    """
    frames = probe_clip(model.contract)
    wanted = run_clip(EagerEngine(model.network, model.contract, 1), frames)
    agreement = {}
    for precision in precisions:
        engine = open_one(precision)
        agreement[precision] = compare(model.contract, wanted, run_clip(engine, frames))
        if agreement[precision] <= TOLERANCE:
            engine.reset([0])
            return engine, agreement
        name = engine.name
        engine.close()
    raise EngineError(f"{name} scores that are off by {agreement} from eager", f"{TOLERANCE} at most",
                      "use --engine eager, and report this with the output of `gatestream doctor`")


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
