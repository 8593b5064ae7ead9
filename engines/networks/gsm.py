"""GSM, the gate-shift module: Sudhakaran, Escalera, Lanz, "Gate-Shift Networks for Video Action Recognition",
CVPR 2020 (arXiv 1912.00381), section 3. A learned gate decides, place by place, what moves along time.
As published, one half of the channels shifts from the future. The causal form is ours: gate taps t-2, t-1, t;
the half that looked ahead takes the frame before last (or `past_shift` frames back), the other half the last one.
Legend: B clips, T frames, C channels of the module, c = C/2 of a half, H W the map's size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.temporal import State, TemporalModule, TensorSpec

TAPS = 3  # the gate's convolution spans three frames
PAST_SECOND = 1  # frames back to the second half


def interleave(channels: int) -> list[int]:
    """The fixed channel order at the module's end: output k takes channel order[k]; the halves never mix."""
    quarter = channels // 4
    half = [i * quarter + j for j in range(quarter) for i in range(2)]
    return half + [channels // 2 + k for k in half]


def delay_taps(weight: Tensor, dim: int) -> Tensor:
    """Each tap takes over from the one before it, the first begins at zero: causal taps lie one frame earlier."""
    return torch.cat([torch.zeros_like(weight.narrow(dim, 0, 1)), weight.narrow(dim, 0, weight.shape[dim] - 1)], dim)


class GateShift(TemporalModule):
    """GSM on all `channels` (a multiple of 4). Parameter names are the official ones."""

    usual_past_shift = 2
    order: Tensor

    def __init__(self, channels: int, causal: bool, past_shift: int | None = None) -> None:
        if channels % 4:
            raise ValueError(f"a gate-shift module needs a multiple of 4 channels, not {channels}")
        half = channels // 2
        super().__init__(channels, causal, ((half, (-1, 0, 0)), (half, (PAST_SECOND, 0, 0))), past_shift)
        self.conv3D = nn.Conv3d(channels, 2, TAPS, padding=1, groups=2)
        self.bn = nn.BatchNorm2d(channels)
        for parameter in self.conv3D.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("order", torch.tensor(interleave(channels)), persistent=False)

    @property
    def receptive_field(self) -> int:
        return super().receptive_field + TAPS - 1  # what was shifted here was gated there

    def state_spec(self, size_hw: tuple[int, int]) -> tuple[TensorSpec, ...]:
        return (TensorSpec("taps", (TAPS - 1, 2 * TAPS, *size_hw)), *super().state_spec(size_hw))

    def forward(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        gate, taps = self.gate(x_BTCHW, state[:1])
        gated = gate * x_BTCHW
        shifted, halves = self.shift(gated, state[1:])
        return (shifted + (x_BTCHW - gated)).index_select(2, self.order), taps + halves

    def gate(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        """tanh gate of every channel [B, T, C, H, W]; one plane per half, shared by the half's channels.
        The convolution over time is three convolutions over space, so only their output planes need a memory."""
        B, T, C = x_BTCHW.shape[:3]
        normal = F.relu(self.bn(x_BTCHW.flatten(0, 1)))
        taps_weight = self.conv3D.weight.transpose(1, 2).flatten(0, 1)  # [half x tap, c, 3, 3], oldest tap first
        planes = F.conv2d(normal, taps_weight, padding=1, groups=2)
        planes = planes.reshape(B, T, 2 * TAPS, *planes.shape[-2:])
        extended, state = self.with_neighbours(planes, state)
        total = extended[:, :T, 0::TAPS] + extended[:, 1:T + 1, 1::TAPS] + extended[:, 2:T + 2, 2::TAPS]
        gate = torch.tanh(total + self.conv3D.get_parameter("bias").view(2, 1, 1))
        return gate.repeat_interleave(C // 2, dim=2), state

    @torch.no_grad()
    def make_transparent(self, projection: nn.Conv2d, scale: float = 1.0) -> None:
        for parameter in self.conv3D.parameters():
            nn.init.zeros_(parameter)
        # The module puts channel order[k] at place k: store each original channel k where it will be taken from.
        for rows in projection.parameters():
            rows[self.order] = scale * rows[:self.channels].clone()

    @torch.no_grad()
    def drop_future_taps(self) -> None:
        self.conv3D.weight.copy_(delay_taps(self.conv3D.weight, dim=2))
