"""What a network starts from: ImageNet's weights of its backbone, a model file, or an official checkpoint.

    network = started("gsf-resnet50", {"action": 174}, "official.pth.tar", causal=True, rule="dropped-one", segments=8)
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engines.errors import ModelError, UsageError
from engines.model import official
from engines.model.file import build_network, load
from engines.model.import_official import PREPROCESSING
from engines.networks.causal import causal as made_causal
from engines.networks.gsf import GateShiftFuse, gated_channels
from engines.networks.network import Network, RecurrentReadout, build
from engines.networks.temporal import TemporalModule
from engines.training.pretrained import start_from

CHECKPOINT_SUFFIXES = {".tar", ".pth", ".pt"}
RULE = "dropped-one"
LEAK, SQUASHED = 0.8, 0.2  # of a memory that is added: what a frame leaves of it; the logits' scale within tanh


def started(architecture: str, heads: Mapping[str, int], init: str, *, causal: bool, segments: int = 8,
            rule: str = RULE, input_size_hw: tuple[int, int] | None = None, readout_width: int = 0,
            dropout: float = 0.5, past_shift: int | None = None, transparent: bool = True) -> Network:
    """A network in training mode with these heads (labels per head).

    init: "imagenet", backbone weights, a model file or an official checkpoint. The two last are whole networks, which
    bring their own architecture, input size and memory; a bidirectional one becomes causal by `rule` (see
    `engines.causal`). Their heads are kept where labels agree in number: one head only, or heads of the same names.
    With weights of a backbone, past_shift is as in `engines.build`, transparent as in `start_from`.
    Raises UsageError, ModelError.
    """
    network = _whole_network(init, segments)
    if network is None:
        network = build(architecture, heads=heads, causal=causal, segments=segments, input_size_hw=input_size_hw,
                        readout_width=readout_width, dropout=dropout, past_shift=past_shift)
        start_from(network, init, transparent)
        return network
    if network.causal and not causal:
        raise UsageError(f"a bidirectional network from {init}, which is causal", "a bidirectional one to start from",
                         "train it as a causal one")
    if causal and not network.causal:
        network = made_causal(network, rule)
    network.dropout.p = dropout
    _replace_heads(network, heads)
    return network.train()


def whole_network(path: str, segments: int = 8) -> Network:
    """The network of a model file or official checkpoint. Raises UsageError for any other file, ModelError."""
    network = _whole_network(path, segments)
    if network is None:
        raise UsageError(f"{path}", "a model file or an official checkpoint", "choose another file")
    return network


def add_readout(network: Network, width: int) -> None:
    """Gives a causal network that has learnt without memory a new one, and new heads that read it.

    The memory begins as a running mean of the old heads' answers, which is far nearer to where it will end than chance:
    a unit for each label forgets at LEAK a frame and takes in the label's logit, squashed; the others begin at random.
    With fewer units than labels, all do.
    """
    old = {name: head for name, head in network.heads.items() if isinstance(head, nn.Linear)}
    network.memory, network.width = RecurrentReadout(network.backbone.width, width), width
    _replace_heads(network, {name: head.out_features for name, head in old.items()})
    if sum(head.out_features for head in old.values()) > width:
        return
    gru, first = dict(network.memory.gru.named_parameters()), 0
    with torch.no_grad():
        for name, head in old.items():
            units = torch.arange(first, first + head.out_features)
            forget, take_in = width + units, 2 * width + units  # the rows of torch's GRU: reset, update, new
            for parameter in gru.values():
                parameter[torch.cat([forget, take_in])] = 0
            gru["bias_ih_l0"][forget] = math.log(LEAK / (1 - LEAK))
            gru["weight_ih_l0"][take_in] = SQUASHED * head.weight
            gru["bias_ih_l0"][take_in] = SQUASHED * head.bias
            network.heads[name].get_parameter("weight")[:, units] = torch.eye(len(units)) / SQUASHED
            first += head.out_features


def architecture_of_start(init: str) -> str | None:
    """The architecture that a whole network brings, None for weights of a backbone. Raises UsageError, ModelError."""
    path = Path(init)
    if path.suffix in CHECKPOINT_SUFFIXES:
        return official.architecture_of(init, official.read(path))
    return load(path).contract.architecture if _is_model_file(path) else None


def _whole_network(init: str, segments: int) -> Network | None:
    path = Path(init)
    if path.suffix in CHECKPOINT_SUFFIXES:
        weights = official.read(path)
        return official.load(weights, official.architecture_of(init, weights), segments)
    return build_network(load(path)) if _is_model_file(path) else None


def _is_model_file(path: Path) -> bool:
    """Whether a file is safetensors with a contract."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        return "contract" in header.get("__metadata__", {})
    except (OSError, struct.error, ValueError, AttributeError):
        return False


def _replace_heads(network: Network, heads: Mapping[str, int]) -> None:
    """Gives a network other heads; one head is kept under any name if it has as many labels."""
    old = dict(network.heads.items())
    if len(old) == len(heads) == 1:
        old = dict(zip(heads, old.values(), strict=True))
    made = nn.ModuleDict()
    for name, labels in heads.items():
        head = old.get(name)
        if not isinstance(head, nn.Linear) or (head.in_features, head.out_features) != (network.width, labels):
            head = nn.Linear(network.width, labels)
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        made[name] = head
    network.heads = made


def pixels_of(architecture: str) -> dict[str, Any]:
    """The contract's colour order, value scale, mean and std for the ImageNet weights of a backbone."""
    published = PREPROCESSING.get(architecture.partition("-")[2], {})
    return {name: value for name, value in published.items() if name != "cover_hw"}


def options_of(network: Network) -> dict[str, Any]:
    """The arguments of `engines.build` that make such a network again."""
    channels = {site: conv.out_channels for site, conv in network.backbone.sites().items()}
    gated = [(module.channels, channels[site]) for site, module in network.temporal.items()
             if isinstance(module, GateShiftFuse)]
    usual = network.backbone.default_gate_ratio(network.causal)
    as_usual = all(gated_channels(all_, usual) == f for f, all_ in gated)
    gate_ratio = usual if as_usual else official.share_gated(gated)
    if gate_ratio is None:
        raise ModelError(f"a {network.architecture} that gates another share at each site", "one share",
                         "start from another file")
    width = network.memory.width if network.memory else 0
    options = {"causal": network.causal, "readout_width": width, "sites": list(network.temporal),
               "gate_ratio": gate_ratio}
    shifts = {module.past_shift for module in network.temporal.values() if isinstance(module, TemporalModule)} - {None}
    if shifts:
        (options["past_shift"],) = shifts
    return options if network.causal else {**options, "segments": network.segments}
