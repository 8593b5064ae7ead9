"""One frame of a causal network, rewritten in the form that compiled engines run fastest.
A compiled gate-shift module costs by its number of operators, hardly by its channels:
  * past frames of the gate's input are kept, so that the gate is one convolution over three frames with one output per
    channel, and nothing is broadcast; where that would be much work (wide, large maps), it sees the present frame only,
    for all three taps, and sums of planes are kept instead of maps;
  * the mean of what is shifted was known when it was gated: one mean a frame, the rest comes from state;
  * the fuse convolution over (channel, time) is one matrix over the means of five frames, or with many channels, as it
    grows with their square, a convolution over the channels with those frames side by side;
  * the halves, shifted by two frames and by one, are put together by masks, as cutting and joining costs operators;
  * the interleave at the end is in the rows of the projection before.
State is laid out differently from the network's own, and starts as zeros too.
Legend: B cameras, C H W a map, f gated channels, c = f/2 of a half, D features, t the present frame."""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engines.errors import EngineError
from engines.model.contract import Contract
from engines.networks.backbone import Backbone
from engines.networks.gsf import FUSE_TAPS, GateShiftFuse
from engines.networks.gsm import PAST_SECOND, TAPS, GateShift
from engines.networks.network import Network, RecurrentReadout
from engines.networks.temporal import TemporalModule

Shapes = dict[str, tuple[int, ...]]  # of each leaf of state, without the camera axis
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # as `F.linear`
PER_CHANNEL_MOST = 8e6  # multiplications of a gate per channel; above, sums of planes and a broadcast cost less
FUSE_MATRIX_MOST = 64  # above so many gated channels, reading the fuse matrix costs more than the operators it saves


