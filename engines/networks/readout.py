"""The recurrent read-out: what outlasts the temporal modules' receptive field.

Legend: B cameras, T frames, D features of the backbone, M width of the read-out.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engines.networks.temporal import State, TensorSpec

LEAK = 0.8  # what a frame leaves of a read-out that begins as a running mean
SQUASHED = 0.2  # the logits' scale within its tanh


class RecurrentReadout(nn.Module):
    """A gated recurrent unit over frame features: `forward(features_BTD, state) -> (features_BTM, state)`."""

    def __init__(self, width: int, readout_width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, readout_width, batch_first=True)
        self.width = readout_width

    def state_spec(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("memory", (self.width,)),)

    def forward(self, features_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        out_BTM, last = self.gru(features_BTD, state[0][None])
        return out_BTM, (last[0],)

    @torch.no_grad()
    def begin_as_mean(self, heads: Sequence[tuple[nn.Linear, Tensor]]) -> None:
        """Makes of the first units, one for each label, a running mean of what heads on the backbone's features answer.

        heads: each with the weights [K, M] of the head that takes its place. The other units stay random.
        """
        gru, first = dict(self.gru.named_parameters()), 0
        for head, weight_KM in heads:
            units = torch.arange(first, first + head.out_features)
            forget, take_in = self.width + units, 2 * self.width + units  # the rows of torch's GRU: reset, update, new
            for parameter in gru.values():
                parameter[torch.cat([forget, take_in])] = 0
            gru["bias_ih_l0"][forget] = math.log(LEAK / (1 - LEAK))
            gru["weight_ih_l0"][take_in] = SQUASHED * head.weight
            gru["bias_ih_l0"][take_in] = SQUASHED * head.bias
            weight_KM[:, units] = torch.eye(len(units)) / SQUASHED
            first += head.out_features
