"""What compiled torch engines share: a pool of slots around one step of constant batch, in one CUDA graph on a GPU.
One pool tensor [S + 1, ...] per leaf of state, the last row being scratch. Every run has the same batch, filled up with
scratch rows, so results do not depend on who else is there, and one CUDA graph fits every run. Its CUDA half has not
been run on a GPU yet (`tests/gpu` is there to do it).
Legend: S slots, B the constant batch, H W the input size, D features, K labels of a head."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import EngineError, engine_error
from engines.model.contract import Contract
from engines.runtime.eager import PooledEngine
from engines.runtime.engine import StepResult

WARM_UP = 3  # runs before a CUDA graph is captured, as torch asks for
# Camera pixels uint8 BGR [B, H, W, 3] and state in; features [B, D], each head's logits [B, K], new state out.
Step = Callable[..., Sequence[Tensor]]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "int8": torch.float16}  # of state and pixels, by precision


class CompiledPool(PooledEngine):
    """Runs a compiled step for up to `slots` cameras, `batch` at a time.
    leaves: the state of one fresh camera, in the step's types, each [1, ...]; device: cpu or cuda."""

    def __init__(self, name: str, contract: Contract, slots: int, precision: str, step: Step, leaves: Iterable[Tensor],
                 device: str, batch: int) -> None:
        self.name, self.contract, self.slots, self.precision = name, contract, slots, precision
        self._network: Step | None = step
        self._pool = [leaf.to(device).expand(slots + 1, *leaf.shape[1:]).clone() for leaf in leaves]
        self._images_u8 = torch.zeros(batch, *contract.input_size_hw, 3, dtype=torch.uint8, device=device)
        self._rows = torch.full((batch,), slots, device=device)
        self._widths: list[int] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results = self._advance()
        if device == "cuda":
            self._capture()

    def _advance(self) -> Tensor:
        """As `_forward`, and stores the new state."""
        results, state = self._forward()
        self._store(self._rows, state)
        return results

    @torch.no_grad()
    def _forward(self) -> tuple[Tensor, Sequence[Tensor]]:
        """One frame of the cameras in `_rows` with `_images_u8`: features and logits side by side, float32 [B, ...],
        and new rows of state."""
        if self._network is None:
            raise EngineError("a step of an engine that is closed", "an open engine", "compile a new one")
        out = self._network(self._images_u8, *(leaf[self._rows] for leaf in self._pool))
        results = out[:1 + len(self.contract.heads)]
        self._widths = [result.shape[1] for result in results]
        return torch.cat([result.float() for result in results], 1), out[len(results):]  # one copy to the host

    def _store(self, rows: Tensor, state: Sequence[Tensor]) -> None:
        for leaf, new in zip(self._pool, state, strict=True):
            leaf.index_copy_(0, rows, new)

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
        parts, stepped = [np.zeros((0, sum(self._widths)), np.float32)], []
        with engine_error(f"{self.name} failing while it ran", "a step without a fault",
                          "run `gatestream doctor`, or use --engine eager"):
            for start in range(0, len(slots), batch):
                rows = slots[start:start + batch]  # and the scratch slot, as often as it takes
                frames_u8 = torch.from_numpy(np.ascontiguousarray(frames_u8_BHWC[start:start + batch]))
                self._images_u8[:len(rows)].copy_(frames_u8)
                self._rows.copy_(torch.tensor([*rows, *[self.slots] * (batch - len(rows))]))
                if self._graph is None:
                    results, state = self._forward()
                    stepped.append((self._rows.clone(), state))
                else:
                    self._graph.replay()
                    results = self._results
                parts.append(results[:len(rows)].cpu().numpy().copy())
        for moved, state in stepped:  # when all have run: a step that fails moves no camera
            self._store(moved, state)
        features, *scores = np.split(np.concatenate(parts), np.cumsum(self._widths)[:-1], axis=1)
        return StepResult(features, dict(zip(self.contract.heads, scores, strict=True)))

    def close(self) -> None:
        self._graph, self._network = None, None
        self._pool = []
