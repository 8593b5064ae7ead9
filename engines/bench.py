"""How fast a model runs on this machine: stages, the engine's step against the bare backbone, start-up, state.

    report = bench(engines.load("gesture"))
    print("\\n".join(lines(report)))

The bare backbone is the same architecture without temporal modules (tsn), in the same engine and precision, timed
in turns with the full step, so that whatever else the machine does hits both. Figures are milliseconds. Frames per
second and the ratio follow from medians, but from means for a bidirectional model, few of whose steps do all the work.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines import cache
from engines.choice import bidirectional
from engines.choice import compile as compile_engine
from engines.contract import Contract
from engines.engine import Engine, StepResult
from engines.errors import UsageError
from engines.preprocess import fit, prepare

if TYPE_CHECKING:
    from engines.model import Model
    from engines.networks.network import Network

Report = dict[str, Any]
Figures = dict[str, float]

CAMERA_HW = (480, 640)
LARGE_HW = (224, 224)  # the size that published figures are given for
WARM_UP = 20
TURN = 20  # steps of one network before the other has its turn
PACKAGES = ("gatestream", "openvino", "torch", "opencv-python", "numpy")


def bench(model: Model, engine: str = "auto", precision: str | None = None, steps: int = 400,
          fuse: Callable[[StepResult], object] | None = None) -> Report:
    """Measures a model on this machine and keeps the report, to be compared with next time.

    steps: timed frames for each figure; fuse: what follows the engine's step, timed as a stage of its own.
    Raises what `engines.compile` raises, and UsageError for an ONNX file.
    """
    opened = compile_engine(model, engine, slots=1, precision=precision)
    if opened.name == "onnx":
        raise UsageError("an ONNX file to time", "an engine that the bare backbone can be built for as well",
                         "time openvino, inductor or eager")
    height, width = model.contract.input_size_hw
    sizes = dict.fromkeys([(height, width), LARGE_HW])
    report: Report = {
        "model": model.contract.name, "digest": model.digest, "engine": opened.name, "precision": opened.precision,
        "machine": machine(), "steps": steps, "state_bytes_per_camera": opened.state_bytes,
        "stages_ms": _stages(model.contract, opened, steps, fuse),
        "against_bare": {f"{w}x{h}": _against_bare(model, opened, (h, w), steps) for h, w in sizes},
        "start_up_s": _start_up_s(model, opened),
    }
    report["fps"] = 1000 / report["stages_ms"]["total"][_typical(model)]
    report["last"] = _last(report)
    return report


def lines(report: Report) -> list[str]:
    """The report as text."""
    versions = "  ".join(f"{name} {version}" for name, version in report["machine"]["versions"].items())
    last = report["last"]
    out = [f"{report['model']} on {report['engine']} {report['precision']}: {report['fps']:.0f} frames/s, "
           f"{report['state_bytes_per_camera'] / 1000:.1f} kB of state per camera, "
           f"{report['start_up_s']:.2f} s from process start to the first scores",
           f"{report['machine']['processor']}, {report['machine']['cores']} cores  {versions}",
           f"{'ms':24} {'p50':>8} {'p95':>8} {'p99':>8}"]
    rows = dict(report["stages_ms"])
    for size, figures in report["against_bare"].items():
        rows |= {f"step at {size}": figures["step_ms"], f"bare backbone at {size}": figures["bare_ms"]}
    out += [f"{name:24} {row['p50']:8.3f} {row['p95']:8.3f} {row['p99']:8.3f}" for name, row in rows.items()]
    out += [f"step / bare at {size}: {figures['ratio']:.2f}" for size, figures in report["against_bare"].items()]
    if "fuse" in report["stages_ms"]:
        fuse, step = (report["stages_ms"][stage]["p50"] for stage in ("fuse", "engine"))
        out.append(f"fuse / engine step: {100 * fuse / step:.1f} %")
    if last:
        was, now = last["stages_ms"]["total"]["p50"], report["stages_ms"]["total"]["p50"]
        out.append(f"last run: total p50 {was:.3f} ms, now {now:.3f} ms ({100 * (now / was - 1):+.0f} %)")
    return out


def machine() -> dict[str, Any]:
    """Processor, cores and versions that figures depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(), "versions": versions}


def _processor() -> str:
    with contextlib.suppress(ImportError, RuntimeError):
        from engines.openvino import core
        return str(core().get_property("CPU", "FULL_DEVICE_NAME"))
    return platform.processor() or platform.machine()


def percentiles(seconds: list[float]) -> Figures:
    """p50, p95, p99 and mean in milliseconds."""
    return {**{f"p{q}": float(np.percentile(seconds, q)) * 1000 for q in (50, 95, 99)},
            "mean": float(np.mean(seconds)) * 1000}


def _typical(model: Model) -> str:
    """Which figure stands for the others."""
    return "mean" if bidirectional(model) else "p50"


def _camera_images(rate: float, count: int = 60) -> list[NDArray[np.uint8]]:
    from engines.synthetic import Simulation

    camera = Simulation(0, size_hw=CAMERA_HW, rate=rate, idle_s=(0.2, 0.6))
    return [camera.frame(k) for k in range(count)]


