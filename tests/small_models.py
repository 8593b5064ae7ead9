"""Small models that tests build engines of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save as serialise
from torch import nn

import engines
from engines.model.contract import Contract, PoolingRule
from engines.model.file import Model, save
from engines.training.pooled_few_shot import forget

SIZE_HW = (40, 56)
LABELS = ("none", "left", "right", "up")


def lively(network: nn.Module) -> None:
    """Fills a network with weights that keep signals alive, so that every temporal module matters."""
    gates = set(network.temporal.modules())  # type: ignore[operator, union-attr]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.weight.shape[1:] != (2, 3, 3):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.Conv3d):
                module.weight.normal_(0, 0.1)
                nn.init.normal_(module.bias, 0, 0.3)  # type: ignore[arg-type]
            if isinstance(module, nn.BatchNorm2d) and module in gates:
                module.weight.uniform_(-0.5, 1.5)
                module.bias.normal_(0, 0.5)
                module.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        for head in network.heads.values():  # type: ignore[operator, union-attr]
            head.weight.mul_(20)


def write_unchecked(path: Path, contract: Contract, tensors: dict[str, Any]) -> None:
    """A model file of whatever this is, as `save` would not write it."""
    path.write_bytes(serialise(tensors, metadata={"contract": contract.model_dump_json()}))


def make_model(folder: Path, architecture: str = "gsf-mobilenetv2", seed: int = 0, colour: str = "RGB",
               causal: bool = True, size_hw: tuple[int, int] = SIZE_HW, **options: Any) -> Model:
    torch.manual_seed(seed)
    network = engines.build(architecture, heads={"gesture": len(LABELS), "hand": 2}, input_size_hw=size_hw,
                            causal=causal, **options)
    lively(network)
    contract = Contract(
        name="test", network=network.config, colour="BGR" if colour == "BGR" else "RGB",
        frame_rate=15, heads={"gesture": LABELS, "hand": ("left", "right")}, temperature={"gesture": 2.0},
        cover_hw=(size_hw[0] + 8, size_hw[1] + 8), receptive_frames=9, warmup_frames=4,
        clip_frames=8, window_clips=3)
    path = folder / f"{architecture}-{seed}.safetensors"
    save(path, contract, {name: tensor.numpy() for name, tensor in network.state_dict().items()}, half=False)
    return engines.load(path)


def make_base(path: Path, hands: int = 0) -> Path:
    """A small base: random weights, whose features differ from picture to picture all the same. hands: the features of
    hands that it looks at."""
    torch.manual_seed(0)
    network = engines.build("gsf-mobilenetv2", heads={"action": 2}, causal=True, input_size_hw=(48, 64), middle_grid=2,
                            motion=True)
    blank = Contract(name="base", heads={"action": ("background", "action")}, background="background", frame_rate=8.0,
                     pooling=PoolingRule(foreground_s=2.0), network=network.config, cover_hw=(48, 64), warmup_frames=0,
                     receptive_frames=8, clip_frames=3, window_clips=4, max_gap_s=1.0)
    made = forget(Model(blank, {name: value.numpy() for name, value in network.state_dict().items()}, ""), "action",
                  hands)
    save(path, made.contract, made.tensors)
    return path
