"""The TensorRT engine: the lowered step built ahead of time by torch-tensorrt for just this GPU, and cached.
torch-tensorrt is there with TensorRT (the extra `tensorrt`) or with TensorRT for RTX (`tensorrt-rtx`, for RTX cards).
Building takes minutes, once. `torch.export` of the step with its state in and out is built for each batch size (see
slot_pool.py), with fixed shapes, since each CUDA graph needs an engine of its own; as a whole or not at all. Types are
explicit: the step itself is cast to the precision. TensorRT takes no uint8 beyond its rim, so pixels are cast in torch,
inside the same CUDA graph, and everything after in the engine.

A built program is unpickled when it is loaded, so it could carry code: it is read from the user's own cache only, and
not at all where other users could have written it.
Written by torch-tensorrt's source, documentation and issues (2.11 to 2.14). Its compiler builds all networks without a
GPU (tests/test_tensorrt_build.py); what it built has not run on one yet.
Legend: B a batch size, T frames, H W the input size."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np

from engines.errors import EngineError, UsageError, engine_error
from engines.runtime import cache, nvidia
from engines.runtime.backend import BY_PARITY, NO_GPU, Backend, Broken, Facts, Frames, Spec, has_gpu
from engines.runtime.parity import probe_clip

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engines.model.contract import Contract
    from engines.runtime.slot_pool import CompiledPool, Step

DEVICE = "cuda"
LIBRARIES = {"torch-tensorrt": "tensorrt", "torch-tensorrt-rtx": "tensorrt_rtx"}  # its modules are torch_tensorrt both


def program(batch: int) -> str:
    """The file of the step for a batch."""
    return f"step-{batch}.pt2"


def unavailable_reason() -> str | None:
    """What this machine lacks for it, or what is wrong with what it has."""
    lacking = [] if find_spec("torch_tensorrt") else [f"neither {' nor '.join(LIBRARIES)}"]
    if lacking or not has_gpu():
        return ", ".join(lacking if has_gpu() else [*lacking, NO_GPU])
    try:
        load_library()
    except EngineError as error:
        return Broken(error.got)
    return None


def key(spec: Spec) -> dict[str, str]:
    """What programs depend on besides the model: the GPU, versions, the batches, and what int8 is calibrated with."""
    from engines.runtime.slot_pool import batch_sizes

    _check_calibration(spec)
    gpu, driver = _gpu()
    found = {"device": gpu, "driver": driver, "library": versions(),
             "batches": " ".join(map(str, batch_sizes(spec.slots)))}
    if spec.precision == "int8":
        found["calibration"] = ("probe clip" if spec.calibration_u8 is None else
                                hashlib.sha256(np.ascontiguousarray(spec.calibration_u8).tobytes()).hexdigest())
    return found


def build(spec: Spec, precision: str, folder: Path) -> Facts:
    """Writes the programs; returns their batches, and the shapes of the state without the camera axis."""
    import torch

    from engines.runtime.lowering import PixelStep
    from engines.runtime.slot_pool import DTYPES, batch_sizes

    _refuse_shared(folder)
    library, contract = load_library(), spec.model.contract
    step = PixelStep(spec.model.network, contract).to(DEVICE, DTYPES[precision])
    leaves = [leaf.to(DEVICE) for leaf in step.fresh_state()]
    image = torch.zeros(1, *contract.input_size_hw, 3, dtype=DTYPES[precision], device=DEVICE)
    exporting: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    refused = engine_error(  # the errors of torch-tensorrt and of modelopt have no base of their own
        f"TensorRT failing to build {contract.architecture} in {precision}", "a network and versions that it can build",
        "use --engine inductor", Exception)
    with refused, torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # torch, torch-tensorrt and modelopt use what they call deprecated
        if precision == "int8":
            frames = probe_clip(contract) if spec.calibration_u8 is None else spec.calibration_u8
            exporting = _quantise(step, frames, leaves, 1 + len(contract.heads))
        for batch in batch_sizes(spec.slots):
            inputs = tuple(one.expand(batch, *one.shape[1:]).contiguous() for one in (image, *leaves))
            with exporting():
                exported = torch.export.export(step, inputs, strict=False)
                built = library.dynamo.compile(
                    exported, arg_inputs=inputs, use_explicit_typing=True, require_full_compilation=True,
                    min_block_size=1, timing_cache_path=os.path.join(scratch, "timing.cache"))  # else a shared folder
            _refuse_torch_parts(built, contract)
            library.save(built, os.fspath(folder / program(batch)), arg_inputs=inputs)
    return {"batches": batch_sizes(spec.slots), "state_shapes": [list(leaf.shape[1:]) for leaf in leaves]}


def open_engine(spec: Spec, precision: str, folder: Path, facts: Facts) -> CompiledPool:
    """Opens what `build` wrote into a folder that nobody else can have written to."""
    import torch

    from engines.runtime.slot_pool import DTYPES, CompiledPool

    _refuse_shared(folder)
    library, dtype = load_library(), DTYPES[precision]
    refused = engine_error("TensorRT refusing a built engine", "one that it can load and run",
                           f"delete {folder}, or use --engine inductor", Exception)  # as above

    def open_step(batch: int) -> Step:
        opened = library.load(os.fspath(folder / program(batch))).module()
        return lambda image_u8_BHWC, *state: cast("Sequence[Tensor]", opened(image_u8_BHWC.to(dtype), *state))

    with refused, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = {batch: open_step(batch) for batch in facts["batches"]}
        leaves = [torch.zeros(1, *shape, dtype=dtype) for shape in facts["state_shapes"]]
        return CompiledPool("tensorrt", spec.model.contract, spec.slots, precision, steps, leaves, DEVICE)


def load_library() -> ModuleType:
    """The module torch_tensorrt. Raises EngineError where it or TensorRT is missing, half there, or of another CUDA or
    torch."""
    import torch

    distribution = _distribution()
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    refused = engine_error(f"{distribution} that cannot be loaded",
                           f"one for torch {torch.__version__} with {cuda}, and its libraries",
                           f"pip install --force-reinstall 'gatestream[{distribution.removeprefix('torch-')}]', or use "
                           "--engine inductor", Exception)
    with refused, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it fails in many ways, aloud
        warnings.simplefilter("ignore")
        import torch_tensorrt

        importlib.import_module(LIBRARIES[distribution])
    return cast("ModuleType", torch_tensorrt)


def versions() -> str:
    """Which library is installed, and the versions of all that shape a program. Raises as `load_library`."""
    import torch

    library, distribution = load_library(), _distribution()
    name = LIBRARIES[distribution]
    return (f"{distribution} {library.__version__}, {name} {importlib.import_module(name).__version__}, "
            f"torch {torch.__version__}")


def _distribution() -> str:
    """Which package the module torch_tensorrt is of: where both are installed, it takes itself for the RTX one."""
    with contextlib.suppress(PackageNotFoundError):
        version("torch-tensorrt-rtx")
        return "torch-tensorrt-rtx"
    return "torch-tensorrt"


def _gpu() -> tuple[str, str]:
    """Name of the GPU that torch uses, and version of its driver."""
    import torch

    remedy = ("an NVIDIA GPU with its driver", "install the driver, or use --engine openvino")
    with engine_error("no answer from the GPU", *remedy, (RuntimeError, AssertionError)):
        name = torch.cuda.get_device_name()
    driver = nvidia.driver_version()
    if driver is None:
        raise EngineError("no answer from the GPU's driver", *remedy)
    return name, driver


def _quantise(step: nn.Module, frames_u8_THWC: Frames, leaves: Sequence[Tensor],
              results: int) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Puts rounding to 8 bits, with ranges seen while `frames` run by, around the step's convolutions and products.
    Returns what makes the context to export it in."""
    import torch

    from engines.runtime.slot_pool import DTYPES

    with engine_error("no usable nvidia-modelopt, which calibrates int8", "the nvidia-modelopt package",
                      "pip install 'gatestream[int8]', or use f16", Exception):  # as torch-tensorrt's
        import modelopt.torch.quantization as quantization
        from modelopt.torch.quantization.utils import export_torch_mode

    def calibrate(watched: nn.Module) -> None:
        state = list(leaves)
        for frame in torch.from_numpy(np.ascontiguousarray(frames_u8_THWC)):
            state = watched(frame[None].to(DEVICE, DTYPES["int8"]), *state)[results:]

    quantization.quantize(step, quantization.INT8_DEFAULT_CFG, forward_loop=calibrate)
    return cast("Callable[[], contextlib.AbstractContextManager[object]]", export_torch_mode)


