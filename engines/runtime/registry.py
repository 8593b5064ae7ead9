"""From a model to a running engine, by name. Importing this imports no engine."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engines.errors import EngineError, UsageError, imports_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engines.model.file import Model
    from engines.runtime.backend import Backend, Spec
    from engines.runtime.engine import Engine

log = logging.getLogger("gatestream.engines")

ENGINES = ("tensorrt", "inductor", "openvino", "eager")  # in the order in which `auto` tries them


def compile(model: Model, engine: str | os.PathLike[str] = "auto", slots: int = 1, precision: str | None = None,
            hop: int | None = None, calibration_u8: NDArray[np.uint8] | None = None) -> Engine:
    """Builds an engine, or takes it from the cache.
    engine: auto (the first of ENGINES that works here, see `unavailable_reason`), one of these, or a file of `export`;
    slots: cameras at a time, at most; precision: f32, bf16, f16, int8 as the engine has it, or None to have it chosen
    by measured parity with eager; hop: frames from one clip's scores to the next, None for the model's own, of a
    bidirectional model, which runs in the eager engine only (see `windowed.py`); calibration_u8: frames for TensorRT in
    int8, BGR [T, H, W, 3] in order from one camera, as `prepare` gives them; the probe clip if None. Raises UsageError
    for an unknown name, an impossible hop or frames that nothing needs, EngineError when the engine cannot be built or
    does not agree with eager."""
    from engines.runtime.backend import Spec

    if slots < 1:
        raise UsageError(f"{slots} slots", "1 or more", "give one slot per camera")
    name = os.fspath(engine)
    causal = model.contract.network.causal
    if calibration_u8 is not None and name != "tensorrt":
        raise UsageError(f"calibration frames for engine {name!r}", "engine tensorrt in int8 with them",
                         "leave the frames out, or ask for that engine")
    spec = Spec(model.with_hop(hop), slots, precision, calibration_u8)
    if name == "auto":
        return _compile_best(spec) if causal else _compile("eager", spec)
    if name in ENGINES:
        return _compile(name, spec)
    if Path(name).is_file():
        return _open_file(Path(name), spec)
    raise UsageError(f"engine {name!r}", f"auto, {', '.join(ENGINES)}, or a file written by `gatestream export`",
                     "choose one of these")


def find(name: str) -> Backend:
    """The record of an engine. Raises EngineError where its library cannot be imported."""
    with imports_of("train", "torch", f"engine {name!r}", error_type=EngineError):
        return cast("Backend", importlib.import_module(f"engines.runtime.{name}").BACKEND)


def unavailable_reason(name: str) -> str | None:
    """Why `auto` passes over an engine on this machine, as far as is known without building it; None if it tries."""
    try:
        backend = find(name)
        with imports_of("train", "torch", f"engine {name!r}", error_type=EngineError):  # it may ask torch for a GPU
            return backend.unavailable_reason()
    except EngineError as error:
        return error.got


def _compile(name: str, spec: Spec) -> Engine:
    backend = find(name)
    if not backend.is_reference:
        _refuse_bidirectional(spec.model)
    if backend.remedy and (reason := unavailable_reason(name)):
        raise EngineError(f"engine {name!r} on a machine with {reason}", *backend.remedy)
    return backend.compile(spec)


def _compile_best(spec: Spec) -> Engine:
    *compiled, last = ENGINES
    for name in compiled:
        if reason := unavailable_reason(name):
            log.debug("not on %s: %s", name, reason)
            continue
        try:
            return _compile(name, spec)
        except EngineError as error:
            log.warning("no %s engine (%s): trying the next best", name, error)
    log.warning("running eagerly, which is much slower than a compiled engine")
    return _compile(last, spec)


def _open_file(file: Path, spec: Spec) -> Engine:
    _refuse_bidirectional(spec.model)
    if file.suffix == ".onnx":
        if spec.precision not in (None, "f32"):
            raise EngineError(f"precision {spec.precision!r} for an ONNX file", "f32", "leave the precision out")
        from engines.runtime import onnx

        return onnx.OnnxEngine(spec.model, file, spec.slots)
    from engines.runtime import cache

    openvino = find("openvino")
    return openvino.open_entry(spec, cache.unpack(file, openvino.cache_key(spec)))


def _refuse_bidirectional(model: Model) -> None:
    if not model.contract.network.causal:
        raise EngineError(f"{model.contract.name}, a bidirectional model, for a compiled engine", "a causal model",
                          "run it with --engine eager, which scores its clips again and again, or make it causal: "
                          "gatestream train DATASET --init MODEL --causal")


def export(model: Model, engine: str, out: str | os.PathLike[str], precision: str | None = None) -> Path:
    """Builds an engine ahead of time and writes it as one file, which `compile(model, engine=file)` opens.
    engine: openvino (also by "auto"): the file serves this model on machines with the same processor and OpenVINO
    version, or, where its name ends in .safetensors, is the model itself with its graph made anew, for any machine with
    OpenVINO; onnx: the file (its name should end in .onnx) serves any ONNX runtime, see `engines/runtime/onnx.py`.
    Raises EngineError, SinkError."""
    _refuse_bidirectional(model)
    if engine == "onnx":
        from engines.runtime import onnx

        onnx.write(model, Path(out))
        return Path(out)
    if engine == "tensorrt":
        raise EngineError("engine 'tensorrt' to export, whose file could carry code and serves one kind of GPU only",
                          "openvino or onnx", "build it where it runs: --engine tensorrt keeps it in the engine cache")
    if engine not in ("auto", "openvino"):
        raise EngineError(f"engine {engine!r} to export", "openvino or onnx", "use --engine openvino")
    if Path(out).suffix == ".safetensors":
        from engines.runtime import step_graph

        step_graph.write(model, out)
        return Path(out)
    from engines.runtime import cache
    from engines.runtime.backend import Spec

    cache.pack(find("openvino").get_or_build(Spec(model, slots=2, precision=precision)), Path(out))
    return Path(out)
