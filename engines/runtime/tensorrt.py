"""The TensorRT engine: the lowered step built ahead of time by torch-tensorrt for just this GPU, and kept in the cache.

    engine = open_engine(model, slots=8)       # built once (minutes), then loaded without the builder; see compiled.py

Building: `torch.export` of the step with its state in and out, at the constant batch; torch-tensorrt makes one engine
of all of it or fails, never a part of it. Types are explicit: the step itself is cast to the precision. TensorRT takes
no uint8 beyond its rim, so pixels are cast in torch, inside the same CUDA graph, and everything after in the engine.

A built program is unpickled when it is loaded, so it could carry code. It is read from the user's own cache and from
nowhere else, after its checksums were compared, and not at all where other users could have written it.

Written by torch-tensorrt's source, documentation and issues (2.11 to 2.13), and not run on a GPU yet.

Legend: B the constant batch, T frames, H W the input size.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.errors import EngineError, UsageError, raise_interrupt
from engines.model.contract import Contract
from engines.networks.network import Network
from engines.runtime import cache
from engines.runtime.lowering import PixelStep
from engines.runtime.parity import probe_clip
from engines.runtime.slot_pool import CompiledPool, Step, fastest_that_agrees, first_line

if TYPE_CHECKING:
    from engines.model.file import Model

log = logging.getLogger("gatestream.engines")

CODE_VERSION = "2"  # raise when lowering or building change: entries of other versions are then not found
PRECISIONS = {"int8": torch.float16, "f16": torch.float16, "f32": torch.float32}  # and the type of state and pixels
CHOSEN = ("f16", "f32")  # fastest first; int8 is for those who ask for it, because it depends on its calibration
DEVICE = "cuda"
PROGRAM = "step.pt2"
Frames = NDArray[np.uint8]


class TensorRTEngine(CompiledPool):
    """A built program with the state of its cameras. state_shapes: of each leaf, without the camera axis."""

    name = "tensorrt"

    def __init__(self, contract: Contract, slots: int, precision: str, program: Step,
                 state_shapes: Sequence[Sequence[int]]) -> None:
        dtype = PRECISIONS[precision]

        def step(image_u8_BHWC: Tensor, *state: Tensor) -> Sequence[Tensor]:
            return program(image_u8_BHWC.to(dtype), *state)

        super().__init__(contract, slots, precision, step,
                         [torch.zeros(1, *shape, dtype=dtype) for shape in state_shapes], DEVICE, slots)


def open_engine(model: Model, slots: int = 1, precision: str | None = None,
                calibration_u8: Frames | None = None) -> TensorRTEngine:
    """The TensorRT engine of a model: from the cache, or built.

    precision: f16, f32, int8, or None for the fastest of f16 and f32 whose calibrated scores agree with eager's on the
    probe clip; calibration_u8: frames for int8, BGR [T, H, W, 3] in order from one camera, as
    `engines.model.preprocess.prepare` gives them; the probe clip if None. Raises UsageError for frames that do not
    fit, EngineError when the engine cannot be built or loaded, or does not agree.
    """
    if precision not in (None, *PRECISIONS):
        raise EngineError(f"precision {precision!r} for TensorRT", f"one of {', '.join(PRECISIONS)}",
                          "leave it out to have it chosen")
    _check_calibration(model.contract, precision, calibration_u8)
    key = key_of(model, slots, precision, calibration_u8)
    _refuse_shared(cache.cache_dir())

    def build_here(folder: Path) -> cache.Facts:
        log.warning("building the TensorRT engine of %s for this GPU, once; this takes minutes", model.contract.name)
        began = time.perf_counter()
        facts = build_into(folder, model, slots, precision, calibration_u8)
        log.warning("built in %.1f s: %s", time.perf_counter() - began, facts["precision"])
        return facts

    entry = cache.get_or_build(key, build_here)
    _refuse_shared(entry.folder)
    return load(entry.folder, model.contract, slots, str(entry.facts["precision"]), entry.facts["state_shapes"])


def key_of(model: Model, slots: int, precision: str | None, calibration_u8: Frames | None = None) -> dict[str, str]:
    """Everything a built engine of this model depends on."""
    library = _library()
    import tensorrt

    gpu, driver = _gpu()
    key = {"model": model.digest, "engine": "tensorrt", "code": CODE_VERSION, "device": gpu, "driver": driver,
           "library": f"TensorRT {tensorrt.__version__}, torch-tensorrt {library.__version__}, "
                      f"torch {torch.__version__}",
           "batch": str(slots), "precision": precision or "by agreement"}
    if precision == "int8":
        key["calibration"] = ("probe clip" if calibration_u8 is None else
                              hashlib.sha256(np.ascontiguousarray(calibration_u8).tobytes()).hexdigest())
    return key


def build_into(folder: Path, model: Model, slots: int, precision: str | None,
               calibration_u8: Frames | None = None) -> cache.Facts:
    """Writes the program and returns {precision, agreement, state_shapes}. What is measured is what was written."""
    engine, agreement = fastest_that_agrees(
        model, [precision] if precision else CHOSEN,
        lambda name: build(folder, model.network, model.contract, slots, name, calibration_u8))
    facts = {"precision": engine.precision, "agreement": agreement,
             "state_shapes": [list(leaf.shape[1:]) for leaf in engine.state]}
    engine.close()
    return facts


def build(folder: Path, network: Network, contract: Contract, slots: int, precision: str,
          calibration_u8: Frames | None = None) -> TensorRTEngine:
    """Builds the program of a network into `folder`, and opens it from there. Raises EngineError."""
    library = _library()
    step: nn.Module = PixelStep(network, contract).to(DEVICE, PRECISIONS[precision])
    leaves = [leaf.to(DEVICE) for leaf in step.network.fresh_state()]  # type: ignore[union-attr, operator]
    image = torch.zeros(1, *contract.input_size_hw, 3, dtype=PRECISIONS[precision], device=DEVICE)
    inputs = tuple(one.expand(slots, *one.shape[1:]).contiguous() for one in (image, *leaves))
    exporting: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    try:
        with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
            warnings.simplefilter("ignore")  # torch, torch-tensorrt and modelopt use what they call deprecated
            if precision == "int8":
                frames = probe_clip(contract) if calibration_u8 is None else calibration_u8
                exporting = _quantise(step, frames, leaves, 1 + len(contract.heads))
            with exporting:
                program = torch.export.export(step, inputs, strict=False)
                built = library.dynamo.compile(
                    program, arg_inputs=inputs, use_explicit_typing=True, require_full_compilation=True,
                    min_block_size=1, timing_cache_path=os.path.join(scratch, "timing.cache"))  # else a shared folder
            _refuse_torch_parts(built, contract)
            library.save(built, os.fspath(folder / PROGRAM), arg_inputs=inputs)
    except EngineError:
        raise
    except Exception as error:  # the errors of torch-tensorrt and of modelopt have no base of their own
        raise EngineError(f"TensorRT failing to build {contract.architecture} in {precision} ({first_line(error)})",
                          "a network and versions that it can build", "use --engine inductor") from error
    return load(folder, contract, slots, precision, [leaf.shape[1:] for leaf in leaves])


def load(folder: Path, contract: Contract, slots: int, precision: str,
         state_shapes: Sequence[Sequence[int]]) -> TensorRTEngine:
    """Opens what `build` wrote into a folder that nobody else can have written to. Raises EngineError."""
    library = _library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = library.load(os.fspath(folder / PROGRAM)).module()
            return TensorRTEngine(contract, slots, precision, program, state_shapes)
    except Exception as error:  # as above
        raise EngineError(f"TensorRT refusing a built engine ({first_line(error)})", "one that it can load and run",
                          f"delete {folder}, or use --engine inductor") from error


def _library() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_tensorrt
    except Exception as error:  # its libraries fail in many ways
        raise_interrupt(error)
        raise EngineError(f"a torch-tensorrt that cannot be loaded ({first_line(error)})",
                          f"torch-tensorrt for torch {torch.__version__}, with TensorRT's libraries",
                          "pip install --upgrade 'gatestream[tensorrt]', or use --engine inductor") from error
    found: ModuleType = torch_tensorrt
    return found


def _gpu() -> tuple[str, str]:
    """Name of the GPU that torch uses, and version of its driver."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=30).stdout
        return torch.cuda.get_device_name(), answer.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError, RuntimeError, AssertionError) as error:
        raise EngineError(f"no answer from the GPU ({first_line(error)})", "an NVIDIA GPU with its driver",
                          "install the driver (nvidia-smi must work), or use --engine openvino") from error