def _stages(contract: Contract, engine: Engine, steps: int,
            fuse: Callable[[StepResult], object] | None) -> dict[str, Figures]:
    images = _camera_images(contract.frame_rate)
    names = ("preprocess", "engine", *(("fuse",) if fuse else ()), "total")
    taken: dict[str, list[float]] = {name: [] for name in names}
    for k in range(WARM_UP + steps):
        marks = [time.perf_counter()]
        pixels = prepare(images[k % len(images)], contract)
        marks.append(time.perf_counter())
        result = engine.step(pixels[None], [0])
        marks.append(time.perf_counter())
        if fuse:
            fuse(result)
            marks.append(time.perf_counter())
        if k >= WARM_UP:
            for name, seconds in zip(names, [*np.diff(marks), marks[-1] - marks[0]], strict=True):
                taken[name].append(float(seconds))
    return {name: percentiles(seconds) for name, seconds in taken.items()}


def _against_bare(model: Model, like: Engine, size_hw: tuple[int, int], steps: int) -> dict[str, Any]:
    contract = model.contract.model_copy(update={"input_size_hw": size_hw, "cover_hw": size_hw})
    engines = {name: _engine_of(network, contract, like)
               for name, network in (("step", _at_size(model, size_hw)), ("bare", bare_backbone(model, size_hw)))}
    frames = [fit(image, size_hw, size_hw)[None] for image in _camera_images(contract.frame_rate, TURN)]
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(2 + -(-steps // TURN)):  # the first two turns only warm up
        for name, engine in engines.items():
            for frame in frames:
                began = time.perf_counter()
                engine.step(frame, [0])
                if turn > 1:
                    taken[name].append(time.perf_counter() - began)
    figures = {name: percentiles(seconds) for name, seconds in taken.items()}
    typical = np.mean if _typical(model) == "mean" else np.median
    step, bare = (typical(np.reshape(taken[name], (-1, TURN)), axis=1) for name in ("step", "bare"))
    # Turn by turn: both networks of a pair ran within milliseconds, whatever the machine did before and after.
    return {"step_ms": figures["step"], "bare_ms": figures["bare"], "ratio": float(np.median(step / bare))}


def _at_size(model: Model, size_hw: tuple[int, int]) -> Network:
    from engines.networks.network import build

    contract = model.contract
    network = build(contract.architecture, heads=_labels(contract), input_size_hw=size_hw, **contract.options)
    network.load_state_dict(model.network.state_dict())
    return network.eval()


def bare_backbone(model: Model, size_hw: tuple[int, int]) -> Network:
    """The model's backbone with heads and without anything temporal."""
    from engines.networks.network import build

    architecture = "tsn-" + model.contract.architecture.partition("-")[2]
    network = build(architecture, heads=_labels(model.contract), input_size_hw=size_hw, causal=True)
    network.backbone.load_state_dict(model.network.backbone.state_dict())
    return network.eval()


def _labels(contract: Contract) -> Mapping[str, int]:
    return {head: len(labels) for head, labels in contract.heads.items()}


def _engine_of(network: Network, contract: Contract, like: Engine) -> Engine:
    if like.name == "eager":
        from engines.eager import EagerEngine
        from engines.windowed import WindowedEngine
        return EagerEngine(network, contract, 1) if network.causal else WindowedEngine(network, contract, 1)
    if like.name == "inductor":
        from engines.inductor import InductorEngine
        return InductorEngine(network, contract, 1, like.precision)
    if like.name == "tensorrt":
        from engines.tensorrt import build as build_tensorrt
        with tempfile.TemporaryDirectory() as folder:
            return build_tensorrt(Path(folder), network, contract, 1, like.precision)
    from engines.openvino import OpenVINOEngine, compile_graph, convert

    compiled = compile_graph(convert(network, contract), 1, like.precision)
    return OpenVINOEngine(contract, compiled, 1, like.precision)


def _start_up_s(model: Model, engine: Engine) -> float:
    """Seconds from process start to the first scores, with the engine cache warm."""
    program = ("import sys, numpy, engines\n"
               "model = engines.load(sys.argv[1])\n"
               "engine = engines.compile(model, sys.argv[2], precision=sys.argv[3])\n"
               "engine.step(numpy.zeros((1, *model.contract.input_size_hw, 3), 'uint8'), [0])\n")
    command = [sys.executable, "-c", program, str(model.path), engine.name, engine.precision]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(command, check=True, capture_output=True, env=where)  # the cache entry of just this precision
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=where)
    return time.perf_counter() - began


def _last(report: Report) -> Report | None:
    """The previous report of the same model, engine and precision, replaced by this one."""
    file = cache.place() / f"bench-{report['model']}-{report['engine']}-{report['precision']}.json"
    last: Report | None = None
    with contextlib.suppress(OSError, ValueError):
        last = json.loads(file.read_text())
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report))
    return last if last and {"stages_ms", "machine"} <= set(last) else None
