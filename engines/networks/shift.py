"""What shift modules share: groups of channels move by whole frames and pixels, and nothing is learned.

Legend: B clips, T frames, C channels of the map, H W its size; (dt, dh, dw) an offset in frames, rows and columns.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.networks.temporal import State, TemporalModule, TensorSpec, with_past

Offset = tuple[int, int, int]
Move = tuple[int, Offset]  # so many channels, by this much


class Shift(TemporalModule):
    """`y[t, h, w, c] = x[t - dt, h - dh, w - dw, c]` for the channels of each move, counted from the first; zeros
    come in from outside. Channels after the last move stay.

    dt < 0 looks ahead. The causal form takes those channels from `past_shift` frames back instead (0: from no other
    frame; None: `usual_past_shift`), and they keep their dh and dw. Raises ValueError if no channel would move, or more
    than there are.
    """

    on_input = True
    usual_past_shift: ClassVar[int] = 1

    def __init__(self, channels: int, causal: bool, moves: Sequence[Move], past_shift: int | None = None) -> None:
        super().__init__(channels, causal, past_shift)
        moved = sum(count for count, _ in moves)
        if not 0 < moved <= channels:
            raise ValueError(f"a shift of {moved} of {channels} channels")
        self.published = tuple(move for move in moves if move[0])

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
        return 1 + max((dt for _, (dt, _, _) in self.moves), default=0)

    def state_spec(self, size_hw: tuple[int, int]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(f"past{i}", (dt, count, *size_hw))
                     for i, (count, (dt, _, _)) in enumerate(self.moves) if dt)

    def forward(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        return self.shift(x_BTCHW, state)

    def shift(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]:
        """Makes the moves."""
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
        return torch.cat([*parts, x_BTCHW[:, :, start:]], dim=2), tuple(kept)
