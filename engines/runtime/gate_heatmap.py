"""Where the gates of a network let features through, as a picture for people.
Legend: H W the size of the finest gated map."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.model.file import Model, build_network
from engines.model.preprocess import prepare
from engines.networks.gsm import GateShift
from engines.runtime.eager import EagerEngine


class GateHeatmap:
    """Runs a causal model beside the engine, on one camera, and averages its gates (GSM, section 3: a gate in [-1, 1]
    for each place and half of the channels; what it lets through moves along time, the rest stays).
    Raises UsageError for a network without gates, EngineError for one that is not causal."""

    def __init__(self, model: Model) -> None:
        network = build_network(model)
        gated = [module for module in network.modules() if isinstance(module, GateShift)]
        if not gated:
            raise UsageError(f"{model.contract.name}, a network without gates", "one of GSM or GSF",
                             "choose another model")
        self._engine = EagerEngine(network, model.contract, 1)
        self._open: list[torch.Tensor] = []
        for module in gated:
            vars(module)["gate"] = self._recording(module.gate)

    def update(self, image_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The next image of the camera, at the model's rate; [H, W] in [0, 1]: how open the gates are at each place of
        what the model sees of it, the mean of all modules."""
        self._open = []
        self._engine.step(prepare(image_bgr, self._engine.contract)[None], [0])
        size_hw = max((tuple(plane.shape[-2:]) for plane in self._open), key=lambda hw: hw[0] * hw[1])
        scaled = [F.interpolate(plane[None], size_hw, mode="bilinear", align_corners=False) for plane in self._open]
        return np.asarray(torch.stack(scaled).mean(dim=(0, 1, 2)).numpy(), dtype=np.float32)

    def _recording(self, gate: Callable[..., Any]) -> Callable[..., Any]:
        def record(x_BTCHW: torch.Tensor, state: Any) -> Any:
            found, new_state = gate(x_BTCHW, state)
            self._open.append(found[0, 0, [0, -1]].abs().mean(dim=0, keepdim=True))  # of a plane for each half
            return found, new_state
        return record
