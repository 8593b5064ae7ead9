"""Builds `base`, the model that lessons start from: ImageNet's MobileNetV2, with pooled heads that know nothing yet.

    python -m engines.zoo.build_base WEIGHTS.safetensors engines/zoo/base.safetensors
"""

import sys
from pathlib import Path

import numpy as np

from engines.model import pooling
from engines.model.contract import Contract, PoolingRule
from engines.model.file import save
from engines.networks.network import build
from engines.training.initialisation import load_pretrained

LABELS = ("background", "action")  # of a head that has not been taught


def build_base(weights: Path, out: Path) -> None:
    """weights: MobileNetV2's on ImageNet, with torchvision's or timm's names. Raises UsageError, ModelError."""
    network = build("tsn-mobilenetv2", heads={"action": len(LABELS)}, causal=True, input_size_hw=(144, 192),
                    middle_grid=3)
    load_pretrained(network, weights)
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    zeros = pooling.tensor_shapes("action", len(LABELS), network.width) | {
        f"heads.action.{part}": tensors[f"heads.action.{part}"].shape for part in ("weight", "bias")}
    tensors |= {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
    save(out, Contract(
        name="base", network=network.config, heads={"action": LABELS}, background=LABELS[0], frame_rate=7.5,
        cover_hw=network.input_size_hw, receptive_frames=1, warmup_frames=3, clip_frames=2, window_clips=38,
        pooling=PoolingRule(now_clips=8), provenance={"weights": weights.name}), tensors)


if __name__ == "__main__":
    build_base(Path(sys.argv[1]), Path(sys.argv[2]))
