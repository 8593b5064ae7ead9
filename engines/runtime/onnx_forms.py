"""What ONNX files hold: a causal model's step, a bidirectional model's clip, a window's clip fusion. Sizes are fixed.
f16 is by explicit types, as strongly typed compilers want it: weights and whatever is computed are float16, inputs and
outputs stay uint8 and float32, so that no caller sees a difference.
Legend: B batch, T frames of a clip, C clips of a window, N clips or windows of the probe clip, H W the contract's input
size, D features, K labels of a head."""

import copy
import logging
import warnings
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engines.errors import EngineError, UsageError, engine_error
from engines.model.contract import Contract
from engines.model.file import Model
from engines.model.preprocess import normalise
from engines.networks.clip_fusion import GatedClipFusion
from engines.networks.config import PREFIX
from engines.networks.network import Network
from engines.runtime.engine import StepResult
from engines.runtime.lowering import (
    NormalisePixels,
    PixelStep,
    fold_norms,
    gru_step,
    head_logits,
    pointwise,
    reverse_colours,
)
from engines.runtime.parity import probe_clip

DTYPES = {"f32": torch.float32, "f16": torch.float16}


class Form(NamedTuple):
    """A module with examples of its inputs, each [B, ...], and the names of what goes in and comes out."""

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]


def step_form(model: Model, batch: int) -> Form:
    """`image` and `state.<name>.in` -> `features`, `scores.<head>`, `state.<name>.out`."""
    step = PixelStep(model.network, model.contract)
    image_u8 = torch.zeros(1, *model.contract.input_size_hw, 3, dtype=torch.uint8)
    names = list(step.state_shapes())
    return Form(step, tuple(_batched(one, batch) for one in (image_u8, *step.fresh_state())),
                ["image", *(f"state.{name}.in" for name in names)],
                [*_results(model), *(f"state.{name}.out" for name in names)])


def clip_form(model: Model, batch: int) -> Form:
    """`frames` [B, T, H, W, 3] -> `features`, `scores.<head>`."""
    frames_u8 = torch.zeros(batch, model.network.segments, *model.contract.input_size_hw, 3, dtype=torch.uint8)
    return Form(PixelClip(model.network, model.contract), (frames_u8,), ["frames"], _results(model))


def fusion_form(model: Model, batch: int) -> Form:
    """`clips` [B, C, D], oldest first, and `counts` [B, C] of their frames -> `features`, `scores.<head>`, `gates`.
    Raises UsageError for a model without a clip fusion."""
    clips = model.contract.window_clips
    return Form(WindowFusion(model), (torch.zeros(batch, clips, model.network.width), torch.ones(batch, clips)),
                ["clips", "counts"], [*_results(model), "gates"])


class PixelClip(nn.Module):
    """Whole clips of a bidirectional network: `forward(frames_u8_BTHWC) -> (features [B, D], logits of each head
    [B, K]...)`, means over the clip, of camera pixels as PixelStep's."""

    @torch.no_grad()
    def __init__(self, network: Network, contract: Contract) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        fold_norms(self.network.backbone, network.temporal.keys(), network.input_size_hw)
        if contract.colour == "RGB":
            reverse_colours(self.network.backbone)
        self.normalise = NormalisePixels(contract)
        self.eval()

    def forward(self, frames_u8_BTHWC: Tensor) -> tuple[Tensor, ...]:
        frames_NCHW = self.normalise(frames_u8_BTHWC.to(self.normalise.mean.dtype).flatten(0, 1))
        frames_BTCHW = frames_NCHW.reshape(*frames_u8_BTHWC.shape[:2], *frames_NCHW.shape[1:])
        features_BD = self.network(frames_BTCHW, ())[0].mean(1)
        return features_BD, *head_logits(self.network.heads, features_BD, pointwise)


