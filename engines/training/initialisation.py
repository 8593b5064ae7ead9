"""What a network starts from: ImageNet's weights of its backbone, a model file, or an official checkpoint.

    config = NetworkConfig.of("gsf-resnet50", causal=True)
    network = initialise(config, "official.pth.tar", {"action": 174}, rule="dropped-one")
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from engines.errors import UsageError
from engines.model import official
from engines.model.file import build_network, load
from engines.networks.causal import USUAL, causal
from engines.networks.config import NetworkConfig
from engines.networks.network import BACKBONES, Network, build
from engines.training.pretrained import load_pretrained

CHECKPOINT_SUFFIXES = {".tar", ".pth", ".pt"}


def initialise(config: NetworkConfig, init: str, heads: Mapping[str, int], *, rule: str = USUAL, dropout: float = 0.5,
               transparent: bool = True) -> Network:
    """A network in training mode with these heads (labels per head).

    init: "imagenet", backbone weights, a model file or an official checkpoint. The two last are whole networks, which
    bring their own config: of `config` they take `segments`, and become causal by `rule` (see `engines.causal`) if it
    is. Heads are kept as `Network.set_heads` says. transparent: of backbone weights, as in `load_pretrained`.
    Raises UsageError, also for a whole network of another input size than the config asks for; ModelError.
    """
    network = _whole_network(init, config.segments)
    if network is None:
        network = build(config, heads=heads, dropout=dropout)
        load_pretrained(network, init, transparent)
        return network
    if config.input_size_hw not in (None, network.input_size_hw):
        raise UsageError("an input of {}x{} pixels (height x width) for ".format(*config.input_size_hw or ()) + init,
                         "{}x{}, which it was built for".format(*network.input_size_hw), "leave the size out")
    if network.causal and not config.causal:
        raise UsageError(f"a bidirectional network from {init}, which is causal", "a bidirectional one to start from",
                         "train it as a causal one")
    hop = network.config.hop if config.segments >= (network.config.hop or 0) else None
    network.config = network.config.replace(segments=config.segments, hop=hop)
    if config.causal and not network.causal:
        network = causal(network, rule)
    network.dropout.p = dropout
    network.set_heads(heads)
    return network.train()


def load_whole(path: str, segments: int = 8) -> Network:
    """The network of a model file or official checkpoint, whose clips have so many frames. Raises UsageError for any
    other file, ModelError."""
    network = _whole_network(path, segments)
    if network is None:
        raise UsageError(f"{path}", "a model file or an official checkpoint", "choose another file")
    return network


def whole_config(init: str) -> NetworkConfig | None:
    """The config that a whole network brings (of an official checkpoint, its architecture and input size only); None
    for weights of a backbone. Raises UsageError, ModelError."""
    path = Path(init)
    if path.suffix in CHECKPOINT_SUFFIXES:
        config = NetworkConfig.of(official.architecture_of(init, official.read(path)))
        return config.replace(input_size_hw=BACKBONES[config.backbone].input_size_hw)
    return load(path).contract.network if _is_model_file(path) else None


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
