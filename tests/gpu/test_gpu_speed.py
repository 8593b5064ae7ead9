"""How fast engines step on this GPU: a report in runs/gpu.json, and no judgement, since other machines differ."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path

import numpy as np
import torch

import engines
from engines.bench.stages import machine, percentiles
from engines.model.file import Model
from engines.runtime.parity import probe_clip

STEPS, WARM_UP = 300, 30
REPORT = Path(__file__).parents[2] / "runs" / "gpu.json"


def test_speed_is_reported(name: str) -> None:
    model = engines.load("gesture")
    rows = [timed(model, name, precision, slots) for precision in ("f16", "f32") for slots in (1, 8, 32)]
    report = json.loads(REPORT.read_text()) if REPORT.is_file() else {}
    versions = {package: importlib.metadata.version(package) for package in ("torch", "torch-tensorrt", "tensorrt")
                if package == "torch" or name == "tensorrt"}
    report[name] = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "versions": versions,
                    "machine": machine(), "model": model.contract.name, "steps": rows}
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1))
    print(json.dumps(report[name], indent=1))
    assert all(row["step_ms"]["p50"] > 0 for row in rows)


def timed(model: Model, name: str, precision: str, slots: int) -> dict[str, object]:
    """Milliseconds of whole steps of all cameras at once, images from and scores to the host included."""
    engine = engines.compile(model, name, slots=slots, precision=precision)
    frames, cameras = probe_clip(model.contract, slots), list(range(slots))
    taken = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        result = engine.step(frames, cameras)
        taken.append(time.perf_counter() - began)
    assert np.isfinite(result.features).all()
    row = {"precision": precision, "cameras": slots, "step_ms": percentiles(taken[WARM_UP:]),
           "state_bytes_per_camera": engine.state_bytes}
    engine.close()
    return row
