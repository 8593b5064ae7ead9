"""How `base` is made: its motion branch learns, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import make_base
from torch import nn

from engines.datasets import open_dataset
from engines.model.file import build_network, load
from engines.networks.mobilenetv2 import MobileNetV2, MotionBranch
from engines.networks.network import build
from engines.training.base_model import MotionRecipe, _add_norms, _fold_norms, build_base
from stream.commands.cli import main
from stream.sinks.video import write_video


@pytest.fixture(scope="module")
def gestures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square that moves to the left, or to the right."""
    root = tmp_path_factory.mktemp("gestures")
    for label, way in (("left", -1), ("right", 1)):
        (root / label).mkdir()
        for i in range(2):
            pictures = [np.full((72, 96, 3), 40 * i, np.uint8) for _ in range(12)]
            for t, image in enumerate(pictures):
                x = 40 + way * 3 * t
                image[20:40, x:x + 16] = 200
            write_video(root / label / f"{i}.mp4", ((t / 10, image) for t, image in enumerate(pictures)))
    return root


def test_the_branch_learns_and_all_else_is_as_in_the_weights(gestures: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = {name: value.half() for name, value in MobileNetV2().state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    recipe, said = MotionRecipe(clips=4, frames=4, steps=3, batch=2), list[str]()
    files = [tmp_path / "once.safetensors", tmp_path / "again.safetensors"]
    for file in files:
        build_base(tmp_path / "weights.safetensors", open_dataset(gestures), file, recipe, said.append)
    assert files[0].read_bytes() == files[1].read_bytes()
    base = load(files[0])
    for name, value in weights.items():
        np.testing.assert_array_equal(base.tensors[f"backbone.{name}"], value.numpy())
    assert base.contract.pooling is not None
    assert base.contract.provenance["motion"]["steps"] == 3
    network = build_network(base)
    shown = torch.rand(1, 3, 3, *base.contract.input_size_hw)
    with torch.no_grad():
        features, _ = network(shown, network.fresh_state(1))
    assert features.shape[-1] == 1280 + network.config.motion_features + network.config.middle_features
    assert features.isfinite().all()
    assert "hands draw left, right" in said[0]


def test_batch_norms_are_folded_into_the_same_function() -> None:
    torch.manual_seed(0)
    branch, maps = MotionBranch(96), torch.rand(6, 96, 9, 12)
    names = list(branch.state_dict())
    _add_norms(branch)
    optimiser = torch.optim.AdamW(branch.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        branch(maps, lambda _, x: x).square().mean().backward()
        optimiser.step()
    assert any(isinstance(module, nn.BatchNorm2d) for module in branch.modules())
    wanted = branch.eval()(maps, lambda _, x: x)
    _fold_norms(branch)
    torch.testing.assert_close(branch(maps, lambda _, x: x), wanted, rtol=1e-4, atol=1e-4)
    assert list(branch.state_dict()) == names


@pytest.mark.parametrize("options", [{}, {"middle_grid": 2}, {"motion": True}, {"middle_grid": 2, "motion": True}])
def test_a_backbone_that_is_cut_gives_the_same_features(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build("gsf-mobilenetv2", heads={"a": 2}, causal=True, input_size_hw=(48, 64), **options).eval()
    backbone, image = network.backbone, torch.rand(2, 3, 48, 64)
    hook, _ = network.mixing(1, 2, iter(network.fresh_state(1)))
    with torch.no_grad():
        wanted = backbone(image, hook)
        for cut in (1, backbone.middle_steps - 1, backbone.cuttable):
            hook, _ = network.mixing(1, 2, iter(network.fresh_state(1)))
            below = backbone(image, hook, slice(cut))
            torch.testing.assert_close(backbone(below, hook, slice(cut, None)), wanted)


def test_training_goes_on_from_base(gestures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = make_base(tmp_path / "base.safetensors")
    assert main(["train", str(gestures), "--init", str(start), "--iterations", "2", "--workers", "0", "--no-rendered",
                 "--out", str(tmp_path / "trained.safetensors")]) == 0, capsys.readouterr().err
    trained = load(tmp_path / "trained.safetensors")
    assert trained.contract.heads == {"action": ("left", "right")}
    assert (trained.contract.network.motion, trained.contract.pooling) == (True, None)
