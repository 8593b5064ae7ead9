"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv 1801.04381) with batch norms folded into biases.
Parameter names are torchvision's. Temporal modules may sit on the output of each residual block's projection, or on
the input of its branch, before the expansion; the skip always carries the map as it came."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from engines.networks.backbone import Backbone, Hook, Step, mean_over_space
from engines.networks.config import MIDDLE_CHANNELS, MOTION_WIDTH

EPS = 1e-5  # of the published batch norms
# expansion, channels, blocks, stride of the first block (table 2 of the paper)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
MOTION_CHANNELS, MOTION_BLOCKS, MOTION_EXPANSION = 128, 3, 2
# timm: blocks.STAGE.INDEX.{conv_pw bn1, conv_dw bn2, conv_pwl bn3}; in the first block {conv_dw bn1, conv_pw bn2}.
_TIMM_STARTS = (1, 2, 4, 7, 11, 14, 17)
_TIMM_LAYERS = {"conv_pw": "conv.0.0", "bn1": "conv.0.1", "conv_dw": "conv.1.0", "bn2": "conv.1.1",
                "conv_pwl": "conv.2", "bn3": "conv.3"}
_TIMM_FIRST = {"conv_dw": "conv.0.0", "bn1": "conv.0.1", "conv_pw": "conv.1", "bn2": "conv.2"}
_TIMM_ENDS = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.18.0", "bn2": "features.18.1"}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)


def _conv_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride, groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; with a skip where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        expand = [_conv_relu6(inputs, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(*expand, _conv_relu6(hidden, hidden, 3, stride, groups=hidden),
                                  _conv(hidden, outputs, 1))

    def forward(self, x: Tensor, name: str, hook: Hook) -> Tensor:
        if not self.residual:
            return self.conv(x)  # type: ignore[no-any-return]
        return x + hook(name, self.conv(hook(f"{name}_input", x)))


class MotionBranch(nn.Module):
    """What moves, and how: residual blocks of their own on the middle layer's map, at half its size, where a hand moves
    by about a cell from frame to frame. Temporal modules sit at their projections."""

    width = MOTION_WIDTH

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.reduce = _conv_relu6(inputs, MOTION_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList(InvertedResidual(MOTION_CHANNELS, MOTION_CHANNELS, 1, MOTION_EXPANSION)
                                    for _ in range(MOTION_BLOCKS))
        self.head = _conv_relu6(MOTION_CHANNELS, self.width, 1)

    def sites(self) -> dict[str, nn.Conv2d]:
        """As `Backbone.sites`."""
        return {f"motion_{i}": projection for i, block in enumerate(self.blocks)
                if isinstance(block, InvertedResidual) and isinstance(projection := block.conv[-1], nn.Conv2d)}

    def forward(self, x: Tensor, hook: Hook) -> Tensor:
        x = self.reduce(x)
        for i, block in enumerate(self.blocks):
            x = block(x, f"motion_{i}", hook)
        return mean_over_space(self.head(x), hook)


class MobileNetV2(Backbone):
    width = 1280
    hub_model = "timm/mobilenetv2_100.ra_in1k"
    middle = ("features.13", MIDDLE_CHANNELS["mobilenetv2"])
    middle_steps = 14

    def __init__(self) -> None:
        super().__init__()
        self.motion: MotionBranch | None = None  # see `add_motion`
        channels = 32
        self.features = nn.Sequential(_conv_relu6(3, channels, 3, 2))
        for expansion, outputs, blocks, first_stride in STAGES:
            for stride in (first_stride, *[1] * (blocks - 1)):
                self.features.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        self.features.append(_conv_relu6(channels, self.width, 1))

    def add_motion(self) -> None:
        """Makes the means of a motion branch features, too, after the last layer's."""
        self.motion = MotionBranch(self.middle[1])
        self.width += MOTION_WIDTH

    def sites(self) -> dict[str, nn.Conv2d]:
        own = {f"features_{i}": projection for i, layer in enumerate(self.features)
               if isinstance(layer, InvertedResidual) and layer.residual
               and isinstance(projection := layer.conv[-1], nn.Conv2d)}
        if self.motion is None:
            return own
        lower = [site for site in own if int(site.removeprefix("features_")) < self.middle_steps]
        return {site: own.pop(site) for site in lower} | self.motion.sites() | own

    def input_sites(self) -> dict[str, int]:
        return {f"{name}_input": projection.out_channels for name, projection in self.sites().items()}

    def default_sites(self, module: str, causal: bool) -> tuple[str, ...]:
        """Gates on the motion branch, else on late, small maps: earlier sites cost as much and see little more."""
        return tuple(self.motion.sites() if self.motion else (f"features_{i}" for i in (9, 10, 12, 13, 15, 16)))

    def default_gate_ratio(self, causal: bool) -> int:
        return 25

    def freezable_layers(self) -> Sequence[nn.Module]:
        return list(self.features)

    @staticmethod
    def imagenet_state(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """MobileNetV2 weights under torchvision's names; batch norms, if present, are folded into the convolutions."""
        named = {_torchvision_name(name): value for name, value in weights.items()}
        state: dict[str, Tensor] = {}
        for name, weight in named.items():
            if not name.endswith(".weight") or weight.ndim != 4:
                continue
            conv = name.removesuffix(".weight")
            before, _, index = conv.rpartition(".")
            norm = f"{before}.{int(index) + 1}"  # torchvision puts it right after: `a.0` -> `a.1`, `conv.2` -> `conv.3`
            bias = named.get(f"{conv}.bias")
            if f"{norm}.running_var" in named:
                scale = named[f"{norm}.weight"] / (named[f"{norm}.running_var"] + EPS).sqrt()
                weight = weight * scale[:, None, None, None]
                bias = named[f"{norm}.bias"] - named[f"{norm}.running_mean"] * scale
            state |= {name: weight} if bias is None else {name: weight, f"{conv}.bias": bias}
        return state

    def steps(self) -> list[Step]:
        return [*(partial(self._layer, i) for i in range(len(self.features))), mean_over_space]

    @property
    def reads_middle(self) -> bool:
        return self.motion is not None or super().reads_middle

    def features_beside(self, middle: Tensor, hook: Hook) -> list[Tensor]:
        motion = [] if self.motion is None else [self.motion(middle, hook)]
        return motion + super().features_beside(middle, hook)

    def _layer(self, i: int, x: Tensor, hook: Hook) -> Tensor:
        layer = self.features[i]
        y: Tensor = layer(x, f"features_{i}", hook) if isinstance(layer, InvertedResidual) else layer(x)
        return y


def _torchvision_name(name: str) -> str:
    if block := re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name):
        stage, index, layer, leaf = int(block[1]), int(block[2]), block[3], block[4]
        layers = _TIMM_FIRST if stage == 0 else _TIMM_LAYERS
        return f"features.{_TIMM_STARTS[stage] + index}.{layers.get(layer, layer)}.{leaf}"
    layer, _, leaf = name.rpartition(".")
    return f"{_TIMM_ENDS.get(layer, layer)}.{leaf}"