def _refuse_torch_parts(built: nn.Module, contract: Contract) -> None:
    """torch-tensorrt names what runs in TensorRT `_run_on_acc...`, and what it left to torch `_run_on_gpu...`."""
    parts = [name for name, _ in built.named_children()]
    left = [name for name in parts if "_run_on_gpu" in name]
    if left or not any("_run_on_acc" in name for name in parts):
        raise EngineError(f"TensorRT taking only a part of {contract.architecture} (left: {', '.join(left) or 'all'})",
                          "all of it", "use --engine inductor, and report this with the output of `gatestream doctor`")


def _check_calibration(spec: Spec) -> None:
    contract, frames_u8 = spec.model.contract, spec.calibration_u8
    if frames_u8 is None:
        return
    if spec.precision != "int8":
        raise UsageError(f"calibration frames for precision {spec.precision or BY_PARITY}", "precision int8 with them",
                         "leave the frames out, or ask for int8")
    if frames_u8.dtype != np.uint8 or len(frames_u8) < 1 or frames_u8.shape[1:] != (*contract.input_size_hw, 3):
        raise UsageError(f"calibration frames of shape {frames_u8.shape} and type {frames_u8.dtype}",
                         "uint8 (T, {}, {}, 3)".format(*contract.input_size_hw),
                         "prepare images with engines.model.preprocess.prepare")


def _refuse_shared(folder: Path) -> None:
    """A built program is unpickled: whoever can write it can run code as this user."""
    if not hasattr(os, "getuid"):
        return
    for path in [folder, *([folder.parent] if folder.parent in cache.cache_dirs() else [])]:
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise EngineError(f"engine cache {path}, which other users can write", "a folder that is this user's alone",
                              f"chmod go-w {path}, or set GATESTREAM_CACHE to another folder")


BACKEND = Backend(
    "tensorrt", "TensorRT", precisions=lambda: ("f16", "f32"), on_request=("int8",),  # which depends on its calibration
    key=key, build=build, open=open_engine, unavailable_reason=unavailable_reason,
    remedy=("torch-tensorrt, and an NVIDIA GPU with its driver that torch can use",
            "pip install 'gatestream[tensorrt]' on such a machine (pip install 'gatestream[tensorrt-rtx]' for an RTX "
            "card), or use --engine auto"))