def _quantise(step: nn.Module, frames_u8_THWC: Frames, leaves: Sequence[Tensor],
              results: int) -> contextlib.AbstractContextManager[object]:
    """Puts rounding to 8 bits, with ranges seen while `frames` run by, around the step's convolutions and products.

    Returns the context to export it in.
    """
    try:
        import modelopt.torch.quantization as quantization
        from modelopt.torch.quantization.utils import export_torch_mode
    except Exception as error:  # as torch-tensorrt's
        raise_interrupt(error)
        raise EngineError(f"no usable nvidia-modelopt ({first_line(error)}), which calibrates int8",
                          "the nvidia-modelopt package", "pip install 'gatestream[int8]', or use f16") from error

    def watch(watched: nn.Module) -> None:
        state = list(leaves)
        for frame in torch.from_numpy(np.ascontiguousarray(frames_u8_THWC)):
            state = watched(frame[None].to(DEVICE, PRECISIONS["int8"]), *state)[results:]

    quantization.quantize(step, quantization.INT8_DEFAULT_CFG, forward_loop=watch)
    context: contextlib.AbstractContextManager[object] = export_torch_mode()
    return context


def _refuse_torch_parts(built: nn.Module, contract: Contract) -> None:
    """torch-tensorrt names what runs in TensorRT `_run_on_acc...`, and what it left to torch `_run_on_gpu...`."""
    parts = [name for name, _ in built.named_children()]
    left = [name for name in parts if "_run_on_gpu" in name]
    if left or not any("_run_on_acc" in name for name in parts):
        raise EngineError(f"TensorRT taking only a part of {contract.architecture} (left: {', '.join(left) or 'all'})",
                          "all of it", "use --engine inductor, and report this with the output of `gatestream doctor`")


def _check_calibration(contract: Contract, precision: str | None, frames_u8: Frames | None) -> None:
    if frames_u8 is None:
        return
    if precision != "int8":
        raise UsageError(f"calibration frames for precision {precision or 'by agreement'}", "precision int8 with them",
                         "leave the frames out, or ask for int8")
    if frames_u8.dtype != np.uint8 or len(frames_u8) < 1 or frames_u8.shape[1:] != (*contract.input_size_hw, 3):
        raise UsageError(f"calibration frames of shape {frames_u8.shape} and type {frames_u8.dtype}",
                         "uint8 (T, {}, {}, 3)".format(*contract.input_size_hw),
                         "prepare images with engines.model.preprocess.prepare")


def _refuse_shared(folder: Path) -> None:
    """A built program is unpickled: whoever can write it can run code as this user."""
    if not folder.exists() or not hasattr(os, "getuid"):
        return
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise EngineError(f"engine cache {folder}, which other users can write", "a folder that is this user's alone",
                          f"chmod go-w {folder}, or set GATESTREAM_CACHE to another folder")
