"""InceptionV3 (Szegedy et al., CVPR 2016, arXiv 1512.00567), the variant of the GSM and GSF checkpoints.
Not torchvision's: 229 pixels, biases, batch norms with eps 1e-5, factorised convolutions in the other order, no
auxiliary head, and the last block's pool branch takes the maximum."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engines.networks.backbone import Hook, Step, mean_over_space
from engines.networks.inception import Inception, Kernel, average_pool, max_pool


class Layer(NamedTuple):
    """A convolution; its name follows the block's. Stride 2 goes without padding."""

    name: str
    outputs: int
    kernel: Kernel = 1
    stride: int = 1


class Branch(NamedTuple):
    """Convolutions in a row, after a pool if named; `ends` all take the row's output and are put side by side."""

    row: tuple[Layer, ...] = ()
    ends: tuple[Layer, ...] = ()
    pool: str = ""


TALL, WIDE = (7, 1), (1, 7)


def _same_35(projection: int) -> tuple[Branch, ...]:
    return (Branch((Layer("conv", 64),)),
            Branch((Layer("tower_conv", 48), Layer("tower_conv_1", 64, 5))),
            Branch((Layer("tower_1_conv", 64), Layer("tower_1_conv_1", 96, 3), Layer("tower_1_conv_2", 96, 3))),
            Branch((Layer("tower_2_conv", projection),), pool="average"))


def _same_17(c: int) -> tuple[Branch, ...]:
    return (Branch((Layer("conv", 192),)),
            Branch((Layer("tower_conv", c), Layer("tower_conv_1", c, TALL), Layer("tower_conv_2", 192, WIDE))),
            Branch((Layer("tower_1_conv", c), Layer("tower_1_conv_1", c, WIDE), Layer("tower_1_conv_2", c, TALL),
                    Layer("tower_1_conv_3", c, WIDE), Layer("tower_1_conv_4", 192, TALL))),
            Branch((Layer("tower_2_conv", 192),), pool="average"))


def _same_8(pool: str) -> tuple[Branch, ...]:
    def split(tower: str) -> tuple[Layer, ...]:
        return Layer(f"{tower}_mixed_conv", 384, (3, 1)), Layer(f"{tower}_mixed_conv_1", 384, (1, 3))

    return (Branch((Layer("conv", 320),)),
            Branch((Layer("tower_conv", 384),), split("tower")),
            Branch((Layer("tower_1_conv", 448), Layer("tower_1_conv_1", 384, 3)), split("tower_1")),
            Branch((Layer("tower_2_conv", 192),), pool=pool))


BLOCKS: dict[str, tuple[Branch, ...]] = {
    "mixed": _same_35(32), "mixed_1": _same_35(64), "mixed_2": _same_35(64),
    "mixed_3": (Branch((Layer("conv", 384, 3, 2),)),
                Branch((Layer("tower_conv", 64), Layer("tower_conv_1", 96, 3), Layer("tower_conv_2", 96, 3, 2))),
                Branch(pool="halving")),
    "mixed_4": _same_17(128), "mixed_5": _same_17(160), "mixed_6": _same_17(160), "mixed_7": _same_17(192),
    "mixed_8": (Branch((Layer("tower_conv", 192), Layer("tower_conv_1", 320, 3, 2))),
                Branch((Layer("tower_1_conv", 192), Layer("tower_1_conv_1", 192, TALL),
                        Layer("tower_1_conv_2", 192, WIDE), Layer("tower_1_conv_3", 192, 3, 2))),
                Branch(pool="halving")),
    "mixed_9": _same_8("average"), "mixed_10": _same_8("maximum")}


class InceptionV3(Inception):
    width = 2048
    input_size_hw, cover_hw = (229, 229), (261, 261)

    def norm_name(self, conv: str) -> str:
        return conv.removesuffix("_Conv2D") + "_batchnorm"

    def __init__(self) -> None:
        super().__init__()
        self.add("conv_Conv2D", 3, 32, 3, stride=2, padding=0)
        self.add("conv_1_Conv2D", 32, 32, 3, padding=0)
        self.add("conv_2_Conv2D", 32, 64, 3)
        self.add("conv_3_Conv2D", 64, 80, 1)
        inputs = self.add("conv_4_Conv2D", 80, 192, 3, padding=0)
        for block, branches in BLOCKS.items():
            total = 0
            for branch in branches:
                channels = inputs
                for layer in branch.row:
                    channels = self._add(block, layer, channels)
                total += sum(self._add(block, layer, channels) for layer in branch.ends) or channels
            inputs = total

    def _add(self, block: str, layer: Layer, inputs: int) -> int:
        padding = 0 if layer.stride > 1 else None
        return self.add(f"{block}_{layer.name}_Conv2D", inputs, layer.outputs, layer.kernel, layer.stride, padding)

    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        """GSM and GSF differ in two blocks, as published; other modules sit where GSF does."""
        chosen = dict.fromkeys(BLOCKS, "conv") | {"mixed_8": "tower_conv"}
        if module == "gsm":
            chosen["mixed_3"] = "tower_conv"
            del chosen["mixed_6"]
        return tuple(f"{block}_{layer}_Conv2D" for block, layer in chosen.items())

    def steps(self) -> list[Step]:
        return [partial(self.conv, "conv_Conv2D"), partial(self.conv, "conv_1_Conv2D"),
                partial(self.conv_pool, "conv_2_Conv2D"), partial(self.conv, "conv_3_Conv2D"),
                partial(self.conv_pool, "conv_4_Conv2D"), *(partial(self.block, block) for block in BLOCKS),
                mean_over_space]

    def block(self, block: str, x: Tensor, hook: Hook) -> Tensor:
        return torch.cat([y for branch in BLOCKS[block] for y in self.branch(block, branch, x, hook)], dim=1)

    def branch(self, block: str, branch: Branch, x: Tensor, hook: Hook) -> list[Tensor]:
        if branch.pool:
            x = average_pool(x) if branch.pool == "average" else max_pool(x, 2 if branch.pool == "halving" else 1)
        for layer in branch.row:
            x = self.conv(f"{block}_{layer.name}_Conv2D", x, hook)
        return [self.conv(f"{block}_{layer.name}_Conv2D", x, hook) for layer in branch.ends] or [x]
