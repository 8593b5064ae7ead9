"""What a network starts from: ImageNet's weights of its backbone, a model file, or an official checkpoint.

    config = NetworkConfig.of("gsf-resnet50", causal=True)
    network = initialise(config, "official.pth.tar", {"action": 174}, rule="dropped-one")
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from engines.errors import ModelError, UsageError, imports_of
from engines.model import official
from engines.model.file import CHECKPOINT_SUFFIXES, build_network, bundled, load
from engines.networks.causal import DEFAULT_RULE, causal
from engines.networks.config import NetworkConfig
from engines.networks.network import BACKBONES, Network, build


def initialise(config: NetworkConfig, init: str, heads: Mapping[str, int], *, rule: str = DEFAULT_RULE,
               dropout: float = 0.5, transparent: bool = True) -> Network:
    """A network in training mode with these heads (labels per head).
    init: "imagenet", backbone weights, a bundled model's name, a model file or an official checkpoint. The three last
    are whole networks, which bring their own config and heads (see `set_heads`): of `config` they take `segments`, and
    become causal by `rule` if it is. transparent: see `load_pretrained`. Raises ModelError; UsageError, also for a
    start of another input size."""
    network = load_whole(init, config.segments)
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


def load_whole(init: str, segments: int = 8) -> Network | None:
    """The network of a bundled model, model file or official checkpoint; None of any other file. segments: frames of
    the checkpoint's clips. Raises UsageError, ModelError."""
    path = bundled().get(init, Path(init))
    if path.suffix in CHECKPOINT_SUFFIXES:
        return official.load(path, segments=segments)
    try:
        with safe_open(path, "np") as file:
            with_contract = "contract" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return None
    return build_network(load(path)) if with_contract else None


def whole_config(init: str) -> NetworkConfig | None:
    """The config that a whole network brings, with its input size; None for weights of a backbone. Raises UsageError,
    ModelError."""
    network = load_whole(init)
    return None if network is None else network.config.replace(input_size_hw=network.input_size_hw)


def load_pretrained(network: Network, weights: str | Path, transparent: bool = True) -> None:
    """Fills in the backbone. transparent: the temporal modules then change nothing at first; otherwise they begin as
    published, and interleave what the backbone's weights keep apart. Raises UsageError, ModelError."""
    backbone, name = network.backbone, network.config.backbone
    path = _download(name, backbone.hub_model) if str(weights) == "imagenet" else Path(weights)
    if not path.is_file():
        raise UsageError(f"initial weights {weights}", "a safetensors file, a bundled model's name, or `imagenet`",
                         "check the path")
    try:
        state = backbone.imagenet_state(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} ({error})", f"a safetensors file of {name} weights", "get it again") from error
    wanted = {key: value for key, value in backbone.state_dict().items()
              if not key.startswith("motion.") and not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if missing:
        raise ModelError(f"{path} without {', '.join(missing[:3])} of the right shape",
                         f"{name} weights with torchvision or timm names", "choose another file")
    backbone.load_state_dict({key: state[key].float() for key in wanted}, strict=False)
    if transparent:
        network.make_transparent()


def _download(backbone: str, model: str | None) -> Path:
    if model is None:
        known = ", ".join(name for name, kind in BACKBONES.items() if kind.hub_model)
        raise UsageError(f"--init imagenet for {backbone}", f"one of {known}", "give a weights file with --init FILE")
    with imports_of("hub", "huggingface_hub", "--init imagenet", "give a weights file with --init FILE"):
        import huggingface_hub as hub
        from httpx import HTTPError
    what = model, "model.safetensors"
    if isinstance(kept := hub.try_to_load_from_cache(*what), str):
        return Path(kept)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(*what), timeout=10)  # asks once: a download tries again for 25 s
        return Path(hub.hf_hub_download(*what))
    except (HTTPError, OSError) as error:
        raise ModelError(f"no answer from the hub for {model} ({type(error).__name__})", "an internet connection",
                         "give a weights file with --init FILE instead") from error
