"""TensorRT on a GPU: its cache, its precisions, and loading without the builder."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import engines
import engines.runtime.parity as parity_module
import engines.runtime.tensorrt as tensorrt_engine
from engines.errors import EngineError
from engines.model.file import Model
from engines.runtime import cache
from engines.runtime.backend import Spec
from engines.runtime.parity import compare, probe_clip, run_clip
from engines.runtime.registry import unavailable_reason


@pytest.fixture(autouse=True)
def _tensorrt() -> None:
    reason = unavailable_reason("tensorrt")
    if reason is not None:
        pytest.skip(f"tensorrt: {reason}")


def test_auto_takes_it(model: Model) -> None:
    assert engines.compile(model, slots=2).name == "tensorrt"


def test_another_process_loads_what_this_one_built_without_the_builder(
        own_cache: Path, model: Model, frames: np.ndarray, tmp_path: Path) -> None:
    wanted = run_clip(engines.compile(model, "tensorrt"), frames[:4]).scores["gesture"]
    np.save(tmp_path / "frames.npy", frames[:4])
    program = ("import sys, json, numpy, engines, torch_tensorrt\n"
               "from engines.runtime.parity import run_clip\n"
               "torch_tensorrt.dynamo.compile = None\n"
               "engine = engines.compile(engines.load(sys.argv[1]), 'tensorrt')\n"
               "print(json.dumps(run_clip(engine, numpy.load(sys.argv[2])).scores['gesture'].tolist()))\n")
    done = subprocess.run([sys.executable, "-c", program, str(model.path), str(tmp_path / "frames.npy")],
                          capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.float32(json.loads(done.stdout.splitlines()[-1])), wanted)


def test_another_batch_builds_again_and_a_damaged_entry_too(
        own_cache: Path, model: Model, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    built = []

    def build(spec: Spec, *how: object) -> object:
        built.append(spec.slots)
        return tensorrt_engine.build(spec, *how)

    monkeypatch.setattr(tensorrt_engine, "BACKEND", replace(tensorrt_engine.BACKEND, build=build))
    before = run_clip(engines.compile(model, "tensorrt", precision="f16"), frames[:4]).scores["gesture"]
    engines.compile(model, "tensorrt", precision="f16")
    engines.compile(model, "tensorrt", precision="f16", slots=2)
    assert built == [1, 2]
    entry = next(entry for entry in cache.entries() if entry.key["batches"] == "1")
    with (entry.folder / tensorrt_engine.program(1)).open("ab") as file:
        file.write(b"x")
    with caplog.at_level(logging.WARNING):
        engine = engines.compile(model, "tensorrt", precision="f16")
    assert "damaged" in caplog.text
    assert built == [1, 2, 1]
    assert np.allclose(run_clip(engine, frames[:4]).scores["gesture"], before, atol=0.1)  # f16, kernels chosen anew


def test_int8_is_near_and_held_to_the_same_agreement(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelopt.torch.quantization", reason="needs nvidia-modelopt, which calibrates int8")
    model = engines.load("gesture")
    frames = probe_clip(model.contract)
    wanted = run_clip(engines.compile(model, "eager"), frames)
    monkeypatch.setattr(parity_module, "TOLERANCE", 1.0)
    monkeypatch.setattr(parity_module, "SPREAD_TOLERANCE", 10.0)
    engine = engines.compile(model, "tensorrt", precision="int8")
    got = run_clip(engine, frames)
    same = (got.scores["gesture"].argmax(1) == wanted.scores["gesture"].argmax(1)).mean()
    assert same >= 0.75
    monkeypatch.undo()
    monkeypatch.setenv("GATESTREAM_CACHE", str(own_cache.with_name("held")))
    if not compare(model.contract, wanted, got).holds:
        with pytest.raises(EngineError, match=r"off by \{'int8'"):
            engines.compile(model, "tensorrt", precision="int8")
    else:
        assert engines.compile(model, "tensorrt", precision="int8").precision == "int8"
