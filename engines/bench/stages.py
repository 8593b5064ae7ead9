"""How fast a model runs on this machine: stages, the engine's step against the bare backbone, start-up, state.
How the step and the bare backbone are timed, and several models beside one another: `overhead.py`. Figures are
milliseconds."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from engines.bench.overhead import Figures, camera_images, measure_overhead, percentiles, resolve_engine, typical
from engines.errors import EngineError
from engines.hands import HandTracker, hand_features
from engines.model.contract import Contract
from engines.model.file import Model
from engines.model.preprocess import prepare
from engines.runtime import cache
from engines.runtime.backend import Spec
from engines.runtime.engine import Engine, StepResult
from engines.runtime.registry import compile as compile_engine
from engines.runtime.registry import find

Report = dict[str, Any]
Stage = Callable[[StepResult], object]

LARGE_HW = (224, 224)  # the size that published figures are given for
WARM_UP = 20
PLAIN = "fuse by mean"  # beside the total, not in it
PACKAGES = ("gatestream", "openvino", "torch", "opencv-python", "numpy")


def bench(model: Model, engine: str = "auto", precision: str | None = None, steps: int = 400,
          fuse: Stage | None = None, plain: Stage | None = None) -> Report:
    """Measures a model on this machine and keeps the report, to be compared with next time.
    engine: as in `engines.compile`, files of `export` too; steps: timed frames for each figure; fuse: what follows the
    engine's step, timed as a stage of its own; plain: the same without clip fusion, to be timed beside it.
    A sampled model has no file: its engine is built anew, in f32, and there is no start-up time.
    Raises what `engines.compile` raises; UsageError for a model that looks for hands, where that is not installed."""
    opened = (compile_engine(model, engine, slots=1, precision=precision) if model.path is not None
              else find(resolve_engine(engine)).open_unproven(Spec(model, precision="f32")))
    report: Report = {
        "model": model.contract.name, "digest": model.digest, "engine": opened.name, "precision": opened.precision,
        "machine": machine(), "steps": steps, "state_bytes_per_camera": opened.state_bytes,
        "stages_ms": _stages(model.contract, opened, steps, fuse, plain), "against_bare": {}, "no_bare": None,
        "start_up_s": None if model.path is None else _start_up_s(
            model, os.path.abspath(engine) if os.path.isfile(engine) else opened.name, opened.precision),
    }
    try:
        for size_hw in dict.fromkeys([model.contract.input_size_hw, LARGE_HW]):
            report["against_bare"]["{1}x{0}".format(*size_hw)] = asdict(
                measure_overhead(model, opened.name, opened.precision, size_hw, steps,
                                 opened if size_hw == model.contract.input_size_hw else None))
    except EngineError as error:  # such as an ONNX file, on a machine that runs ONNX but cannot write it
        report["no_bare"] = str(error)
    report["fps"] = 1000 / report["stages_ms"]["total"][typical(model)]
    report["last"] = _last(report)
    return report


def format_lines(report: Report) -> list[str]:
    """The report as text."""
    versions = "  ".join(f"{name} {version}" for name, version in report["machine"]["versions"].items())
    last, stages = report["last"], {name: row["p50"] for name, row in report["stages_ms"].items()}
    out = [f"{report['model']} on {report['engine']} {report['precision']}: {report['fps']:.0f} frames/s, "
           f"{report['state_bytes_per_camera'] / 1000:.1f} kB of state per camera"
           + ("" if report["start_up_s"] is None else
              f", {report['start_up_s']:.2f} s from process start to the first scores"),
           f"{report['machine']['processor']}, {report['machine']['cores']} cores  {versions}",
           f"{'ms':24} {'p50':>8} {'p95':>8} {'p99':>8}"]
    rows = dict(report["stages_ms"])
    for size, figures in report["against_bare"].items():
        rows |= {f"step at {size}": figures["step_ms"], f"bare backbone at {size}": figures["bare_ms"]}
    out += [f"{name:24} {row['p50']:8.3f} {row['p95']:8.3f} {row['p99']:8.3f}" for name, row in rows.items()]
    out += [f"step / bare at {size}: {figures['ratio']:.2f}" for size, figures in report["against_bare"].items()]
    if report["no_bare"]:
        out.append(f"no comparison with the bare backbone: {report['no_bare']}")
    if "hands" in stages:
        out.append(f"hands: {report['stages_ms']['hands']['mean']:.3f} ms on average with a rendered one in view; "
                   "gatestream bench hands clip.mp4 measures with your own")
    if "fuse" in stages:
        out.append(f"fuse / engine step: {100 * stages['fuse'] / stages['engine']:.1f} %")
    if PLAIN in stages:
        more = 100 * (stages["fuse"] - stages[PLAIN]) / stages["engine"]
        out.append(f"clip fusion more than the mean of clips / engine step: {more:.1f} %")
    if last:
        was, now = last["stages_ms"]["total"]["p50"], stages["total"]
        out.append(f"last run: total p50 {was:.3f} ms, now {now:.3f} ms ({100 * (now / was - 1):+.0f} %)")
    return out


def machine() -> dict[str, Any]:
    """Processor, cores and versions that figures depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(EngineError, RuntimeError):
        from engines.runtime.openvino import core
        processor = str(core().get_property("CPU", "FULL_DEVICE_NAME"))
    return {"processor": processor, "cores": os.cpu_count(), "system": platform.platform(), "versions": versions}


