"""GSF, gate-shift-fuse: Sudhakaran, Escalera, Lanz, "Gate-Shift-Fuse for Video Action Recognition",
TPAMI 2023 (arXiv 2203.08897), section 3. GSM on the first channels of a map, and a learned, channel-wise mean of
what was shifted and what stayed. The causal form pads the fuse convolution with the past only (ours).
Legend: B clips, T frames, C channels of the map, f of them gated, c = f/2 of a half, H W the map's size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.backbone import Backbone
from engines.networks.config import NetworkConfig
from engines.networks.gsm import GateShift, delay_taps
from engines.networks.temporal import State, TensorSpec

FUSE_TAPS = 3


def gated_channels(channels: int, gate_ratio: int) -> int:
    """How many channels a ratio in percent means: official rounding (odd goes up), then up to a multiple of 4."""
    gated = int(channels * gate_ratio / 100)
    gated += gated % 2
    return gated + gated % 4


class GateShiftFuse(GateShift):
    """GSF on the first `gate_ratio` percent of `channels`; the rest passes unchanged. Parameter names are official."""

    options = ("gate_ratio",)

    def __init__(self, channels: int, causal: bool, gate_ratio: int = 100, past_shift: int | None = None) -> None:
        super().__init__(gated_channels(channels, gate_ratio), causal, past_shift)
        self.conv3D.reset_parameters()
        self.channel_conv1, self.channel_conv2 = (nn.Conv2d(2, 1, FUSE_TAPS, padding=1) for _ in range(2))

    @classmethod
    def defaults(cls, config: NetworkConfig, backbone: Backbone) -> dict[str, object]:
        return {**super().defaults(config, backbone), "gate_ratio": backbone.default_gate_ratio(config.causal)}

    @property
    def receptive_field(self) -> int:
        return super().receptive_field + FUSE_TAPS - 1

    def state_spec(self, size_hw: tuple[int, int]) -> tuple[TensorSpec, ...]:
        return (*super().state_spec(size_hw), TensorSpec("pooled", (FUSE_TAPS - 1, 2, self.channels)))

    def forward(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        x, rest = x_BTCHW[:, :, :self.channels], x_BTCHW[:, :, self.channels:]
        gate, taps = self.gate(x, state[:1])
        gated = gate * x
        stayed = x - gated
        shifted, halves = self.shift(gated, state[1:-1])
        weight, pooled = self.fuse_weight(shifted, stayed, state[-1:])
        mixed = stayed + weight[..., None, None] * (shifted - stayed)
        mixed = mixed.index_select(2, self.order)
        return torch.cat([mixed, rest], dim=2) if rest.shape[2] else mixed, taps + halves + pooled

    def fuse_weight(self, shifted_BTCHW: Tensor, stayed_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        """Weight of the shifted part, [B, T, f]: a 3x3 convolution over neighbouring channels and times."""
        pooled = torch.stack([shifted_BTCHW.mean((-2, -1)), stayed_BTCHW.mean((-2, -1))], dim=2)  # [B, T, 2, f]
        extended, state = self.with_neighbours(pooled, state)
        image = extended.permute(0, 2, 3, 1)  # [B, 2, f, time]
        weights = [F.conv2d(half, conv.weight, conv.bias, padding=(1, 0))[:, 0]
                   for half, conv in zip(image.chunk(2, dim=2), (self.channel_conv1, self.channel_conv2), strict=True)]
        return torch.sigmoid(torch.cat(weights, dim=1)).transpose(1, 2), state

    def make_transparent(self, projection: nn.Conv2d, scale: float = 2.0) -> None:
        """The mean of two parts, with weights of 1/2, is made up for by twice the scale in the projection."""
        super().make_transparent(projection, scale)
        for conv in (self.channel_conv1, self.channel_conv2):
            for parameter in conv.parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def drop_future_taps(self) -> None:
        super().drop_future_taps()
        for conv in (self.channel_conv1, self.channel_conv2):
            conv.weight.copy_(delay_taps(conv.weight, dim=3))