class GateShiftStep(nn.Module):
    """One frame of a causal `GateShift` or `GateShiftFuse` on maps of `size_hw`, channels in interleaved order."""

    first_half: Tensor
    ones: Tensor

    def __init__(self, module: GateShift, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.back_first, self.back = module.back, max(module.back, PAST_SECOND)
        f = self.gated = module.channels
        c, order, bn = f // 2, module.order, module.bn.state_dict()
        scale = bn["weight"] / torch.sqrt(bn["running_var"] + module.bn.eps)
        self.scale = nn.Parameter(scale[order].view(1, f, 1, 1))
        self.shift = nn.Parameter((bn["bias"] - bn["running_mean"] * scale)[order].view(1, f, 1, 1))
        planes = torch.zeros(2, TAPS, f, 3, 3, dtype=scale.dtype)  # each half's gate sees its own half only
        planes[0, :, :c] = module.conv3D.weight[0].transpose(0, 1)
        planes[1, :, c:] = module.conv3D.weight[1].transpose(0, 1)
        weight, bias = planes[:, :, order].flatten(1, 2), module.conv3D.get_parameter("bias").detach()
        self.register_buffer("first_half", (torch.arange(f) < c).to(scale.dtype).view(1, f, 1, 1))
        self.by_planes = TAPS * f * f * 9 * math.prod(size_hw) > PER_CHANNEL_MOST
        if self.by_planes:  # outputs: both halves of the newest tap, then of the older ones
            weight = weight.view(2, TAPS, f, 3, 3).flip(1).transpose(0, 1).flatten(0, 1)
            bias = torch.cat([bias, bias.new_zeros(2 * (TAPS - 1))])
        else:
            weight, bias = weight.repeat_interleave(c, 0), bias.repeat_interleave(c)
        past = ("planes", 2) if self.by_planes else ("normal", f)
        self.shapes: Shapes = {past[0]: ((TAPS - 1) * past[1], *size_hw)}
        self.shapes |= {f"gated{i}": (f, *size_hw) for i in range(1, self.back + 1)}
        self.gate_weight, self.gate_bias = nn.Parameter(weight), nn.Parameter(bias)
        self.fuse_weight: nn.Parameter | None = None
        if isinstance(module, GateShiftFuse):
            band, bias = fuse_band(module)
            self.means, self.banded = band.shape[1], f > FUSE_MATRIX_MOST
            self.shapes["means"] = ((self.means - 1) * 2 * f, 1, 1)
            if self.banded:
                self.fuse_weight = nn.Parameter(band.flatten(1, 2))
                self.register_buffer("ones", band.new_ones(f, 1, 1, 1))
            else:
                matrix = fuse_matrix(band, c)[order][..., order]
                self.fuse_weight = nn.Parameter(matrix.view(f, -1, 1, 1))
            self.fuse_bias = nn.Parameter(bias.repeat_interleave(c))

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        f = self.gated
        moving = x[:, :f]
        gate, past = self.gate(F.relu(moving * self.scale + self.shift), state[0])
        gated = gate * moving
        stayed = moving - gated
        shifted, new_state = self.shift_frames(gated, state[1:])
        new_state.insert(0, past)
        if self.fuse_weight is None:
            mixed = shifted + stayed
        else:
            mean = gated.mean((2, 3), keepdim=True)
            means = torch.cat([state[-1], mean, moving.mean((2, 3), keepdim=True) - mean], 1)
            new_state.append(means[:, 2 * f:])
            mixed = stayed + torch.sigmoid(self.fuse(means)) * (shifted - stayed)
        return torch.cat([mixed, x[:, f:]], 1) if f < x.shape[1] else mixed, new_state

    def gate(self, normal: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Gate of every channel, [B, f, H, W] or what broadcasts to it, and what later frames need of this one."""
        if not self.by_planes:
            frames = torch.cat([past, normal], 1)  # t-2, t-1, t
            gate = torch.tanh(F.conv2d(frames, self.gate_weight, self.gate_bias, padding=1))
            return gate, frames[:, self.gated:]
        sums = F.conv2d(normal, self.gate_weight, self.gate_bias, padding=1) + F.pad(past, (0, 0, 0, 0, 0, 2))
        first, second = torch.tanh(sums[:, :2]).chunk(2, dim=1)
        return second + self.first_half * (first - second), sums[:, 2:]

    def shift_frames(self, gated: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What is shifted to this frame, and what later frames need."""
        frames = [gated, *state[:self.back]]  # by how many frames back
        shifted = frames[PAST_SECOND]
        if self.back_first != PAST_SECOND:
            shifted = self.first_half * frames[self.back_first] + (1 - self.first_half) * shifted
        return shifted, frames[:-1]

    def fuse(self, means: Tensor) -> Tensor:
        """Logit of the shifted part's weight, [B, f, 1, 1], from means [B, frames x (gated f, stayed f), 1, 1]."""
        assert self.fuse_weight is not None
        if not self.banded:
            return F.conv2d(means, self.fuse_weight, self.fuse_bias)
        frames, quarter = 2 * self.means, self.gated // 4
        natural = means.reshape(-1, frames, 2, quarter, 2).permute(0, 2, 1, 4, 3)  # neighbours side by side
        logits = F.conv1d(natural.reshape(-1, 2 * frames, 2 * quarter), self.fuse_weight, padding=1, groups=2)
        logits = logits.reshape(-1, 2, 2, quarter).transpose(2, 3).reshape(-1, self.gated, 1, 1)
        # The bias by a convolution: OpenVINO then keeps the maps it multiplies in their layout, 3 % of GSF-ResNet-50.
        return F.conv2d(logits, self.ones, self.fuse_bias, groups=self.gated)


def fuse_band(module: GateShiftFuse) -> tuple[Tensor, Tensor]:
    """The fuse convolutions of both halves over means of (gated, stayed): weights [2, frames, 2, 3], bias [2].
    Frames are the oldest first, as many as one fuse weight depends on; the last axis is over neighbouring channels."""
    means = max(module.back, PAST_SECOND) + FUSE_TAPS
    convs = module.channel_conv1, module.channel_conv2
    band = convs[0].weight.new_zeros(2, means, 2, 3)
    for half, (conv, past) in enumerate(zip(convs, (module.back, PAST_SECOND), strict=True)):
        for source, back in ((0, past), (1, 0)):  # what is shifted now was gated `past` frames ago
            oldest = means - FUSE_TAPS - back
            band[half, oldest:oldest + FUSE_TAPS, source] = conv.weight[0, source].T
    return band, torch.cat([conv.bias for conv in convs if conv.bias is not None])


def fuse_matrix(band: Tensor, c: int) -> Tensor:
    """The band written out for halves of `c` channels: [2c, frames, 2, 2c]."""
    matrix = band.new_zeros(2 * c, *band.shape[1:3], 2 * c)
    for half in range(2):
        for neighbour in range(3):
            rows = torch.arange(max(0, 1 - neighbour), min(c, c + 1 - neighbour)) + half * c
            matrix[rows, :, :, rows + neighbour - 1] = band[half, :, :, neighbour]
    return matrix


class PassthroughStep(nn.Module):
    """One frame of any other temporal module, as it stands."""

    def __init__(self, module: TemporalModule, shapes: Shapes) -> None:
        super().__init__()
        self.module, self.shapes = module, shapes

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, new_state = self.module(x[:, None], tuple(state))
        return y[:, 0], list(new_state)


class ReadoutStep(nn.Module):
    """One frame of the recurrent read-out."""

    def __init__(self, memory: RecurrentReadout, linear: Linear) -> None:
        super().__init__()
        self.linear = linear
        for name, value in memory.gru.named_parameters():  # without the cell, which Inductor refuses to look into
            self.register_parameter(name, nn.Parameter(value.detach().clone()))
        self.shapes: Shapes = {"": (memory.width,)}

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        past = gru_step(self, x, state[0], self.linear)
        return past, [past]


def gru_step(gru: nn.Module, x: Tensor, past: Tensor, linear: Linear) -> Tensor:
    """One step with the parameters of a GRU, written out: TensorRT has no recurrent cell, and no other engine minds."""
    weights = {name.removesuffix("_l0"): weight for name, weight in gru.named_parameters()}
    (reset, keep, new), (reset_past, keep_past, new_past) = (
        linear(each, weights[f"weight_{of}"], weights[f"bias_{of}"]).chunk(3, 1)
        for each, of in ((x, "ih"), (past, "hh")))
    fresh = torch.tanh(new + torch.sigmoid(reset + reset_past) * new_past)
    return fresh + torch.sigmoid(keep + keep_past) * (past - fresh)


def pointwise(x_BD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as a convolution: TensorRT for RTX has no product of float32 matrices for Turing."""
    return F.conv2d(x_BD[..., None, None], weight[..., None, None], bias).flatten(1)


def head_logits(heads: nn.ModuleDict, features_BD: Tensor, linear: Linear) -> list[Tensor]:
    """Of each head, [B, K]."""
    return [linear(features_BD, head.get_parameter("weight"), head.get_parameter("bias")) for head in heads.values()]


def fold_norms(backbone: Backbone, sites: Collection[str], input_size_hw: tuple[int, int]) -> None:
    """Puts batch norms into the convolutions right before them, where no temporal module sits between: fewer operators
    to export, and fewer roundings in float16."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the output's identity
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def meet(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = layer, output  # which is held, so that no other gets its identity
        elif isinstance(layer, nn.BatchNorm2d) and (before := made.get(id(inputs[0]))):
            pairs.append((before[0], layer))

    hooks = [layer.register_forward_hook(meet) for layer in backbone.modules()]
    backbone.eval()(next(backbone.parameters()).new_zeros(1, 3, *input_size_hw),
                    lambda site, x: x.clone() if site in sites else x)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
    folded = {id(norm) for _, norm in pairs}
    for parent in list(backbone.modules()):
        for name, layer in parent.named_children():
            if id(layer) in folded:
                setattr(parent, name, nn.Identity())


def reverse_colours(backbone: nn.Module) -> None:
    """Makes a backbone take images with their channels in reverse."""
    stem = next(layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d))
    stem.weight.copy_(stem.weight.flip(1))


class StepNetwork(nn.Module):
    """`forward(image_BCHW, *state) -> (features [B, D], logits of each head [B, K]..., state...)`; pure.
    image: normalised, as `network` takes it, or with its channels in reverse when `reversed_colours`.
    Raises EngineError for a bidirectional network."""

    linear: Linear = staticmethod(F.linear)

    @torch.no_grad()
    def __init__(self, network: Network, reversed_colours: bool = False) -> None:
        super().__init__()
        if not network.causal:
            raise EngineError("a bidirectional network", "a causal one, which can run frame by frame",
                              "use a model trained with --causal, or score whole clips with engines.clip_scores")
        self.backbone = copy.deepcopy(network.backbone)
        fold_norms(self.backbone, network.temporal.keys(), network.input_size_hw)
        if reversed_colours:
            reverse_colours(self.backbone)
        self.heads = copy.deepcopy(network.heads)
        steps: dict[str, nn.Module] = {}
        for site, module in network.temporal.items():
            shapes = {leaf.name: leaf.shape for leaf in network.site_spec(site)}
            if isinstance(module, GateShift):
                steps[site] = GateShiftStep(module, shapes["taps"][-2:])  # type: ignore[arg-type]
                for rows in self.backbone.sites()[site].parameters():
                    rows[:module.channels] = rows[module.order]
            else:
                assert isinstance(module, TemporalModule)
                steps[site] = PassthroughStep(copy.deepcopy(module), shapes)
        self.temporal = nn.ModuleDict(steps)
        self.memory = ReadoutStep(network.memory, self.linear) if network.memory is not None else None
        self.eval()

    def state_shapes(self) -> Shapes:
        """Name and shape, without the camera axis, of every leaf of state, in order."""
        steps: dict[str, Any] = dict(self.temporal.items()) | ({} if self.memory is None else {"memory": self.memory})
        return {f"{site}.{leaf}".removesuffix("."): shape
                for site, step in steps.items() for leaf, shape in step.shapes.items()}

    def fresh_state(self) -> list[Tensor]:
        """State of one new camera."""
        like = next(self.parameters())
        return [like.new_zeros(1, *shape) for shape in self.state_shapes().values()]

    def forward(self, image: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        past, new_state = list(state), []

        def advance(step: Any, x: Tensor) -> Tensor:
            x, leaves = step(x, [past.pop(0) for _ in step.shapes])
            new_state.extend(leaves)
            return x

        features = self.backbone(image, lambda site, x: advance(self.temporal[site], x) if site in self.temporal else x)
        if self.memory is not None:
            features = advance(self.memory, features)
        return features, *head_logits(self.heads, features, self.linear), *new_state


class FlatStep(StepNetwork):
    """A StepNetwork whose state is one tensor [B, floats], leaf after leaf, or none: engines that pay for each tensor
    pay for one."""

    def fresh_state(self) -> list[Tensor]:
        return self._flat(super().fresh_state())

    def forward(self, image: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        shapes = self.state_shapes().values()
        rows = torch.split(state[0], [math.prod(shape) for shape in shapes], 1) if state else ()
        out = super().forward(image, *(row.reshape(-1, *shape) for row, shape in zip(rows, shapes, strict=True)))
        results = len(out) - len(rows)
        return *out[:results], *self._flat(out[results:])

    def _flat(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([leaf.flatten(1) for leaf in leaves], 1)] if leaves else []


class PixelStep(StepNetwork):
    """A StepNetwork that takes camera pixels: uint8 BGR [B, H, W, 3] at the contract's input size."""

    linear = staticmethod(pointwise)

    def __init__(self, network: Network, contract: Contract) -> None:
        super().__init__(network, reversed_colours=contract.colour == "RGB")
        self.normalise = NormalisePixels(contract)

    def forward(self, image_u8_BHWC: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return super().forward(self.normalise(image_u8_BHWC), *state)


class NormalisePixels(nn.Module):
    """uint8 BGR [N, H, W, 3] -> [N, 3, H, W] as a network takes it that may have reversed colours, in the type of the
    buffers. Cast before anything else: TensorRT can do nothing else with uint8."""

    mean: Tensor
    std: Tensor

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        for name, values in ("mean", contract.mean), ("std", contract.std):
            ordered = torch.tensor(values[::-1] if contract.colour == "RGB" else values)
            self.register_buffer(name, (ordered / contract.value_scale).view(1, 3, 1, 1))

    def forward(self, image_NHWC: Tensor) -> Tensor:
        return (image_NHWC.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean) / self.std
