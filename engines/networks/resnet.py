"""ResNet (He et al., CVPR 2016, arXiv 1512.03385) in the "v1.5" layout: a bottleneck strides in its 3x3.
Parameter names are torchvision's. Temporal modules may sit on the output of each block's last convolution, before
its batch norm and the skip (the GSF authors fill all of them), or on the input of its branch, before the first (the
TSM authors likewise); the skip always carries the map as it came."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.backbone import Backbone, Hook, Step, mean_over_space

PLANES = (64, 128, 256, 512)
LATE = ("layer3", "layer4")


class Block(nn.Module):
    """Convolutions with batch norm; `hook` sees the first one's input and the last one's raw output; then the skip.
    layers: (outputs, kernel, stride) of each convolution."""

    def __init__(self, inputs: int, layers: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.inputs, self.depth = inputs, len(layers)
        widths = [inputs, *(outputs for outputs, _, _ in layers)]
        for i, ((before, outputs), (_, kernel, stride)) in enumerate(zip(pairwise(widths), layers, strict=True), 1):
            self.add_module(f"conv{i}", nn.Conv2d(before, outputs, kernel, stride, kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
        stride = max(stride for _, _, stride in layers)
        self.downsample = None if stride == 1 and inputs == widths[-1] else nn.Sequential(
            nn.Conv2d(inputs, widths[-1], 1, stride, bias=False), nn.BatchNorm2d(widths[-1]))

    def forward(self, x: Tensor, hook: Hook, site: str) -> Tensor:
        y = hook(f"{site}_input", x)
        for i in range(1, self.depth):
            y = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y)))
        y = self.get_submodule(f"bn{self.depth}")(hook(site, self.get_submodule(f"conv{self.depth}")(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(Backbone):
    """Basic blocks (two 3x3) or bottlenecks (1x1, 3x3, 1x1 to four times as many channels)."""

    counts: Sequence[int]  # of the blocks in each stage
    bottleneck = False

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, PLANES[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(PLANES[0])
        channels = PLANES[0]
        for stage, (planes, count) in enumerate(zip(PLANES, self.counts, strict=True), 1):
            row = nn.Sequential()
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                row.append(Block(channels, [(planes, 1, 1), (planes, 3, stride), (4 * planes, 1, 1)] if self.bottleneck
                                 else [(planes, 3, stride), (planes, 3, 1)]))
                channels = 4 * planes if self.bottleneck else planes
            self.add_module(f"layer{stage}", row)
        self.width = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def blocks(self) -> dict[str, Block]:
        """Place -> block, in order."""
        return {name.replace(".", "_"): block for name, block in self.named_modules() if isinstance(block, Block)}

    def sites(self) -> dict[str, nn.Conv2d]:
        return {site: last for site, block in self.blocks().items()
                if isinstance(last := block.get_submodule(f"conv{block.depth}"), nn.Conv2d)}

    def input_sites(self) -> dict[str, int]:
        return {f"{site}_input": block.inputs for site, block in self.blocks().items()}

    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        """As published in every block; causal gates in the last two stages, as the maps before them are so large that
        keeping their past costs most of a step."""
        return tuple(site for site in self.blocks() if not causal or site.startswith(LATE))

    def default_gate_ratio(self, causal: bool) -> int:
        return 25 if causal else 100

    @staticmethod
    def official_prefix(module: str, site: str) -> str:
        return f"{site.replace('_', '.')}.{module}."

    def steps(self) -> list[Step]:
        return [self._stem, *(partial(block, site=site) for site, block in self.blocks().items()), mean_over_space]

    def _stem(self, images_NCHW: Tensor, _: Hook) -> Tensor:
        return F.max_pool2d(F.relu(self.bn1(self.conv1(images_NCHW))), 3, 2, 1)


class ResNet18(ResNet):
    hub_model = "timm/resnet18.tv_in1k"
    counts = (2, 2, 2, 2)


class ResNet50(ResNet):
    hub_model = "timm/resnet50.tv_in1k"
    counts, bottleneck = (3, 4, 6, 3), True
