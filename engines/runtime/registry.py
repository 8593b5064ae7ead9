"""From a model to a running engine, by name."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, UsageError, imports_of, raise_interrupt
from engines.runtime.engine import Engine

if TYPE_CHECKING:
    from engines.model.file import Model

log = logging.getLogger("gatestream.engines")

NO_GPU = "no NVIDIA GPU that torch can use"
ENGINES = ("tensorrt", "inductor", "openvino", "eager")  # in the order in which `auto` tries them


def compile(model: Model, engine: str | os.PathLike[str] = "auto", slots: int = 1, precision: str | None = None,
            hop: int | None = None, calibration_u8: NDArray[np.uint8] | None = None) -> Engine:
    """Builds an engine, or takes it from the cache.

    engine: auto (the first of ENGINES that works here, see `unavailable_reason`), one of these, or a file of `export`;
    slots: cameras at a time, at most; precision: f32, bf16, f16, int8 as the engine has it, or None to have it chosen
    by measured agreement with eager; hop: frames from one clip's scores to the next, None for the model's own, of a
    bidirectional model, which runs in the eager engine only (see `windowed.py`); calibration_u8: frames for
    TensorRT in int8 (see `engines.runtime.tensorrt`).
    Raises UsageError for an unknown name, an impossible hop or frames that nothing needs, EngineError when the engine
    cannot be built or does not agree with eager.
    """
    if slots < 1:
        raise UsageError(f"{slots} slots", "1 or more", "give one slot per camera")
    name = os.fspath(engine)
    if not bidirectional(model) and hop is not None:
        raise UsageError(f"a hop of {hop} frames for {model.contract.name}, which is causal",
                         "a bidirectional model with it", "leave the hop out: causal models score every frame")
    if calibration_u8 is not None and name != "tensorrt":
        raise UsageError(f"calibration frames for engine {name!r}", "engine tensorrt in int8 with them",
                         "leave the frames out, or ask for that engine")
    if name == "eager" or (name == "auto" and bidirectional(model)):
        return _eager(model, slots, precision, hop)
    if name == "auto":
        return _best(model, slots, precision)
    if name == "tensorrt":
        return _tensorrt(model, slots, precision, calibration_u8)
    if name == "inductor":
        return _inductor(model, slots, precision)
    if name == "openvino":
        return _openvino(model, slots, precision)
    if Path(name).is_file() and Path(name).suffix == ".onnx":
        _refuse_bidirectional(model)
        if precision not in (None, "f32"):
            raise EngineError(f"precision {precision!r} for an ONNX file", "f32", "leave the precision out")
        opened: Engine = onnx_module().open_engine(model, Path(name), slots)
        return opened
    if Path(name).is_file():
        return _openvino(model, slots, precision, Path(name))
    raise UsageError(f"engine {name!r}", f"auto, {', '.join(ENGINES)}, or a file written by `gatestream export`",
                     "choose one of these")


def unavailable_reason(name: str) -> str | None:
    """Why `auto` passes over an engine on this machine, as far as can be told without building it; None if it tries."""
    if name == "tensorrt":
        missing = [f"no {package}" for package in ("torch_tensorrt", "tensorrt") if find_spec(package) is None]
        return ", ".join(missing + ([] if _has_gpu() else [NO_GPU])) or None
    if name == "inductor" and not _has_gpu():
        return f"{NO_GPU}, without which OpenVINO is several times faster"
    if name == "openvino" and find_spec("openvino") is None:
        return "no openvino"
    return None


def _best(model: Model, slots: int, precision: str | None) -> Engine:
    for name, open_one in (("tensorrt", _tensorrt), ("inductor", _inductor), ("openvino", _openvino)):
        reason = unavailable_reason(name)
        if reason is not None:
            log.debug("not on %s: %s", name, reason)
            continue
        try:
            return open_one(model, slots, precision)
        except EngineError as error:
            log.warning("no %s engine (%s): trying the next best", name, error)
    log.warning("running eagerly, which is much slower than a compiled engine")
    return _eager(model, slots, precision)


def bidirectional(model: Model) -> bool:
    """Whether a model needs whole clips, told without building it."""
    return not model.contract.network.causal


def export(model: Model, engine: str, out: str | os.PathLike[str], precision: str | None = None) -> Path:
    """Builds an engine ahead of time and writes it as one file, which `compile(model, engine=file)` opens.

    engine: openvino (also by "auto"): the file serves this model on machines with the same processor and OpenVINO
    version; onnx: the file (its name should end in .onnx) serves any ONNX runtime, see `engines/runtime/onnx.py`.
    """
    _refuse_bidirectional(model)
    if engine == "onnx":
        onnx_module("onnx", "onnxscript").write(model, Path(out))
        return Path(out)
    if engine == "tensorrt":
        raise EngineError("engine 'tensorrt' to export, whose file could carry code and serves one kind of GPU only",
                          "openvino or onnx", "build it where it runs: --engine tensorrt keeps it in the engine cache")
    if engine not in ("auto", "openvino"):
        raise EngineError(f"engine {engine!r} to export", "openvino or onnx", "use --engine openvino")
    from engines.runtime import cache, openvino

    cache.pack(openvino.get_or_build(model, precision), Path(out))
    return Path(out)


def _openvino(model: Model, slots: int, precision: str | None, file: Path | None = None) -> Engine:
    _refuse_bidirectional(model)
    try:
        from engines.runtime.openvino import open_engine
    except ImportError as error:
        raise_interrupt(error)
        raise EngineError(f"no usable OpenVINO ({error})", "the openvino package", "pip install openvino") from error
    return open_engine(model, slots, precision, file)


def _refuse_bidirectional(model: Model) -> None:
    if bidirectional(model):
        raise EngineError(f"{model.contract.name}, a bidirectional model, for a compiled engine", "a causal model",
                          "use --engine eager, which scores its clips again and again, or a causal model")


def _has_gpu() -> bool:
    """Whether torch can use a GPU. Asks torch only where the driver's own program is: importing torch takes seconds."""
    if shutil.which("nvidia-smi") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _tensorrt(model: Model, slots: int, precision: str | None,
              calibration_u8: NDArray[np.uint8] | None = None) -> Engine:
    _refuse_bidirectional(model)
    reason = unavailable_reason("tensorrt")
    if reason is not None:
        raise EngineError(f"engine 'tensorrt' on a machine with {reason}",
                          "torch-tensorrt, and an NVIDIA GPU with its driver that torch can use",
                          "pip install 'gatestream[tensorrt]' on a machine with such a GPU, or use --engine auto")
    from engines.runtime.tensorrt import open_engine

    return open_engine(model, slots, precision, calibration_u8)


