"""The Inductor engine: the lowered step compiled by torch itself, in CUDA graphs where there is a GPU. Needs torch.

    engine = open_engine(model, slots=8)                 # compiles for tens of seconds; torch keeps its own cache of it

One pool tensor [S + 1, ...] per leaf of state, a slot each and a scratch slot. Every run has the same batch, filled
up with the scratch slot: all cameras at once on a GPU, one camera on the CPU, where batches gain nothing. So results
do not depend on who else is there, and a CUDA graph fits every run.

The CUDA half of this file has been written by torch's documentation and has not been run on a GPU yet; what it
gives is compared with eager before it is used, as everywhere.

Legend: S slots, B the constant batch, H W the input size, D features, K labels of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch._inductor.config
from numpy.typing import NDArray
from torch import Tensor

from engines.agreement import TOLERANCE, difference, probe_clip, run_clip
from engines.contract import Contract
from engines.eager import EagerEngine, PooledEngine
from engines.engine import Floats, StepResult
from engines.errors import EngineError
from engines.lowering import PixelStep
from engines.networks.network import Network

if TYPE_CHECKING:
    from engines.model import Model

PRECISIONS = {"cpu": {"f32": torch.float32}, "cuda": {"f16": torch.float16, "f32": torch.float32}}  # fastest first
WARM_UP = 3  # runs before a CUDA graph is captured, as torch asks for


class InductorEngine(PooledEngine):
    """See the file's top. precision: one of PRECISIONS[device]; None: the best device, the batch that suits it."""

    name = "inductor"

    def __init__(self, network: Network, contract: Contract, slots: int, precision: str,
                 device: str | None = None, batch: int | None = None) -> None:
        self.contract, self.slots, self.precision = contract, slots, precision
        device = device or best_device()
        step = PixelStep(network, contract).to(device, PRECISIONS[device][precision])
        self._pool = [leaf.expand(slots + 1, *leaf.shape[1:]).clone() for leaf in step.network.fresh_state()]
        batch = batch or (slots if device == "cuda" else 1)
        self._images_u8 = torch.zeros(batch, *contract.input_size_hw, 3, dtype=torch.uint8, device=device)
        self._rows = torch.full((batch,), slots, device=device)
        self._compiled = torch.compile(step, fullgraph=True, dynamic=False)
        self._graph: torch.cuda.CUDAGraph | None = None
        try:
            # Freezing makes weights part of the code; as an option of `compile` it would not reach the tracer.
            with warnings.catch_warnings(), torch._inductor.config.patch(freezing=device == "cpu"):
                warnings.simplefilter("ignore")  # the compiler uses what its own torch calls deprecated
                self._outputs = self._advance()
            if device == "cuda":
                self._capture()
        except RuntimeError as error:
            raise EngineError(f"torch failing to compile {contract.architecture} ({_first_line(error)})",
                              "a network, a compiler and a device that go together",
                              "use --engine openvino or --engine eager") from error

    @torch.no_grad()
    def _advance(self) -> list[Tensor]:
        """One frame of the cameras in `_rows` with `_images_u8`; returns features and each head's logits."""
        out = self._compiled(self._images_u8, *(leaf[self._rows] for leaf in self._pool))
        results = 1 + len(self.contract.heads)
        for leaf, new in zip(self._pool, out[results:], strict=True):
            leaf.index_copy_(0, self._rows, new)
        return list(out[:results])

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
            self._outputs = self._advance()

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        batch = len(self._rows)
        parts = [[np.zeros((0, out.shape[1]), np.float32) for out in self._outputs]]
        try:
            parts += [self._run(frames_u8_BHWC[start:start + batch], slots[start:start + batch])
                      for start in range(0, len(slots), batch)]
        except RuntimeError as error:
            raise EngineError(f"torch failing while it ran ({_first_line(error)})", "a step without a fault",
                              "run `gatestream doctor`, or use --engine eager") from error
        features, *scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        return StepResult(features, dict(zip(self.contract.heads, scores, strict=True)))

    def _run(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> list[Floats]:
        present = len(slots)
        self._images_u8[:present].copy_(torch.from_numpy(np.ascontiguousarray(frames_u8_BHWC)))
        self._rows.copy_(torch.tensor([*slots, *[self.slots] * (len(self._rows) - present)]))
        if self._graph is None:
            self._outputs = self._advance()
        else:
            self._graph.replay()
        return [out[:present].float().cpu().numpy().copy() for out in self._outputs]


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_engine(model: Model, slots: int = 1, precision: str | None = None) -> InductorEngine:
    """Compiles a model's step for the GPU, or for the CPU where there is none.

    precision: f32, f16 (GPU), or None for the fastest whose calibrated scores agree with eager's on the probe clip.
    Raises EngineError when it cannot be compiled or does not agree.
    """
    device = best_device()
    able = PRECISIONS[device]
    if precision not in (None, *able):
        raise EngineError(f"precision {precision!r} for Inductor on {device}", f"one of {', '.join(able)}",
                          "leave it out to have it chosen")
    frames = probe_clip(model.contract)
    wanted = run_clip(EagerEngine(model.network, model.contract, 1), frames)
    agreement = {}
    for name in [precision] if precision else able:
        engine = InductorEngine(model.network, model.contract, slots, name, device)
        agreement[name] = difference(model.contract, wanted, run_clip(engine, frames))
        if agreement[name] <= TOLERANCE:
            engine.reset([0])
            return engine
    raise EngineError(f"Inductor scores that are off by {agreement} from eager", f"{TOLERANCE} at most",
                      "use --engine eager, and report this with the output of `gatestream doctor`")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
