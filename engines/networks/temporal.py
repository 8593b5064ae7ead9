"""What every temporal module shares: the module's form, and looking along time with or without a future.

Legend: B cameras or clips, T frames, C channels, H W the map's size, P frames of past kept as state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.backbone import Backbone
from engines.networks.config import NetworkConfig

State = tuple[Tensor, ...]


class TensorSpec(NamedTuple):
    """One tensor of state. `shape` leaves out the camera axis, which always comes first. Zeros mean fresh."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32  # that of the weights, which `Network.state_spec` fills in


class TemporalModule(nn.Module, ABC):
    """Mixes a feature map along time: `forward(x_BTCHW, state) -> (y_BTCHW, state)` for any T.

    Causal modules read the past from `state`; bidirectional ones pad both ends with zeros and their state is ().
    past_shift: as in `NetworkConfig`.
    """

    def __init__(self, channels: int, causal: bool, past_shift: int | None = None) -> None:
        super().__init__()
        self.channels, self.causal, self.past_shift = channels, causal, past_shift

    on_input: ClassVar[bool] = False  # it sits on the input of a branch, not on the output of its last convolution
    options: ClassVar[tuple[str, ...]] = ()  # the fields of a config that it takes besides `causal` and `past_shift`

    @classmethod
    def defaults(cls, config: NetworkConfig, backbone: Backbone) -> dict[str, object]:
        """The fields of a config that the backbone decides where they are None."""
        return {"sites": backbone.default_input_sites() if cls.on_input else
                backbone.default_sites(config.module, config.causal)}

    @property
    @abstractmethod
    def receptive_field(self) -> int:
        """Frames that an output of the causal form can depend on, its own included."""

    @abstractmethod
    def state_spec(self, size_hw: tuple[int, int]) -> tuple[TensorSpec, ...]:
        """The tensors of the causal form's state for maps of this size."""

    @abstractmethod
    def forward(self, x_BTCHW: Tensor, state: State) -> tuple[Tensor, State]: ...

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
