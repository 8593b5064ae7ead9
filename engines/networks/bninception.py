"""BNInception (Ioffe and Szegedy, ICML 2015, arXiv 1502.03167), the variant of the GSM and GSF checkpoints.
Both put their modules on the first convolution of each block's first branch."""

from functools import partial

import torch
from torch import Tensor

from engines.networks.backbone import Hook, Step, mean_over_space
from engines.networks.inception import Inception, average_pool, max_pool

# Output channels: 1x1; 3x3 reduce, 3x3; double 3x3 reduce, double 3x3 (twice); pool projection.
# Without a 1x1 branch and a projection the block halves the map.
BLOCKS = {"3a": (64, 64, 64, 64, 96, 32), "3b": (64, 64, 96, 64, 96, 64), "3c": (0, 128, 160, 64, 96, 0),
          "4a": (224, 64, 96, 96, 128, 128), "4b": (192, 96, 128, 96, 128, 128), "4c": (160, 128, 160, 128, 160, 128),
          "4d": (96, 128, 192, 160, 192, 128), "4e": (0, 128, 192, 192, 256, 0),
          "5a": (352, 192, 320, 160, 224, 128), "5b": (352, 192, 320, 192, 224, 128)}
MAX_POOLED = "5b"  # the only block of unchanged size whose pool branch takes the maximum


class BNInception(Inception):
    width = 1024

    def __init__(self) -> None:
        super().__init__()
        self.add("conv1_7x7_s2", 3, 64, 7, stride=2)
        self.add("conv2_3x3_reduce", 64, 64, 1)
        channels = self.add("conv2_3x3", 64, 192, 3)
        for block, (single, reduce_3, conv_3, reduce_d, conv_d, projection) in BLOCKS.items():
            last = 1 if single else 2  # the stride of a branch's last convolution
            for layer, inputs, outputs, kernel, stride in (
                    ("1x1", channels, single, 1, 1),
                    ("3x3_reduce", channels, reduce_3, 1, 1), ("3x3", reduce_3, conv_3, 3, last),
                    ("double_3x3_reduce", channels, reduce_d, 1, 1), ("double_3x3_1", reduce_d, conv_d, 3, 1),
                    ("double_3x3_2", conv_d, conv_d, 3, last), ("pool_proj", channels, projection, 1, 1)):
                if outputs:
                    self.add(f"inception_{block}_{layer}", inputs, outputs, kernel, stride)
            channels = single + conv_3 + conv_d + (projection or channels)

    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        return tuple(f"inception_{block}_{'1x1' if widths[0] else '3x3_reduce'}" for block, widths in BLOCKS.items())

    def steps(self) -> list[Step]:
        return [partial(self.conv_pool, "conv1_7x7_s2"), partial(self.conv, "conv2_3x3_reduce"),
                partial(self.conv_pool, "conv2_3x3"), *(partial(self.block, block) for block in BLOCKS),
                mean_over_space]

    def block(self, block: str, x: Tensor, hook: Hook) -> Tensor:
        name, halves = f"inception_{block}", not BLOCKS[block][0]

        def chain(y: Tensor, *layers: str) -> Tensor:
            for layer in layers:
                y = self.conv(f"{name}_{layer}", y, hook)
            return y

        branches = [] if halves else [chain(x, "1x1")]
        branches += chain(x, "3x3_reduce", "3x3"), chain(x, "double_3x3_reduce", "double_3x3_1", "double_3x3_2")
        pooled = max_pool(x, 2 if halves else 1) if halves or block == MAX_POOLED else average_pool(x)
        return torch.cat([*branches, pooled if halves else chain(pooled, "pool_proj")], dim=1)
