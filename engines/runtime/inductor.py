"""The Inductor engine: the lowered step compiled by torch itself, in CUDA graphs where there is a GPU. Needs torch.

    engine = open_engine(model, slots=8)                 # compiles for tens of seconds; torch keeps its own cache of it

All cameras run at once on a GPU, one camera at a time on the CPU, where batches gain nothing; see compiled.py.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
import torch._inductor.config

from engines.errors import EngineError
from engines.model.contract import Contract
from engines.networks.network import Network
from engines.runtime.lowering import PixelStep
from engines.runtime.slot_pool import CompiledPool, fastest_that_agrees, first_line

if TYPE_CHECKING:
    from engines.model.file import Model

PRECISIONS = {"cpu": {"f32": torch.float32}, "cuda": {"f16": torch.float16, "f32": torch.float32}}  # fastest first


class InductorEngine(CompiledPool):
    """See the file's top. precision: one of PRECISIONS[device]; None: the best device, the batch that suits it."""

    name = "inductor"

    def __init__(self, network: Network, contract: Contract, slots: int, precision: str,
                 device: str | None = None, batch: int | None = None) -> None:
        device = device or best_device()
        step = PixelStep(network, contract).to(device, PRECISIONS[device][precision])
        compiled = torch.compile(step, fullgraph=True, dynamic=False)
        try:
            # Freezing makes weights part of the code; as an option of `compile` it would not reach the tracer.
            with warnings.catch_warnings(), torch._inductor.config.patch(freezing=device == "cpu"):
                warnings.simplefilter("ignore")  # the compiler uses what its own torch calls deprecated
                super().__init__(contract, slots, precision, compiled, step.network.fresh_state(), device,
                                 batch or (slots if device == "cuda" else 1))
        except RuntimeError as error:
            raise EngineError(f"torch failing to compile {contract.architecture} ({first_line(error)})",
                              "a network, a compiler and a device that go together",
                              "use --engine openvino or --engine eager") from error


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_engine(model: Model, slots: int = 1, precision: str | None = None) -> InductorEngine:
    """Compiles a model's step for the GPU, or for the CPU where there is none.

    precision: f32, f16 (GPU), or None for the fastest whose calibrated scores agree with eager's on the probe clip.
    Raises EngineError when it cannot be compiled or does not agree.
    """
    device = best_device()
    able = PRECISIONS[device]
    if precision not in (None, *able):
        raise EngineError(f"precision {precision!r} for Inductor on {device}", f"one of {', '.join(able)}",
                          "leave it out to have it chosen")
    engine, _ = fastest_that_agrees(model, [precision] if precision else able, lambda name: InductorEngine(
        model.network, model.contract, slots, name, device))
    return engine
