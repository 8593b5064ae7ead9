"""What temporal modules share: their form, looking along time with or without a future, and the shift of channels.
Legend: B cameras or clips, T frames, C channels, H W the map's size, P frames of past kept as state; (dt, dh, dw) an
offset in frames, rows and columns."""

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.backbone import Backbone
from engines.networks.config import NetworkConfig

State = tuple[Tensor, ...]
Offset = tuple[int, int, int]
Move = tuple[int, Offset]  # so many channels, by this much


class TensorSpec(NamedTuple):
    """One tensor of state. `shape` leaves out the camera axis, which always comes first. Zeros mean fresh."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32  # that of the weights, which `Network.state_spec` fills in


class TemporalModule(nn.Module):
    """Mixes a feature map along time: `forward(x_BTCHW, state) -> (y_BTCHW, state)` for any T.
    `y[t, h, w, c] = x[t - dt, h - dh, w - dw, c]` for the channels of each move, counted from the first; zeros come in
    from outside. Channels after the last move stay. dt < 0 looks ahead: the causal form takes those channels from
    `past_shift` frames back instead (0: from no other frame; None: `usual_past_shift`), and they keep their dh and dw.
    Causal modules read the past from `state`; that of bidirectional ones is ().
    Raises ValueError if no channel would move, or more than there are."""

    on_input: ClassVar[bool] = False  # it sits on the input of a branch, not on the output of its last convolution
    options: ClassVar[tuple[str, ...]] = ()  # the fields of a config that it takes besides `causal` and `past_shift`
    usual_past_shift: ClassVar[int] = 1

    def __init__(self, channels: int, causal: bool, moves: Sequence[Move], past_shift: int | None = None) -> None:
        super().__init__()
        self.channels, self.causal, self.past_shift = channels, causal, past_shift
        moved = sum(count for count, _ in moves)
        if not 0 < moved <= channels:
            raise ValueError(f"a shift of {moved} of {channels} channels")
        self.published = tuple(move for move in moves if move[0])

    @classmethod
    def defaults(cls, config: NetworkConfig, backbone: Backbone) -> dict[str, object]:
        """The fields of a config that the backbone decides where they are None."""
        return {"sites": backbone.default_input_sites() if cls.on_input else
                backbone.default_sites(config.module, config.causal)}

    @property
    def back(self) -> int:
        """Frames back to the channels that look ahead in the published form, in the causal one."""
        return self.usual_past_shift if self.past_shift is None else self.past_shift

    @property
    def moves(self) -> tuple[Move, ...]:
        """The moves of this form; neighbours with the same offset are one."""
        moves = self.published
        if self.causal:
            moves = tuple((count, (self.back if dt < 0 else dt, dh, dw)) for count, (dt, dh, dw) in moves)
        alike = groupby(moves, key=lambda move: move[1])
        return tuple((sum(count for count, _ in group), offset) for offset, group in alike)

    @property
    def receptive_field(self) -> int:
        """Frames that an output of the causal form can depend on, its own included."""
        return 1 + max((dt for _, (dt, _, _) in self.moves), default=0)

    def state_spec(self, size_hw: tuple[int, int]) -> tuple[TensorSpec, ...]:
        """The tensors of the causal form's state for maps of this size."""
        return tuple(TensorSpec(f"past{i}", (dt, count, *size_hw))
                     for i, (count, (dt, _, _)) in enumerate(self.moves) if dt)

    def forward(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        return self.shift(x_BTCHW, state)

    def shift(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        T, parts, kept = x_BTCHW.shape[1], [], []
        past, start = iter(state), 0
        for count, (dt, dh, dw) in self.moves:
            part = x_BTCHW[:, :, start:start + count]
            start += count
            if self.causal and dt:
                extended, last = with_past(part, next(past))
                part, dt = extended[:, :T], 0
                kept.append(last)
            if dt or dh or dw:
                part = F.pad(part, [dw, -dw, dh, -dh, 0, 0, dt, -dt])  # a negative pad cuts off
            parts.append(part)
        if start < x_BTCHW.shape[2]:
            parts.append(x_BTCHW[:, :, start:])
        return torch.cat(parts, dim=2), tuple(kept)

    def with_neighbours(self, x_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """x for a convolution over three frames: with the two before it, or with zeros at both ends; new state."""
        if not self.causal:
            return F.pad(x_BT, [0, 0] * (x_BT.ndim - 2) + [1, 1]), ()
        extended, kept = with_past(x_BT, state[0])
        return extended, (kept,)

    def make_transparent(self, projection: nn.Conv2d) -> None:
        """Sets the module, and the convolution before it, so that both compute what the convolution alone did."""

    def drop_future_taps(self) -> None:
        """Weights of convolutions over t-1, t, t+1 become those over t-2, t-1, t: that of t+1 is dropped."""


def with_past(x_BT: Tensor, past_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Puts P past frames before x along time; returns (extended [B, P+T, ...], the last P frames to keep)."""
    extended = torch.cat([past_BP, x_BT], dim=1)
    return extended, extended[:, -past_BP.shape[1]:]
