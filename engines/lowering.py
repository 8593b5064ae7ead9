"""One frame of a causal network, rewritten in the form that compiled engines run fastest.

    step = StepNetwork(network)                                   # the same function of the same weights
    features, *logits_and_state = step(image_BCHW, *step.fresh_state())

A compiled gate-shift module costs by its number of operators, hardly by its channels (README, benchmark section):
  * past frames of the gate's input are kept, so that the gate is one convolution over three frames;
  * its weights are repeated, so that it gives one gate per channel and nothing is broadcast (few channels only);
  * the mean of what is shifted was known when it was gated: one mean a frame, the rest comes from state;
  * the fuse convolution over (channel, time) becomes one matrix over the means of five frames;
  * the interleave at the end is moved into the rows of the projection before, so it costs nothing.
State is laid out differently from the network's own, and starts as zeros too.

Legend: B cameras, C H W a map, f gated channels, c = f/2 of a half, D features, t the present frame.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import EngineError
from engines.networks.gsf import FUSE_TAPS, GateShiftFuse
from engines.networks.gsm import PAST_SECOND, TAPS, GateShift
from engines.networks.network import Memory, Network
from engines.networks.temporal import TemporalModule

Shapes = list[tuple[int, ...]]
PER_CHANNEL_MOST = 64  # above so many gated channels, repeating the gate costs less than a wider convolution


class GateShiftStep(nn.Module):
    """One frame of a causal `GateShift` or `GateShiftFuse` on maps of `size_hw`, channels in interleaved order."""

    def __init__(self, module: GateShift, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.gated, self.size_hw = module.channels, size_hw
        self.past_first = module.past_first
        f, c, order, bn = module.channels, module.channels // 2, module.order, module.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        self.scale = nn.Parameter(scale[order].view(1, f, 1, 1))
        self.shift = nn.Parameter((bn.bias - bn.running_mean * scale)[order].view(1, f, 1, 1))
        planes = torch.zeros(2, TAPS, f, 3, 3, dtype=scale.dtype)  # each half's gate sees its own half only
        planes[0, :, :c] = module.conv3D.weight[0].transpose(0, 1)
        planes[1, :, c:] = module.conv3D.weight[1].transpose(0, 1)
        weight, bias = planes[:, :, order].flatten(1, 2), module.bias
        self.repeat = c if f > PER_CHANNEL_MOST else 1
        if self.repeat == 1:
            weight, bias = weight.repeat_interleave(c, 0), bias.repeat_interleave(c)
        self.gate_weight, self.gate_bias = nn.Parameter(weight), nn.Parameter(bias)
        self.fuse_weight: nn.Parameter | None = None
        if isinstance(module, GateShiftFuse):
            matrix, bias = fuse_matrix(module)
            self.means = frames_of_means(module)
            columns = torch.arange(2 * self.means * f).view(-1, f)[:, order].flatten()
            self.fuse_weight = nn.Parameter(matrix[order][:, columns].view(f, -1, 1, 1))
            self.fuse_bias = nn.Parameter(bias)

    def state_shapes(self) -> Shapes:
        f, c = self.gated, self.gated // 2
        shapes: Shapes = [((TAPS - 1) * f, *self.size_hw), ((self.past_first + PAST_SECOND) * c, *self.size_hw)]
        return shapes if self.fuse_weight is None else [*shapes, ((self.means - 1) * 2 * f, 1, 1)]

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        f, c, first = self.gated, self.gated // 2, self.past_first
        moving = x[:, :f]
        normal = torch.cat([state[0], F.relu(moving * self.scale + self.shift)], 1)  # t-2, t-1, t
        gate = torch.tanh(F.conv2d(normal, self.gate_weight, self.gate_bias, padding=1)
                          .repeat_interleave(self.repeat, 1))
        gated = gate * moving
        stayed = moving - gated
        past = state[1]  # first half at t-2, first half at t-1 (as many as it reaches back), second half at t-1
        shifted = torch.cat([past[:, :c] if first else gated[:, :c], past[:, first * c:]], 1)
        queue = torch.cat([past[:, c:first * c], gated], 1) if first > 1 else gated[:, (1 - first) * c:]
        kept = [normal[:, f:], queue]
        if self.fuse_weight is None:
            mixed = shifted + stayed
        else:
            mean = torch.cat([gated, stayed], 1).mean((2, 3), keepdim=True)
            means = torch.cat([state[2], mean], 1)
            kept.append(means[:, 2 * f:])
            mixed = stayed + torch.sigmoid(F.conv2d(means, self.fuse_weight, self.fuse_bias)) * (shifted - stayed)
        return torch.cat([mixed, x[:, f:]], 1), kept


def frames_of_means(module: GateShiftFuse) -> int:
    """How many frames of means one fuse weight depends on."""
    return max(module.past_first, PAST_SECOND) + FUSE_TAPS


def fuse_matrix(module: GateShiftFuse) -> tuple[Tensor, Tensor]:
    """The fuse convolutions as (matrix [f, means x (gated f, stayed f)], bias [f]), oldest frame first."""
    f, c, means = module.channels, module.channels // 2, frames_of_means(module)
    like = module.channel_conv1.weight
    matrix, bias = like.new_zeros(f, means, 2, f), like.new_zeros(f)
    halves = ((0, module.channel_conv1, module.past_first), (c, module.channel_conv2, PAST_SECOND))
    for start, conv, past in halves:
        assert conv.bias is not None
        bias[start:start + c] = conv.bias
        for source, back in ((0, past), (1, 0)):  # what is shifted now was gated `past` frames ago
            for neighbour in range(3):
                for tap in range(FUSE_TAPS):
                    rows = torch.arange(max(0, 1 - neighbour), min(c, c + 1 - neighbour)) + start
                    frame = means - FUSE_TAPS - back + tap
                    matrix[rows, frame, source, rows + neighbour - 1] = conv.weight[0, source, neighbour, tap]
    return matrix.flatten(1), bias


class VerbatimStep(nn.Module):
    """One frame of any other temporal module, as it stands."""

    def __init__(self, module: TemporalModule, shapes: Shapes) -> None:
        super().__init__()
        self.module, self.shapes = module, shapes

    def state_shapes(self) -> Shapes:
        return self.shapes

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, kept = self.module(x[:, None], tuple(state))
        return y[:, 0], list(kept)


class MemoryStep(nn.Module):
    """One frame of the recurrent read-out: a cell, not a sequence of one."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        weights = {name.removesuffix("_l0"): value for name, value in memory.gru.state_dict().items()}
        self.cell = nn.GRUCell(memory.gru.input_size, memory.gru.hidden_size, dtype=weights["weight_ih"].dtype)
        self.cell.load_state_dict(weights)

    def state_shapes(self) -> Shapes:
        return [(self.cell.hidden_size,)]

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = self.cell(x, state[0])
        return x, [x]


