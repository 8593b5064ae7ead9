"""The proof on a GPU, in ten minutes: `python tests/gpu/proof.py` writes runs/gpu.json.

First how fast the engines step, beside the bare backbone and with frames from the host's memory, and how near they are
to eager; then the laws (`pytest tests/gpu`), for as long as there is time. Whatever has no time left is named in the
report, which is written after each part.
Legend: a step is of all cameras at once, from frames in the host's memory to scores there; gpu_ms is without copies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

import engines
import engines.runtime.slot_pool as slot_pool
from engines.bench.overhead import bare_backbone, percentiles, random_model
from engines.bench.stages import machine
from engines.errors import GatestreamError
from engines.model.file import Model
from engines.runtime.backend import Spec
from engines.runtime.nvidia import driver_version
from engines.runtime.parity import compare, probe_clip, run_clip
from engines.runtime.registry import find, unavailable_reason
from engines.runtime.slot_pool import CompiledPool

REPORT = Path(__file__).resolve().parents[2] / "runs" / "gpu.json"
NAMES = ("tensorrt", "inductor")
NETWORKS = ("gesture", "gsf-resnet50")
CAMERAS = (1, 8, 64, 256, 1024)
BATCHES = [size for size in CAMERAS if size <= slot_pool.RUN_MOST]  # of the engines that are timed: no others are built
PRECISION = "f16"
STEPS, WARM_UP, TURNS = 60, 5, 3
LAWS_MINUTES = 4.0  # of all, at least


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=10.0, help="ends by then, with what it has")
    ends = time.monotonic() + 60 * options.parse_args().minutes
    if not torch.cuda.is_available():
        print("no CUDA GPU that torch can use: nothing to prove here", file=sys.stderr)
        return 1
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "driver": driver_version(), "machine": machine(), "precision": PRECISION,
        "engines": {name: unavailable_reason(name) or "can run here" for name in NAMES}, "speed": [], "left_out": []}
    for network in NETWORKS:
        for name in NAMES:
            if time.monotonic() > ends - 60 * LAWS_MINUTES:
                report["left_out"].append(f"speed of {network} in {name}")
            elif unavailable_reason(name) is None:
                report["speed"].append(measure(network, name))
            write(report)
    report["laws"] = laws(ends - time.monotonic() - 10)
    write(report)
    print(json.dumps(report, indent=1))
    return 0 if report["laws"].get("failed") == [] else 1


def measure(network: str, name: str) -> dict[str, Any]:
    """Builds a network and its bare backbone, compares the network with eager, and times both in turns."""
    model = engines.load(network) if network == "gesture" else random_model(network)
    row: dict[str, Any] = {"network": network, "engine": name}
    began = time.monotonic()
    try:
        step, bare = (open_pool(each, name) for each in (model, bare_backbone(model)))
    except GatestreamError as error:
        return row | {"error": str(error)}
    row |= {"build_s": time.monotonic() - began, "graphs": sorted(step._graphs), "state_bytes": step.state_bytes}
    frames = probe_clip(model.contract, 24)
    wanted = run_clip(engines.compile(model, "eager"), frames)
    row["parity"] = {size: str(compare(model.contract, wanted, run_clip(step, frames, 0, range(1, size))))
                     for size in step.batch_sizes}
    row["cameras"] = [timed(step, bare, cameras) for cameras in CAMERAS]
    for pool in (step, bare):
        pool.close()
    torch.cuda.empty_cache()
    return row


def open_pool(model: Model, name: str) -> CompiledPool:
    """An engine for the largest number of cameras, with the batches that are timed."""
    every = slot_pool.batch_sizes
    slot_pool.batch_sizes = lambda slots: BATCHES
    try:
        engine = find(name).open_unproven(Spec(model, max(CAMERAS), PRECISION))
    finally:
        slot_pool.batch_sizes = every
    assert isinstance(engine, CompiledPool)
    return engine


def timed(step: CompiledPool, bare: CompiledPool, cameras: int) -> dict[str, Any]:
    """Milliseconds of a step of so many cameras, of one of the bare backbone, and of what the GPU does of each."""
    frames = np.random.default_rng(0).integers(0, 255, (cameras, *step.contract.input_size_hw, 3), np.uint8)
    taken: dict[str, list[float]] = {"step": [], "bare": []}
    pools = {"step": step, "bare": bare}
    for turn in range(1 + TURNS):
        for which, pool in pools.items():
            for _ in range(WARM_UP if turn == 0 else STEPS // TURNS):
                began = time.perf_counter()
                pool.step(frames, range(cameras))
                if turn:
                    taken[which].append(time.perf_counter() - began)
    row: dict[str, Any] = {"cameras": cameras, "frames_per_s": cameras / float(np.median(taken["step"]))}
    for which, pool in pools.items():
        row |= {f"{which}_ms": percentiles(taken[which]), f"{which}_gpu_ms": gpu_ms(pool, cameras)}
    row["ratio"] = row["step_ms"]["p50"] / row["bare_ms"]["p50"]
    if row["bare_gpu_ms"]:
        row["gpu_ratio"] = row["step_gpu_ms"] / row["bare_gpu_ms"]
    return row


def gpu_ms(pool: CompiledPool, cameras: int) -> float | None:
    """Of the graphs that such a step replays, by the GPU's own clock; None without graphs."""
    sizes = [size for _, size in slot_pool.split_runs(cameras, pool.batch_sizes)]
    if not set(sizes) <= set(pool._graphs):
        return None
    taken = []
    for _ in range(WARM_UP + STEPS // TURNS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for size in sizes:
            pool._graphs[size].replay()
        after.record()
        after.synchronize()
        taken.append(before.elapsed_time(after))
    return float(np.median(taken[WARM_UP:]))


def laws(seconds: float) -> dict[str, Any]:
    """What `pytest tests/gpu` says within so many seconds."""
    results = REPORT.with_name("gpu-laws.xml")
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-n", "0", "--junit-xml", str(results),
               "--session-timeout", str(int(seconds))]
    subprocess.run(command, check=False, timeout=seconds + 120, cwd=REPORT.parents[1])
    found: dict[str, Any] = {"passed": [], "failed": [], "skipped": []}
    for case in ElementTree.parse(results).iter("testcase"):
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        kind = next((outcome[child.tag] for child in case if child.tag in outcome), "passed")
        found[kind].append(case.get("name"))
    return found


def write(report: dict[str, Any]) -> None:
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
