"""The gates that people look at are those that the network goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import make_model

from engines.errors import EngineError, UsageError
from engines.model.preprocess import normalise, prepare, visible_part
from engines.networks.gsm import GateShift
from engines.runtime.gate_heatmap import GateHeatmap

IMAGES = np.random.default_rng(0).integers(0, 255, (5, 60, 80, 3), np.uint8)


@pytest.mark.parametrize("arch", ["gsm-mobilenetv2", "gsf-mobilenetv2", "gsf-resnet18"])
def test_open_gates_are_the_mean_of_all_modules(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path, arch)
    clip = np.stack([prepare(image, model.contract) for image in IMAGES])
    planes: list[Any] = []
    published = GateShift.gate

    def gate(self: GateShift, x: Any, state: Any) -> Any:
        found, kept = published(self, x, state)
        planes.append(found[0, -1, [0, -1]].abs())  # [2, H, W] of the last frame
        return found, kept

    view = GateHeatmap(model)
    shown = [view.update(image) for image in IMAGES]
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(GateShift, "gate", gate)
        model.network(torch.from_numpy(normalise(clip, model.contract))[None], model.network.fresh_state(1))
    size_hw = planes[0].shape[-2:]
    wanted = torch.stack([F.interpolate(plane[None], size_hw, mode="bilinear")[0].mean(0) for plane in planes]).mean(0)
    np.testing.assert_allclose(shown[-1], wanted.numpy(), atol=1e-4)
    assert 0 < shown[-1].mean() <= 1


@pytest.mark.parametrize(("arch", "options", "error", "says"), [
    ("tsm-mobilenetv2", {}, UsageError, "without gates"),
    ("gsm-mobilenetv2", {"causal": False}, EngineError, "causal")])
def test_what_has_no_gates_to_look_at(arch: str, options: dict[str, Any], error: type[Exception], says: str,
                                      tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        GateHeatmap(make_model(tmp_path, arch, **options))


def test_the_part_that_the_network_sees(tmp_path: Path) -> None:
    contract = make_model(tmp_path, size_hw=(40, 60)).contract.model_copy(update={"cover_hw": (80, 80)})
    assert visible_part((80, 80), contract) == (0.5, 0.75)
    assert visible_part((160, 80), contract) == (0.25, 0.75)
    assert visible_part((80, 160), contract) == (0.5, 0.375)