class StepNetwork(nn.Module):
    """`forward(image_BCHW, *state) -> (features [B, D], logits of each head [B, K]..., state...)`; pure.

    image: normalised, as `network` takes it, or with its channels in reverse when `reversed_colours`.
    Raises EngineError for a bidirectional network.
    """

    @torch.no_grad()
    def __init__(self, network: Network, reversed_colours: bool = False) -> None:
        super().__init__()
        if not network.causal:
            raise EngineError("a bidirectional network", "a causal one, which can run frame by frame",
                              "use a model trained with --causal, or score whole clips with engines.clip_scores")
        self.backbone = copy.deepcopy(network.backbone)
        if reversed_colours:
            stem = next(layer for layer in self.backbone.modules() if isinstance(layer, nn.Conv2d))
            stem.weight.copy_(stem.weight.flip(1))
        self.heads = copy.deepcopy(network.heads)
        spec = {place: [leaf.shape for leaf in network.state_spec() if leaf.name.startswith(f"{place}.")]
                for place in network.temporal}
        steps: dict[str, nn.Module] = {}
        for place, module in network.temporal.items():
            if isinstance(module, GateShift):
                steps[place] = GateShiftStep(module, spec[place][0][-2:])  # type: ignore[arg-type]
                _interleave_rows(self.backbone.places()[place], module)
            else:
                assert isinstance(module, TemporalModule)
                steps[place] = VerbatimStep(copy.deepcopy(module), spec[place])
        self.temporal = nn.ModuleDict(steps)
        self.memory = MemoryStep(network.memory) if network.memory is not None else None
        self.eval()

    def _steps(self) -> list[nn.Module]:
        return [*self.temporal.values(), *([] if self.memory is None else [self.memory])]

    def fresh_state(self) -> list[Tensor]:
        """State of one camera that has seen nothing."""
        like = next(self.parameters())
        return [like.new_zeros(1, *shape) for step in self._steps() for shape in step.state_shapes()]  # type: ignore[operator]

    def forward(self, image: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        past, kept = list(state), []

        def advance(step: nn.Module, x: Tensor) -> Tensor:
            count = len(step.state_shapes())  # type: ignore[operator]
            x, leaves = step(x, [past.pop(0) for _ in range(count)])
            kept.extend(leaves)
            return x

        def mix(place: str, x: Tensor) -> Tensor:
            return advance(self.temporal[place], x) if place in self.temporal else x

        features = self.backbone(image, mix)
        if self.memory is not None:
            features = advance(self.memory, features)
        return features, *(head(features) for head in self.heads.values()), *kept


def _interleave_rows(projection: nn.Conv2d, module: GateShift) -> None:
    f = module.channels
    projection.weight[:f] = projection.weight[:f][module.order]
    if projection.bias is not None:
        projection.bias[:f] = projection.bias[:f][module.order]
