"""Several processes that train as one, started by `torchrun`: who this one is, and sums over all of them.

Legend: N images, C channels, H W the map's size."""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from engines.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; it computes the rows rank, rank + world_size, ... of a batch."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default=torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def own_rows(self, rows: int) -> range:
        """This process's rows of a batch. Raises UsageError where the rows cannot be shared out evenly."""
        if rows % self.world_size:
            raise UsageError(f"{rows} rows of a batch for {self.world_size} processes", "as many rows for each process",
                             "choose another batch size or number of processes")
        return range(self.rank, rows, self.world_size)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum over all processes, without gradient."""
        if self.world_size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes."""
        if self.world_size == 1:
            return
        wanted = [p for p in parameters if p.requires_grad]  # without a gradient, perhaps: others may have one
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in wanted])
        dist.all_reduce(flat)
        for p, summed in zip(wanted, torch.split(flat, [p.numel() for p in wanted]), strict=True):
            p.grad = summed.view_as(p)

    def gather_rows(self, own: Tensor) -> Tensor:
        """Every process's rows of a tensor in the order of the whole batch."""
        if self.world_size == 1:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def broadcast(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The main process's weights, on every process. Others pass weights of the same names, shapes and types."""
        if self.world_size == 1:
            return dict(weights)
        shared = {name: weights[name].detach().to(self.device, copy=True).contiguous() for name in sorted(weights)}
        for value in shared.values():
            dist.broadcast(value, src=0)
        return shared

    def sync_batch_norms(self, network: nn.Module) -> None:
        """Makes the batch norms of a network take their statistics from all processes' rows.
        Not torch's SyncBatchNorm, which refuses to run on a processor."""
        if self.world_size == 1:
            return
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.forward = partial(_sync_batch_norm, norm=module)  # type: ignore[method-assign]


def _sync_batch_norm(x_NCHW: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """What `norm` makes of a map. While it trains in a process group, mean and variance are those of every process's
    maps, and gradients flow through them, as if one process had seen the whole batch."""
    if not norm.training:
        return F.batch_norm(x_NCHW, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    x = x_NCHW.float() if x_NCHW.dtype in (torch.bfloat16, torch.float16) else x_NCHW
    own = x.new_tensor([x.numel() // x.shape[1]])
    sums: Tensor = _Total.apply(torch.cat([x.sum((0, 2, 3)), own]))  # type: ignore[no-untyped-call]
    count = sums[-1].detach()
    mean_C = sums[:-1] / count
    centred = x - mean_C.view(-1, 1, 1)
    variance_C: Tensor = _Total.apply(centred.square().sum((0, 2, 3))) / count  # type: ignore[no-untyped-call]
    with torch.no_grad():
        unbiased_C = variance_C * count / (count - 1).clamp(min=1)
        for running, new in ((norm.running_mean, mean_C), (norm.running_var, unbiased_C)):
            assert running is not None
            running.lerp_(new.to(running.dtype), norm.momentum or 0.0)
    y = centred * (variance_C + norm.eps).rsqrt().view(-1, 1, 1)
    return (y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).to(x_NCHW.dtype)


class _Total(torch.autograd.Function):
    """Sum over all processes, forwards and backwards: every process's loss depends on every process's maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Total.forward(ctx, *gradients)


@contextmanager
def init_distributed() -> Iterator[Ranks]:
    """This process's place: alone, or in the group that `torchrun` started, which is left at the end."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Ranks(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    importlib.import_module("torch._dynamo")  # an optimiser imports it, and would keep a group begun before for ever:
    # the group's threads then outlive its end, and now and then abort the process on its way out (torch 2.13)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