class WindowFusion(nn.Module):
    """`forward(clips_BCD, counts_BC) -> (features [B, D], logits of each head [B, K]..., gates [B, C])`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if model.contract.fusion is None:
            raise UsageError(f"the clip fusion of {model.contract.name}, which has none", "a model with a clip fusion",
                             "leave --fusion out, or train one: gatestream train DATASET --stage fusion")
        self.fusion, self.heads = GatedClipFusion(model.network.width, model.contract.fusion), model.network.heads
        self.fusion.load_state_dict({name.removeprefix(PREFIX): torch.from_numpy(np.array(value))
                                     for name, value in model.tensors.items() if name.startswith(PREFIX)})
        for parent in list(self.fusion.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, nn.Linear | nn.GRUCell):
                    setattr(parent, name, Pointwise(layer) if isinstance(layer, nn.Linear) else PointwiseCell(layer))
        self.eval()

    def forward(self, clips_BCD: Tensor, counts_BC: Tensor) -> tuple[Tensor, ...]:
        features_BD, gates_BC = self.fusion(clips_BCD, counts_BC)
        return features_BD, *head_logits(self.heads, features_BD, pointwise), gates_BC


class Pointwise(nn.Module):
    """A linear layer on [..., inputs], by `pointwise`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x.flatten(0, -2), self.weight, self.bias).reshape(*x.shape[:-1], -1)


class PointwiseCell(nn.Module):
    """A recurrent cell, by `pointwise`."""

    def __init__(self, cell: nn.GRUCell) -> None:
        super().__init__()
        self.cell, self.hidden_size = cell, cell.hidden_size

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return gru_step(self.cell, x, past, pointwise)


class Typed(nn.Module):
    """A module whose floats are of another type inside."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        typed = (one.to(self.dtype) if one.is_floating_point() else one for one in inputs)
        return tuple(out.float() for out in self.module(*typed))


def convert(form: Form, precision: str, architecture: str) -> Any:
    """The form as an ONNX program of torch. Raises EngineError."""
    logger = logging.getLogger("torch.onnx")
    refused = engine_error(f"no ONNX form of {architecture}", "a network that can be converted",
                           "use --engine openvino")
    with refused, torch.no_grad(), warnings.catch_warnings(), ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)  # it warns of optional packages that nothing here needs
        warnings.simplefilter("ignore")  # the exporter uses what its own torch calls deprecated
        return torch.onnx.export(Typed(form.module, DTYPES[precision]), form.example, dynamo=True, verbose=False,
                                 input_names=form.inputs, output_names=form.outputs)


@torch.no_grad()
def probe(model: Model, fusion: bool) -> tuple[dict[str, np.ndarray], StepResult]:
    """Inputs of N clips, or of N windows, made of the probe clip, and what the network gives for them: [N, D], [N, K].
    Raises EngineError for a model with clips longer than the probe clip."""
    contract, network = model.contract, model.network
    T = contract.clip_frames if network.causal else network.segments
    frames_u8 = probe_clip(contract)
    whole = len(frames_u8) // T
    if not whole:
        raise EngineError(f"clips of {T} frames", f"{len(frames_u8)} at most", "use --engine eager")
    frames_u8_NTHWC = frames_u8[:whole * T].reshape(whole, T, *frames_u8.shape[1:])
    clips_ND = torch.cat([network(torch.from_numpy(normalise(clip, contract))[None], network.fresh_state(1))[0].mean(1)
                          for clip in frames_u8_NTHWC])
    inputs = {"frames": frames_u8_NTHWC}
    if fusion:
        C = contract.window_clips
        padded = torch.cat([clips_ND.new_zeros(C - 1, clips_ND.shape[1]), clips_ND])
        windows_NCD = torch.stack([padded[k:k + C] for k in range(whole)])
        counts_NC = torch.tensor([[T if k + c >= C - 1 else 0 for c in range(C)] for k in range(whole)]).float()
        clips_ND = WindowFusion(model)(windows_NCD, counts_NC)[0]
        inputs = {"clips": windows_NCD.numpy(), "counts": counts_NC.numpy()}
    scores = {head: logits.numpy() for head, logits in network.scores(clips_ND).items()}
    return inputs, StepResult(clips_ND.numpy(), scores)


def _results(model: Model) -> list[str]:
    return ["features", *(f"scores.{head}" for head in model.contract.heads)]


def _batched(one: Tensor, batch: int) -> Tensor:
    return one.expand(batch, *one.shape[1:]).contiguous()