def _stages(contract: Contract, engine: Engine, steps: int, fuse: Stage | None,
            plain: Stage | None) -> dict[str, Figures]:
    images = camera_images(contract.frame_rate)
    endings = {name: stage for name, stage in (("fuse", fuse), (PLAIN, plain)) if stage}
    tracker = HandTracker() if contract.looks_for_hands else None
    beginnings = ("preprocess", "engine") if tracker is None else ("preprocess", "hands", "engine")
    taken: dict[str, list[float]] = {name: [] for name in (*beginnings, *endings, "total")}
    for k in range(WARM_UP + steps * max(1, len(endings))):
        image = images[k % len(images)]
        marks = [time.perf_counter()]
        pixels = prepare(image, contract)
        marks.append(time.perf_counter())
        if tracker is not None:
            hand_features(tracker.step(image))
            marks.append(time.perf_counter())
        result = engine.step(pixels[None], [0])
        marks.append(time.perf_counter())
        # Only what comes first after the engine finds the caches as a live frame does: they take turns.
        names = list(endings) if k % 2 else list(endings)[::-1]
        for name in names:
            endings[name](result)
            marks.append(time.perf_counter())
        if k >= WARM_UP:
            timed = (*beginnings, *names[:1])
            spans = np.diff(marks[:len(timed) + 1]).tolist()
            for name, seconds in zip(timed, spans, strict=True):
                taken[name].append(seconds)
            if names[:1] != [PLAIN]:
                taken["total"].append(sum(spans))
    return {name: percentiles(seconds) for name, seconds in taken.items()}


def _start_up_s(model: Model, engine: str, precision: str) -> float:
    """Seconds from process start to the first scores, with the engine cache warm."""
    program = ("import sys, numpy, engines\n"
               "model = engines.load(sys.argv[1])\n"
               "engine = engines.compile(model, sys.argv[2], precision=sys.argv[3])\n"
               "engine.step(numpy.zeros((1, *model.contract.input_size_hw, 3), 'uint8'), [0])\n")
    command = [sys.executable, "-c", program, str(model.path), engine, precision]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(command, check=True, capture_output=True, env=where)  # the cache entry of just this precision
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=where)
    return time.perf_counter() - began


def _last(report: Report) -> Report | None:
    """The previous report of the same model, engine and precision, replaced by this one."""
    file = cache.cache_dir() / f"bench-{report['model']}-{report['engine']}-{report['precision']}.json"
    last: Report = {}
    with contextlib.suppress(OSError, ValueError):
        last = json.loads(file.read_text())
    with contextlib.suppress(OSError):
        cache.make_private_dir(file.parent)
        file.write_text(json.dumps(report))
    return last if {"stages_ms", "machine"} <= set(last) else None
