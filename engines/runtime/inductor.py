"""The Inductor engine: the lowered step compiled by torch itself, in CUDA graphs where there is a GPU. Needs torch.
Compiling takes tens of seconds at each start; torch keeps a cache of its own. All cameras run at once on a GPU, one
camera at a time on the CPU, where batches gain nothing; see slot_pool.py."""

import warnings

from engines.errors import engine_error
from engines.model.file import Model
from engines.runtime.backend import NO_GPU, Backend, has_gpu
from engines.runtime.engine import Engine


def best_device() -> str:
    """cuda, or cpu where torch can use no GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compile_step(model: Model, slots: int, precision: str, device: str | None = None,
                 batch: int | None = None) -> Engine:
    """The engine of a causal model, by default on the best device and with the batch that suits it."""
    import torch
    import torch._inductor.config

    from engines.runtime.lowering import PixelStep
    from engines.runtime.slot_pool import DTYPES, CompiledPool

    device, contract = device or best_device(), model.contract
    step = PixelStep(model.network, contract).to(device, DTYPES[precision])
    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    # Freezing makes weights part of the code; as an option of `compile` it would not reach the tracer.
    with (engine_error(f"torch failing to compile {contract.architecture}",
                       "a network, a compiler and a device that go together",
                       "use --engine openvino or --engine eager"),
          warnings.catch_warnings(), torch._inductor.config.patch(freezing=device == "cpu")):
        warnings.simplefilter("ignore")  # the compiler uses what its own torch calls deprecated
        return CompiledPool("inductor", contract, slots, precision, compiled, step.fresh_state(), device,
                            batch or (slots if device == "cuda" else 1))


def unavailable_reason() -> str | None:
    """Asked for by name, it runs without a GPU too."""
    return None if has_gpu() else f"{NO_GPU}, without which OpenVINO is several times faster"


BACKEND = Backend(
    "inductor", "Inductor", unavailable_reason=unavailable_reason,
    precisions=lambda: ("f16", "f32") if best_device() == "cuda" else ("f32",),
    open=lambda spec, precision, *_: compile_step(spec.model, spec.slots, precision))
