"""From a model to a running engine, by name."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from engines.engine import Engine
from engines.errors import EngineError, UsageError

if TYPE_CHECKING:
    from engines.model import Model

log = logging.getLogger("gatestream.engines")

ENGINES = ("openvino", "eager")  # best first
PLANNED = ("inductor", "tensorrt")


def compile(model: Model, engine: str | os.PathLike[str] = "auto", slots: int = 1,
            precision: str | None = None, hop: int | None = None) -> Engine:
    """Builds an engine, or takes it from the cache.

    engine: auto (the best that works here), openvino, eager, or a file written by `export`; slots: cameras at a
    time, at most; precision: f32, bf16, or None to have it chosen by measured agreement with eager; hop: frames from
    one clip's scores to the next, None for the model's own, of a bidirectional model, which runs in the eager engine
    only (see `engines.windowed`). Raises UsageError for an unknown name or an impossible hop, EngineError when the
    engine cannot be built or does not agree with eager.
    """
    if slots < 1:
        raise UsageError(f"{slots} slots", "1 or more", "give one slot per camera")
    name = os.fspath(engine)
    if not bidirectional(model) and hop is not None:
        raise UsageError(f"a hop of {hop} frames for {model.contract.name}, which is causal",
                         "a bidirectional model with it", "leave the hop out: causal models score every frame")
    if name == "eager" or (name == "auto" and bidirectional(model)):
        return _eager(model, slots, precision, hop)
    if name == "auto":
        try:
            return _openvino(model, slots, precision)
        except EngineError as error:
            log.warning("no OpenVINO engine (%s): running eagerly, which is much slower", error)
            return _eager(model, slots, precision)
    if name == "openvino":
        return _openvino(model, slots, precision)
    if name in PLANNED:
        raise EngineError(f"engine {name!r}, which this version does not have yet", f"one of {', '.join(ENGINES)}",
                          "use --engine auto")
    if Path(name).is_file():
        return _openvino(model, slots, precision, Path(name))
    raise UsageError(f"engine {name!r}", f"auto, {', '.join(ENGINES)}, or a file written by `gatestream export`",
                     "choose one of these")


def bidirectional(model: Model) -> bool:
    """Whether a model needs whole clips, told without building it."""
    return not model.contract.options.get("causal", False)  # as `engines.build` reads it


def export(model: Model, engine: str, out: str | os.PathLike[str], precision: str | None = None) -> Path:
    """Builds an engine ahead of time and writes it as one file, which `compile(model, engine=file)` opens.

    The file serves this model on machines with the same processor and OpenVINO version; others refuse it.
    """
    if engine not in ("auto", "openvino"):
        raise EngineError(f"engine {engine!r} to export", "openvino", "use --engine openvino")
    from engines import cache, openvino

    _refuse_bidirectional(model)
    cache.pack(openvino.obtain(model, precision), Path(out))
    return Path(out)


def _openvino(model: Model, slots: int, precision: str | None, file: Path | None = None) -> Engine:
    _refuse_bidirectional(model)
    try:
        from engines.openvino import open_engine
    except ImportError as error:
        raise EngineError(f"no usable OpenVINO ({error})", "the openvino package", "pip install openvino") from error
    return open_engine(model, slots, precision, file)


def _refuse_bidirectional(model: Model) -> None:
    if bidirectional(model):
        raise EngineError(f"{model.contract.name}, a bidirectional model, for a compiled engine", "a causal model",
                          "use --engine eager, which scores its clips again and again, or a causal model")


def _eager(model: Model, slots: int, precision: str | None, hop: int | None = None) -> Engine:
    if precision not in (None, "f32"):
        raise EngineError(f"precision {precision!r} for the eager engine", "f32", "leave the precision out")
    if bidirectional(model):
        from engines.windowed import WindowedEngine

        windowed = WindowedEngine(model.network, model.contract, slots, hop)
        log.info("%s is bidirectional: the last %d frames are scored every %d, which computes %.1f times what one "
                 "pass a frame does (%.1f times behind the first temporal module)", model.contract.name,
                 windowed.segments, windowed.hop, windowed.cost, windowed.segments / windowed.hop)
        return windowed
    from engines.eager import EagerEngine

    return EagerEngine(model.network, model.contract, slots)
