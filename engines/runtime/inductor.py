"""The Inductor engine: the lowered step compiled by torch itself, in CUDA graphs where there is a GPU. Needs torch.
Compiling takes tens of seconds at each start; torch keeps a cache of its own. Cameras run together on a GPU, one at a
time on the CPU, where batches gain nothing; see slot_pool.py."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, cast

from engines.errors import engine_error
from engines.model.file import Model
from engines.runtime.backend import NO_GPU, Backend, has_gpu
from engines.runtime.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from engines.runtime.slot_pool import Step

_NUMBERS = itertools.count()


def best_device() -> str:
    """cuda, or cpu where torch can use no GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compile_step(model: Model, slots: int, precision: str, device: str | None = None,
                 sizes: Sequence[int] | None = None) -> Engine:
    """The engine of a causal model, by default on the best device and with the batch sizes that suit it."""
    import torch
    import torch._inductor.config

    from engines.runtime.lowering import PixelStep
    from engines.runtime.slot_pool import DTYPES, CompiledPool, batch_sizes

    device, contract = device or best_device(), model.contract
    step = PixelStep(model.network, contract).to(device, DTYPES[precision])
    steps = dict.fromkeys(sizes or (batch_sizes(slots) if device == "cuda" else [1]), compile_alone(step))
    # Freezing makes weights part of the code; as an option of `compile` it would not reach the tracer.
    with (engine_error(f"torch failing to compile {contract.architecture}",
                       "a network, a compiler and a device that go together",
                       "use --engine openvino or --engine eager"),
          warnings.catch_warnings(), torch._inductor.config.patch(freezing=device == "cpu")):
        warnings.simplefilter("ignore")  # the compiler uses what its own torch calls deprecated
        return CompiledPool("inductor", contract, slots, precision, steps, step.fresh_state(), device)


def compile_alone(step: nn.Module) -> Step:
    """A step compiled once for a batch of one and once for all others. torch keeps what it compiled with a function's
    code, looks through all of it at each call and refuses more than eight: so each step has code of its own."""
    import torch

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        return cast("Sequence[Tensor]", step(*inputs))

    run.__code__ = run.__code__.replace(co_name=f"step_{next(_NUMBERS)}")
    compiled = torch.compile(run, fullgraph=True)

    def run_batch(*inputs: Tensor) -> Sequence[Tensor]:
        for each in inputs if len(inputs[0]) > 1 else ():
            torch._dynamo.mark_dynamic(each, 0)
        return compiled(*inputs)

    return run_batch


def unavailable_reason() -> str | None:
    """Asked for by name, it runs without a GPU too."""
    return None if has_gpu() else f"{NO_GPU}, without which OpenVINO is several times faster"


BACKEND = Backend(
    "inductor", "Inductor", unavailable_reason=unavailable_reason,
    precisions=lambda: ("f16", "f32") if best_device() == "cuda" else ("f32",),
    open=lambda spec, precision, *_: compile_step(spec.model, spec.slots, precision))
