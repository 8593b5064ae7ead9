"""Builds `base`, the model that lessons start from: ImageNet's MobileNetV2, with a pooled head that knows nothing yet.

    python -m engines.training.base_model WEIGHTS.safetensors engines/zoo/base.safetensors
"""

import sys
from pathlib import Path

from engines.model.contract import Contract, PoolingRule
from engines.model.file import Model, save
from engines.networks.network import build
from engines.synthetic import BACKGROUND
from engines.training.initialisation import load_pretrained
from engines.training.pooled_few_shot import forget

HEAD = "action"


def build_base(weights: Path, out: Path) -> None:
    """weights: MobileNetV2's on ImageNet, with torchvision's or timm's names. Raises UsageError, ModelError."""
    network = build("tsn-mobilenetv2", heads={HEAD: 2}, causal=True, input_size_hw=(144, 192), middle_grid=3)
    load_pretrained(network, weights)
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    contract = Contract(
        name="base", network=network.config, heads={HEAD: (BACKGROUND, "action")}, frame_rate=7.5,
        cover_hw=network.input_size_hw, receptive_frames=1, warmup_frames=3, clip_frames=3, window_clips=25,
        pooling=PoolingRule(now_clips=8, foreground_s=10.0), provenance={"weights": weights.name})
    base = forget(Model(contract, tensors, ""), HEAD, hands=0)
    save(out, base.contract, base.tensors)


if __name__ == "__main__":
    build_base(Path(sys.argv[1]), Path(sys.argv[2]))