def _inductor(model: Model, slots: int, precision: str | None) -> Engine:
    _refuse_bidirectional(model)
    from engines.runtime.inductor import open_engine

    return open_engine(model, slots, precision)


def onnx_module(*exporting: str) -> ModuleType:
    """The module engines.runtime.onnx, once the packages that it and `exporting` need are found to be there."""
    with imports_of("onnx", "onnx, onnxscript and onnxruntime", "engine 'onnx'", error_type=EngineError):
        for package in exporting:
            importlib.import_module(package)
        return importlib.import_module("engines.runtime.onnx")


def _eager(model: Model, slots: int, precision: str | None, hop: int | None = None) -> Engine:
    if precision not in (None, "f32"):
        raise EngineError(f"precision {precision!r} for the eager engine", "f32", "leave the precision out")
    if bidirectional(model):
        from engines.runtime.windowed import WindowedEngine

        windowed = WindowedEngine(model.network, model.contract, slots, hop)
        log.info("%s is bidirectional: the last %d frames are scored every %d, which computes %.1f times what one "
                 "pass a frame does (%.1f times behind the first temporal module)", model.contract.name,
                 windowed.segments, windowed.hop, windowed.cost, windowed.segments / windowed.hop)
        return windowed
    from engines.runtime.eager import EagerEngine

    return EagerEngine(model.network, model.contract, slots)
