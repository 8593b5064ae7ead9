"""Starts a network from ImageNet weights of its backbone.

    start_from(network, "mobilenet_v2.safetensors")      # torchvision names, batch norm folded or not
    start_from(network, "resnet50.safetensors")          # torchvision names
    start_from(network, "imagenet")                      # timm's weights, from the Hugging Face hub

The temporal modules are inserted so that the ImageNet network's function is kept at the start: the interleave is
undone in the projection before it, and GSF's mean of two parts (weights 1/2) is made up for by doubling there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engines.errors import ModelError, UsageError, imports_of
from engines.networks.gsf import GateShiftFuse
from engines.networks.gsm import GateShift
from engines.networks.mobilenetv2 import MobileNetV2
from engines.networks.network import Network

HUB_MODELS = {"mobilenetv2": "timm/mobilenetv2_100.ra_in1k", "resnet18": "timm/resnet18.tv_in1k",
              "resnet50": "timm/resnet50.tv_in1k"}
EPS = 1e-5


def start_from(network: Network, weights: str | Path, transparent: bool = True) -> None:
    """Fills in the backbone and makes the temporal modules transparent, or leaves them as published: they interleave
    what the backbone's weights keep apart. Raises UsageError, ModelError."""
    backbone = network.architecture.partition("-")[2]
    path = _from_hub(backbone) if str(weights) == "imagenet" else Path(weights)
    if not path.is_file():
        raise UsageError(f"initial weights {weights}", "a safetensors file, or `imagenet`", "check the path")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} ({error})", f"a safetensors file of {backbone} weights", "get it again") from error
    state = folded(tensors) if isinstance(network.backbone, MobileNetV2) else tensors
    wanted = {name: value for name, value in network.backbone.state_dict().items()
              if not name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]
    if missing:
        raise ModelError(f"{path} without {', '.join(missing[:3])} of the right shape",
                         f"{backbone} weights with torchvision or timm names", "choose another file")
    network.backbone.load_state_dict({name: state[name].float() for name in wanted}, strict=False)
    if transparent:
        make_transparent(network)


def make_transparent(network: Network) -> None:
    """Sets the modules so that the network computes what its backbone alone computes."""
    sites = network.backbone.sites()
    for site, module in network.temporal.items():
        if not isinstance(module, GateShift):
            continue
        projection = sites[site]
        nn.init.zeros_(module.conv3D.weight)
        nn.init.zeros_(module.bias)
        scale = 1.0
        if isinstance(module, GateShiftFuse):
            scale = 2.0
            for conv in (module.channel_conv1, module.channel_conv2):
                nn.init.zeros_(conv.weight)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        # The module puts channel order[k] at place k: store each original channel k where it will be taken from.
        with torch.no_grad():
            for parameter in (projection.weight, projection.bias):
                if parameter is None:
                    continue
                original = parameter[:module.channels].clone()
                parameter[module.order] = scale * original


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileNetV2 weights under torchvision's folded names; batch norms are folded into convolutions if present."""
    named = {_torchvision_name(name): value for name, value in tensors.items()}
    state: dict[str, Tensor] = {}
    for name, value in named.items():
        if not name.endswith(".weight") or value.ndim != 4:
            continue
        conv = name.removesuffix(".weight")
        norm = _norm_of(conv)
        if f"{norm}.running_var" in named:
            scale = named[f"{norm}.weight"] / (named[f"{norm}.running_var"] + EPS).sqrt()
            state[name] = value * scale[:, None, None, None]
            state[f"{conv}.bias"] = named[f"{norm}.bias"] - named[f"{norm}.running_mean"] * scale
        else:
            state[name] = value
            if f"{conv}.bias" in named:
                state[f"{conv}.bias"] = named[f"{conv}.bias"]
    return state


def _norm_of(conv: str) -> str:
    """torchvision puts a convolution's norm right after it: `a.0` -> `a.1`, the projection `conv.2` -> `conv.3`."""
    head, _, index = conv.rpartition(".")
    return f"{head}.{int(index) + 1}"


# timm: blocks.STAGE.INDEX.{conv_pw bn1, conv_dw bn2, conv_pwl bn3}; in the first block {conv_dw bn1, conv_pw bn2}.
_TIMM_STARTS = (1, 2, 4, 7, 11, 14, 17)
_TIMM_LAYERS = {"conv_pw": "conv.0.0", "bn1": "conv.0.1", "conv_dw": "conv.1.0", "bn2": "conv.1.1",
                "conv_pwl": "conv.2", "bn3": "conv.3"}
_TIMM_FIRST = {"conv_dw": "conv.0.0", "bn1": "conv.0.1", "conv_pw": "conv.1", "bn2": "conv.2"}
_TIMM_ENDS = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.18.0", "bn2": "features.18.1"}


def _torchvision_name(name: str) -> str:
    block = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name)
    if block:
        stage, index, layer, leaf = int(block[1]), int(block[2]), block[3], block[4]
        layers = _TIMM_FIRST if stage == 0 else _TIMM_LAYERS
        return f"features.{_TIMM_STARTS[stage] + index}.{layers.get(layer, layer)}.{leaf}"
    layer, _, leaf = name.rpartition(".")
    return f"{_TIMM_ENDS.get(layer, layer)}.{leaf}"


def _from_hub(backbone: str) -> Path:
    if backbone not in HUB_MODELS:
        raise UsageError(f"--init imagenet for {backbone}", f"one of {', '.join(HUB_MODELS)}",
                         "give a weights file with --init FILE")
    with imports_of("hub", "huggingface_hub", "--init imagenet", "give a weights file with --init FILE"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    try:
        return Path(hf_hub_download(HUB_MODELS[backbone], "model.safetensors"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"no answer from the hub for {HUB_MODELS[backbone]} ({type(error).__name__})",
                         "an internet connection", "give a weights file with --init FILE instead") from error
