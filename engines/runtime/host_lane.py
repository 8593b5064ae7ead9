"""Copies between host and GPU that do not wait for each other: while one run computes, the frames of the next are on
their way. Not run on a GPU yet: written by PyTorch's documentation, and tested with what passes for torch.cuda.
Legend: B the largest batch, H W the input size."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostLane:
    """Pinned memory that a run's frames leave from and its results come back to. Two lanes take turns: a lane is used
    again when its run is over, which `take` waits for."""

    def __init__(self, images_u8_BHWC: Tensor, rows_B: Tensor, width: int, copies: torch.cuda.Stream) -> None:
        """images, rows: what a run reads, on the GPU; width: floats a camera gets back; copies: stream for frames."""
        self._targets, self._copies = (images_u8_BHWC, rows_B), copies
        pinned = torch.cuda.is_available()
        self._host = [torch.empty(target.shape, dtype=target.dtype, pin_memory=pinned) for target in self._targets]
        self._arrived = [torch.empty_like(target) for target in self._targets]
        self._results = torch.empty(len(rows_B), width, pin_memory=pinned)
        self._sent, self._over = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._cameras = 0

    def send(self, frames_u8_BHWC: NDArray[np.uint8], rows: Sequence[int]) -> None:
        """Starts the way of a run's frames, and of the pool's row for each camera of its batch; the current stream
        has them where a run reads them before anything that follows."""
        parts = [slice(0, len(frames_u8_BHWC)), slice(0, len(rows))]
        for part, host, values in zip(parts, self._host, (frames_u8_BHWC, np.asarray(rows)), strict=True):
            host.numpy()[part] = values
        with torch.cuda.stream(self._copies):
            for part, host, arrived in zip(parts, self._host, self._arrived, strict=True):
                arrived[part].copy_(host[part], non_blocking=True)
            self._sent.record()
        torch.cuda.current_stream().wait_event(self._sent)
        for part, arrived, target in zip(parts, self._arrived, self._targets, strict=True):
            target[part].copy_(arrived[part], non_blocking=True)
        self._cameras = len(frames_u8_BHWC)

    def fetch(self, results: Tensor) -> None:
        """Starts the way back of a run's results."""
        self._results[:self._cameras].copy_(results[:self._cameras], non_blocking=True)
        self._over.record()

    def take(self) -> NDArray[np.float32]:
        """The results, when they are there: a view, until the lane is used again."""
        self._over.synchronize()
        return self._results[:self._cameras].numpy()
