"""What every backbone shares: it names sites, and calls a hook with the raw output of the convolution there, or with
the input of a branch.

    images_NCHW ─► convolution ─► hook(site, map) ─► batch norm ─► ReLU ─► ... ─► mean over space ─► features_ND

A temporal module fills a site by being the hook's answer. Backbones know nothing of time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

Hook = Callable[[str, Tensor], Tensor]
Step = Callable[[Tensor, Hook], Tensor]
ON_INPUT = ("tsm", "stsm")  # modules on the input of a branch, not on the output of its last convolution


class Backbone(nn.Module, ABC):
    """`forward(images_NCHW, hook) -> features_ND`; `hook(site, map)` is called at each site, in order.

    width: D; input_size_hw: the size it was published for. The stem is the first convolution registered.
    """

    width: int
    input_size_hw: tuple[int, int] = (224, 224)

    @abstractmethod
    def sites(self) -> dict[str, nn.Conv2d]:
        """Name of each site -> the convolution whose output a temporal module takes there, in the hook's order."""

    @abstractmethod
    def input_sites(self) -> dict[str, int]:
        """Name of each site at a branch's input -> the channels of the map there, in the hook's order."""

    @abstractmethod
    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        """Where modules of this kind ("gsm", "tsm", ...) sit unless told otherwise: on inputs for those `ON_INPUT`."""

    def default_gate_ratio(self, causal: bool) -> int:
        """Share of a map's channels that GSF gates unless told otherwise."""
        return 100

    @abstractmethod
    def steps(self) -> Sequence[Step]:
        """The whole function as steps in a row: a later step needs nothing of an image but what the last one gave."""

    def forward(self, x: Tensor, hook: Hook, part: slice = slice(None)) -> Tensor:
        """part: run these steps only, on what the step before them gave."""
        for step in self.steps()[part]:
            x = step(x, hook)
        return x


def mean_over_space(x_NCHW: Tensor, _: Hook) -> Tensor:
    """The last step of every backbone."""
    return F.adaptive_avg_pool2d(x_NCHW, 1).flatten(1)
