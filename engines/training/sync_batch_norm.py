"""Batch norm whose batch is that of all processes that train together.

Legend: N images, C channels, H W the map's size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist


def batch_norm(x_NCHW: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """What `norm` makes of a map. While it trains in a process group, mean and variance are those of every process's
    maps, and gradients flow through them, as if one process had seen the whole batch."""
    if not (norm.training and dist.is_initialized()):
        return F.batch_norm(x_NCHW, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training,
                            norm.momentum or 0.0, norm.eps)
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
    if norm.weight is not None:
        y = y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return y.to(x_NCHW.dtype)


class _Total(torch.autograd.Function):
    """Sum over all processes, forwards and backwards: every process's loss depends on every process's maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total
