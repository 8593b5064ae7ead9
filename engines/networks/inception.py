"""What the two Inception backbones share: named convolutions with bias, batch norm and ReLU, and Caffe's pools.
Both descend from Caffe and TensorFlow models, so pools round their size up, and averages count the padding."""

import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.backbone import CAFFE, Backbone, Hook

Kernel = int | tuple[int, int]  # height x width


class Inception(Backbone):
    """Every convolution's output and input is a site, under its own name. Parameter names are those of the official
    checkpoints."""

    pixels = CAFFE

    def norm_name(self, conv: str) -> str:
        """Name of the batch norm after a convolution."""
        return f"{conv}_bn"

    def add(self, name: str, inputs: int, outputs: int, kernel: Kernel, stride: int = 1,
            padding: int | None = None) -> int:
        """Adds a convolution, padded to keep the map's size unless `padding` says otherwise; returns `outputs`."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        pad = (height // 2, width // 2) if padding is None else (padding, padding)
        self.add_module(name, nn.Conv2d(inputs, outputs, (height, width), stride, pad))
        self.add_module(self.norm_name(name), nn.BatchNorm2d(outputs))
        return outputs

    def conv(self, name: str, x: Tensor, hook: Hook) -> Tensor:
        y = hook(name, self.get_submodule(name)(hook(f"{name}_input", x)))
        return F.relu(self.get_submodule(self.norm_name(name))(y))

    def conv_pool(self, name: str, x: Tensor, hook: Hook) -> Tensor:
        return max_pool(self.conv(name, x, hook), 2)

    def sites(self) -> dict[str, nn.Conv2d]:
        return {name: layer for name, layer in self.named_children() if isinstance(layer, nn.Conv2d)}

    def input_sites(self) -> dict[str, int]:
        return {f"{name}_input": conv.in_channels for name, conv in self.sites().items()}

    def default_input_sites(self) -> tuple[str, ...]:
        return tuple(f"{name}_input" for name in self.default_sites("tsm", causal=False))


def max_pool(x: Tensor, stride: int) -> Tensor:
    """3x3; with stride 1 the map keeps its size. Rounding up is written as zeros to the right and below, as TensorRT
    has no other way: a maximum after a ReLU does not see them."""
    if stride == 1:
        return F.max_pool2d(x, 3, 1, padding=1)
    bottom, right = (-(int(side) - 3) % stride for side in x.shape[-2:])
    return F.max_pool2d(F.pad(x, [0, right, 0, bottom]) if right or bottom else x, 3, stride)


def average_pool(x: Tensor) -> Tensor:
    """3x3, same size."""
    return F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=True)
