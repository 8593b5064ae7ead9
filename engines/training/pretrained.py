"""ImageNet weights for a network's backbone, from a file or from the Hugging Face hub.

    load_pretrained(network, "mobilenet_v2.safetensors")   # torchvision's or timm's names
    load_pretrained(network, "imagenet")                   # timm's weights, from the hub

How the names of a file become ours is the backbone's own business (`Backbone.imagenet_state`).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from engines.errors import ModelError, UsageError, imports_of
from engines.networks.network import BACKBONES, Network


def load_pretrained(network: Network, weights: str | Path, transparent: bool = True) -> None:
    """Fills in the backbone. transparent: the temporal modules then change nothing at first; otherwise they begin as
    published, and interleave what the backbone's weights keep apart. Raises UsageError, ModelError."""
    backbone, name = network.backbone, network.config.backbone
    path = _download(name, backbone.hub_model) if str(weights) == "imagenet" else Path(weights)
    if not path.is_file():
        raise UsageError(f"initial weights {weights}", "a safetensors file, or `imagenet`", "check the path")
    try:
        state = backbone.imagenet_state(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} ({error})", f"a safetensors file of {name} weights", "get it again") from error
    wanted = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
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
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    try:
        return Path(hf_hub_download(model, "model.safetensors"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"no answer from the hub for {model} ({type(error).__name__})", "an internet connection",
                         "give a weights file with --init FILE instead") from error
