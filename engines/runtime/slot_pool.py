"""What compiled torch engines share: a pool of slots around one step, compiled for a few batch sizes.
One pool tensor [S + 1, ...] per leaf of state, the last row being scratch. A run takes the smallest batch that holds
its cameras, filled up with scratch rows, and more cameras than RUN_MOST take several runs. Within one batch size
results do not depend on who else is there; from one size to another they differ in the last bits, and each size is
compared with eager. On a GPU each size is a CUDA graph, and frames are copied while the run before computes
(cuda_graphs.py, host_lane.py): that half has not been run on a GPU yet (`tests/gpu` is there to do it).
Legend: S slots, B a batch size, H W the input size, D features, K labels of a head."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import EngineError, engine_error
from engines.model.contract import Contract
from engines.runtime.cuda_graphs import Graph, capture_all
from engines.runtime.eager import PooledEngine
from engines.runtime.engine import StepResult
from engines.runtime.host_lane import HostLane

RUN_MOST = 256  # cameras: a GPU is busy with so many, and the next ones' frames can be copied meanwhile
LANES = 2
# Camera pixels uint8 BGR [B, H, W, 3] and state in; features [B, D], each head's logits [B, K], new state out.
Step = Callable[..., Sequence[Tensor]]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "int8": torch.float16}  # of state and pixels, by precision


def batch_sizes(slots: int) -> list[int]:
    """1, 2, 4, ... and all slots, but not more than RUN_MOST."""
    most = min(slots, RUN_MOST)
    return [*(2 ** k for k in range((most - 1).bit_length())), most]


def split_runs(cameras: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first camera, batch size) of each run that so many cameras are served by. sizes: from small to large."""
    for start in range(0, cameras, sizes[-1]):
        yield start, next(size for size in sizes if size >= min(cameras - start, sizes[-1]))


class CompiledPool(PooledEngine):
    """Runs a compiled step for up to `slots` cameras.
    steps: the step for each batch size; leaves: the state of one fresh camera, in the step's types, each [1, ...];
    device: cpu or cuda."""

    def __init__(self, name: str, contract: Contract, slots: int, precision: str, steps: Mapping[int, Step],
                 leaves: Iterable[Tensor], device: str) -> None:
        self.name, self.contract, self.slots, self.precision = name, contract, slots, precision
        self.batch_sizes, self._steps = sorted(steps), dict(steps)
        batch = self.batch_sizes[-1]
        self._pool = [leaf.to(device).expand(slots + 1, *leaf.shape[1:]).clone() for leaf in leaves]
        self._images_u8 = torch.zeros(batch, *contract.input_size_hw, 3, dtype=torch.uint8, device=device)
        self._rows = torch.full((batch,), slots, device=device)
        self._widths: list[int] = []
        self._graphs: dict[int, Graph] = {}
        self._lanes: list[HostLane] = []
        for size in reversed(self.batch_sizes):  # compiles, where that is not done yet
            self._advance(size)
        if device == "cuda":
            self._use_lanes()
            self._graphs = capture_all(self._advance, self.batch_sizes)  # only the scratch slot moves meanwhile

    def _use_lanes(self) -> None:
        copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._lanes = [HostLane(self._images_u8, self._rows, sum(self._widths), copies) for _ in range(LANES)]

    def _advance(self, size: int) -> Tensor:
        """As `_forward`, and stores the new state."""
        results, state = self._forward(size)
        self._store(self._rows[:size], state)
        return results

    @torch.no_grad()
    def _forward(self, size: int) -> tuple[Tensor, Sequence[Tensor]]:
        """One frame of the first cameras in `_rows` with `_images_u8`: features and logits side by side, float32
        [B, ...], and new rows of state."""
        rows = self._rows[:size]
        out = self._steps[size](self._images_u8[:size], *(leaf[rows] for leaf in self._pool))
        results = out[:1 + len(self.contract.heads)]
        self._widths = [result.shape[1] for result in results]
        return torch.cat([result.float() for result in results], 1), out[len(results):]  # one copy to the host

    def _store(self, rows: Tensor, state: Sequence[Tensor]) -> None:
        for leaf, new in zip(self._pool, state, strict=True):
            leaf.index_copy_(0, rows, new)

    def _step(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        if not self._steps:
            raise EngineError("a step of an engine that is closed", "an open engine", "compile a new one")
        results = np.empty((len(slots), sum(self._widths)), np.float32)
        with engine_error(f"{self.name} failing while it ran", "a step without a fault",
                          "run `gatestream doctor`, or use --engine eager"):
            (self._run_overlapped if self._lanes else self._run_in_turn)(frames_u8_BHWC, slots, results)
        features, *scores = np.split(results, np.cumsum(self._widths)[:-1], axis=1)
        return StepResult(features, dict(zip(self.contract.heads, scores, strict=True)))

    def _run_in_turn(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int],
                     results: NDArray[np.float32]) -> None:
        stepped = []
        for start, size in split_runs(len(slots), self.batch_sizes):
            here = slice(start, start + size)
            frames_u8 = torch.from_numpy(np.ascontiguousarray(frames_u8_BHWC[here]))
            self._images_u8[:len(frames_u8)].copy_(frames_u8)
            self._rows[:size].copy_(torch.tensor(self._padded(slots[here], size)))
            out, state = self._forward(size)
            stepped.append((self._rows[:size].clone(), state))
            results[here] = out[:len(frames_u8)].cpu().numpy()
        for moved, state in stepped:  # when all have run: a step that fails moves no camera
            self._store(moved, state)

    def _run_overlapped(self, frames_u8_BHWC: NDArray[np.uint8], slots: Sequence[int],
                        results: NDArray[np.float32]) -> None:
        """On a GPU, which fails for good if it fails at all: state moves with each run."""
        running: list[tuple[slice, HostLane]] = []
        for k, (start, size) in enumerate(split_runs(len(slots), self.batch_sizes)):
            here, lane = slice(start, start + size), self._lanes[k % LANES]
            if len(running) == LANES:
                place, done = running.pop(0)
                results[place] = done.take()
            lane.send(frames_u8_BHWC[here], self._padded(slots[here], size))
            if graph := self._graphs.get(size):
                graph.replay()
            lane.fetch(graph.results if graph else self._advance(size))
            running.append((here, lane))
        for place, done in running:
            results[place] = done.take()

    def _padded(self, slots: Sequence[int], size: int) -> list[int]:
        """With the scratch slot, as often as it takes."""
        return [*slots, *[self.slots] * (size - len(slots))]

    def close(self) -> None:
        self._graphs, self._steps = {}, {}
        self._lanes, self._pool = [], []
