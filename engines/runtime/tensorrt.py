"""The TensorRT engine: the lowered step built ahead of time by torch-tensorrt for just this GPU, and kept in the cache.
Building takes minutes, once. `torch.export` of the step with its state in and out, at the constant batch, is built as a
whole or not at all. Types are explicit: the step itself is cast to the precision. TensorRT takes no uint8 beyond its
rim, so pixels are cast in torch, inside the same CUDA graph (see slot_pool.py), and everything after in the engine.

A built program is unpickled when it is loaded, so it could carry code: it is read from the user's own cache only, and
not at all where other users could have written it.
Written by torch-tensorrt's source, documentation and issues (2.11 to 2.13), and not run on a GPU yet.
Legend: B the constant batch, T frames, H W the input size."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np

from engines.errors import EngineError, UsageError, engine_error
from engines.runtime import cache
from engines.runtime.backend import BY_PARITY, NO_GPU, Backend, Facts, Frames, Spec, has_gpu
from engines.runtime.parity import probe_clip

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engines.model.contract import Contract
    from engines.runtime.slot_pool import CompiledPool

DEVICE = "cuda"
PROGRAM = "step.pt2"


def unavailable_reason() -> str | None:
    """What this machine lacks for it."""
    lacking = [f"no {package}" for package in ("torch_tensorrt", "tensorrt") if find_spec(package) is None]
    return ", ".join(lacking if has_gpu() else [*lacking, NO_GPU]) or None


def key(spec: Spec) -> dict[str, str]:
    """What a program depends on besides its model: the GPU, versions, the batch, and what int8 is calibrated with."""
    import torch

    _check_calibration(spec)
    library = _library()
    import tensorrt

    gpu, driver = _gpu()
    versions = f"TensorRT {tensorrt.__version__}, torch-tensorrt {library.__version__}, torch {torch.__version__}"
    found = {"device": gpu, "driver": driver, "library": versions, "batch": str(spec.slots)}
    if spec.precision == "int8":
        found["calibration"] = ("probe clip" if spec.calibration_u8 is None else
                                hashlib.sha256(np.ascontiguousarray(spec.calibration_u8).tobytes()).hexdigest())
    return found


def build(spec: Spec, precision: str, folder: Path) -> Facts:
    """Writes the program, and returns the shapes of its state without the camera axis."""
    import torch

    from engines.runtime.lowering import PixelStep
    from engines.runtime.slot_pool import DTYPES

    _refuse_shared(folder)
    library, contract = _library(), spec.model.contract
    step = PixelStep(spec.model.network, contract).to(DEVICE, DTYPES[precision])
    leaves = [leaf.to(DEVICE) for leaf in step.fresh_state()]
    image = torch.zeros(1, *contract.input_size_hw, 3, dtype=DTYPES[precision], device=DEVICE)
    inputs = tuple(one.expand(spec.slots, *one.shape[1:]).contiguous() for one in (image, *leaves))
    exporting: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    refused = engine_error(  # the errors of torch-tensorrt and of modelopt have no base of their own
        f"TensorRT failing to build {contract.architecture} in {precision}", "a network and versions that it can build",
        "use --engine inductor", Exception)
    with refused, torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # torch, torch-tensorrt and modelopt use what they call deprecated
        if precision == "int8":
            frames = probe_clip(contract) if spec.calibration_u8 is None else spec.calibration_u8
            exporting = _quantise(step, frames, leaves, 1 + len(contract.heads))
        with exporting:
            program = torch.export.export(step, inputs, strict=False)
            built = library.dynamo.compile(
                program, arg_inputs=inputs, use_explicit_typing=True, require_full_compilation=True,
                min_block_size=1, timing_cache_path=os.path.join(scratch, "timing.cache"))  # else a shared folder
        _refuse_torch_parts(built, contract)
        library.save(built, os.fspath(folder / PROGRAM), arg_inputs=inputs)
    return {"state_shapes": [list(leaf.shape[1:]) for leaf in leaves]}


def open_engine(spec: Spec, precision: str, folder: Path, facts: Facts) -> CompiledPool:
    """Opens what `build` wrote into a folder that nobody else can have written to."""
    import torch

    from engines.runtime.slot_pool import DTYPES, CompiledPool

    _refuse_shared(folder)
    library, dtype = _library(), DTYPES[precision]
    refused = engine_error("TensorRT refusing a built engine", "one that it can load and run",
                           f"delete {folder}, or use --engine inductor", Exception)  # as above
    with refused, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = library.load(os.fspath(folder / PROGRAM)).module()

        def step(image_u8_BHWC: Tensor, *state: Tensor) -> Sequence[Tensor]:
            return cast("Sequence[Tensor]", program(image_u8_BHWC.to(dtype), *state))

        leaves = [torch.zeros(1, *shape, dtype=dtype) for shape in facts["state_shapes"]]
        slots = spec.slots
        return CompiledPool("tensorrt", spec.model.contract, slots, precision, step, leaves, DEVICE, batch=slots)


def _library() -> ModuleType:
    import torch

    refused = engine_error("a torch-tensorrt that cannot be loaded",
                           f"torch-tensorrt for torch {torch.__version__}, with TensorRT's libraries",
                           "pip install --upgrade 'gatestream[tensorrt]', or use --engine inductor", Exception)
    with refused, warnings.catch_warnings():  # its libraries fail in many ways
        warnings.simplefilter("ignore")
        import torch_tensorrt
    return cast("ModuleType", torch_tensorrt)


def _gpu() -> tuple[str, str]:
    """Name of the GPU that torch uses, and version of its driver."""
    import torch

    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with engine_error("no answer from the GPU", "an NVIDIA GPU with its driver",
                      "install the driver (nvidia-smi must work), or use --engine openvino",
                      (OSError, subprocess.SubprocessError, IndexError, RuntimeError, AssertionError)):
        answer = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=30).stdout
        return torch.cuda.get_device_name(), answer.split()[0]


def _quantise(step: nn.Module, frames_u8_THWC: Frames, leaves: Sequence[Tensor],
              results: int) -> contextlib.AbstractContextManager[object]:
    """Puts rounding to 8 bits, with ranges seen while `frames` run by, around the step's convolutions and products.
    Returns the context to export it in."""
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
    return cast("contextlib.AbstractContextManager[object]", export_torch_mode())


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
            "pip install 'gatestream[tensorrt]' on a machine with such a GPU, or use --engine auto"))
