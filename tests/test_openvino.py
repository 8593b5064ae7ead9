"""OpenVINO's own: it equals eager, chooses its precision and batches by what it measured, and keeps what it built."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import SIZE_HW, make_model

import engines
import engines.runtime.openvino as openvino_engine
from engines.errors import EngineError, UsageError
from engines.model.file import Model
from engines.runtime import backend, cache, own_process
from engines.runtime.backend import Spec
from engines.runtime.engine import StepResult
from engines.runtime.openvino import OpenVINOEngine
from engines.runtime.parity import Parity, probability_difference, probe_clip, run_clip
from engines.runtime.registry import compile as compile_engine


@pytest.mark.parametrize(("architecture", "colour", "options"), [
    ("gsf-mobilenetv2", "RGB", {"readout_width": 16}),
    ("gsf-mobilenetv2", "BGR", {}),
    ("gsm-mobilenetv2", "RGB", {}),
    ("tsn-mobilenetv2", "RGB", {}),
    ("gsf-mobilenetv2", "RGB", {"past_shift": 0}),
    ("gsf-mobilenetv2", "RGB", {"gate_ratio": 100}),
    ("tsm-mobilenetv2", "BGR", {}),
    ("stsm-mobilenetv2", "RGB", {}),
    ("stsm-mobilenetv2", "RGB", {"shift": "THW-diagonal", "past_shift": 0}),
])
def test_openvino_equals_eager(tmp_path: Path, architecture: str, colour: str, options: dict[str, Any]) -> None:
    model = make_model(tmp_path, architecture, colour=colour, **options)
    eager = engines.compile(model, "eager")
    graph = openvino_engine.convert(model)
    compiled = openvino_engine.engine_of(graph, model.contract, 1, "f32")
    frames = probe_clip(model.contract, 16)
    wanted, got = run_clip(eager, frames).scores, run_clip(compiled, frames).scores
    assert np.abs(wanted["gesture"] - wanted["gesture"][0]).max() > 0.1  # the clip moves the scores
    assert probability_difference(model.contract, wanted, got) <= 1e-3


def test_precision_is_chosen_by_measured_agreement_and_recorded(
        tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    table = [({"bf16": 0.002}, True, "bf16"), ({"bf16": 0.02, "f32": 0.0}, True, "f32"),
             ({"f32": 0.001}, False, "f32"), ({"bf16": 0.4, "f32": 0.3}, True, None)]
    graph = openvino_engine.convert(model)
    monkeypatch.setattr(openvino_engine, "convert", lambda *_: graph)
    monkeypatch.setattr(openvino_engine, "fitting_batches", lambda *_: [2])
    for case, (differences, bf16, chosen) in enumerate(table):
        answers = iter(differences.values())
        monkeypatch.setattr(backend, "compare", lambda *_, answers=answers: Parity(next(answers), 0, 0))
        able = replace(openvino_engine.BACKEND, precisions=lambda bf16=bf16: ("bf16", "f32") if bf16 else ("f32",))
        folder = tmp_path / str(case)
        folder.mkdir()
        if chosen is None:
            with pytest.raises(EngineError, match="off by"):
                able.build_proven(Spec(model), folder)
        else:
            facts = able.build_proven(Spec(model), folder)
            assert (facts["precision"], facts["batches"]) == (chosen, [2])
            assert {name: found["probabilities"] for name, found in facts["parity"].items()} == differences


def test_a_batch_is_taken_only_where_its_cameras_get_bit_for_bit_what_they_get_alone(
        model: Model, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = openvino_engine.convert(model)
    batches = openvino_engine.fitting_batches(graph, model.contract, "f32")
    engine = openvino_engine.engine_of(graph, model.contract, 8, "f32", batches)
    alone = run_clip(openvino_engine.engine_of(graph, model.contract, 1, "f32"), frames[:9]).scores["gesture"]
    seen = [0] * 8
    for company in (range(8), [5], range(7, 2, -1), [0, 1, 2], range(8), [6, 1], [4, 3, 2, 0], range(8)):
        scores = engine.step(np.stack([frames[seen[slot]] for slot in company]), list(company)).scores["gesture"]
        for slot, row in zip(company, scores, strict=True):
            assert np.array_equal(row, alone[seen[slot]])
            seen[slot] += 1

    compared: list[int] = []

    def off_by_a_bit(engine: OpenVINOEngine, pixels: NDArray[np.uint8], slots: Sequence[int]) -> StepResult:
        result = right(engine, pixels, slots)
        compared.extend(size for _, size in engine._batches(len(slots)))
        return StepResult(result.features + np.float32(1e-6 * (len(slots) == 4)), result.scores)

    right = OpenVINOEngine._step
    with monkeypatch.context() as patched:
        patched.setattr(OpenVINOEngine, "_step", off_by_a_bit)
        assert openvino_engine.fitting_batches(graph, model.contract, "f32") == [size for size in batches if size != 4]
    assert set(compared) == {1, 2, 4}  # each in runs of its own
    monkeypatch.setattr(openvino_engine, "MULTIPLICATIONS_PER_THREAD", 1.0)
    assert openvino_engine.fitting_batches(graph, model.contract, "f32") == []


def test_the_built_engine_agrees_as_its_entry_says(model: Model) -> None:
    engine = engines.compile(model, "openvino")
    entry = openvino_engine.BACKEND.get_or_build(Spec(model))
    assert entry.facts["precision"] == engine.precision
    assert Parity(**entry.facts["parity"][engine.precision]).holds


def test_damaged_graph_is_built_again(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch,
                                      caplog: pytest.LogCaptureFixture, frames: np.ndarray) -> None:
    before = run_clip(engines.compile(model, "openvino", precision="f32"), frames[:3]).scores["gesture"]
    entry = openvino_engine.BACKEND.get_or_build(Spec(model, precision="f32"))
    weights = entry.folder / "step.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with caplog.at_level(logging.WARNING):
        engine = engines.compile(model, "openvino", precision="f32")
    assert "damaged" in caplog.text
    assert np.array_equal(run_clip(engine, frames[:3]).scores["gesture"], before)


def test_exported_engine_opens_as_built_and_serves_its_model_only(tmp_path: Path, model: Model,
                                                                  frames: np.ndarray) -> None:
    file = engines.export(model, "openvino", tmp_path / "gesture.engine")
    engine = engines.compile(model, file, slots=2)
    built = engines.compile(model, "openvino")
    assert (engine.name, engine.precision) == ("openvino", built.precision)
    assert np.array_equal(run_clip(engine, frames[:4]).scores["gesture"], run_clip(built, frames[:4]).scores["gesture"])
    with pytest.raises(EngineError, match="made for model"):
        engines.compile(make_model(tmp_path, seed=5), file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EngineError, match=r"gesture\.engine"):
        engines.compile(model, file)
    with pytest.raises(EngineError, match="eager"):
        engines.export(model, "eager", tmp_path / "no.engine")


def test_signals_arrive_after_engines_have_come_and_gone(model: Model) -> None:
    code = f"""
import faulthandler, gc, signal
faulthandler.enable()
import engines
model = engines.load({str(model.path)!r})
opened = [engines.compile(model, "openvino", slots=2) for _ in range(3)]
while opened:
    opened.pop(0).close()
    gc.collect()
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
signal.raise_signal(signal.SIGINT)
assert seen == [signal.SIGINT]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_engine_is_built_and_run_without_torch_in_this_process(
        model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path))
    program = ("import sys, numpy as np, engines\n"
               f"model = engines.load({str(model.path)!r})\n"
               "engine = engines.compile(model)\n"
               f"engine.step(np.zeros((1, *{SIZE_HW}, 3), np.uint8), [0])\n"
               "assert engine.name == 'openvino'\n"
               "assert 'torch' not in sys.modules, 'torch was imported'\n")
    built: list[float] = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
                              check=False, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        [entry] = cache.entries()
        built.append(entry.built_at)
    assert built[0] == built[1]


def test_a_call_in_a_process_of_its_own() -> None:
    assert own_process.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(UsageError, match="0 slots"):
        own_process.call(compile_engine, None, "auto", 0)
    with pytest.raises(EngineError, match=r"a process for _exit that failed \(exit code 3\)"):
        own_process.call(os._exit, 3)
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        own_process.call(divmod, 1, 0)


def test_openvino_reports_to_nobody() -> None:
    program = ("import engines, threading, sys\n"
               "assert 'openvino_telemetry' not in sys.modules\n"
               "import engines.runtime.openvino\n"
               "assert 'openvino_telemetry' not in sys.modules\n"
               "from openvino.tools.ovc import telemetry_utils\n"
               "assert telemetry_utils.tm.__name__ == 'openvino.tools.ovc.telemetry_stub'\n"
               "assert threading.active_count() == 1, threading.enumerate()\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
                          cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("slots", [[0], [0, 1], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("failing", [0, -1])
def test_a_step_that_fails_moves_no_camera(model: Model, frames: np.ndarray, slots: list[int], failing: int,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    graph = openvino_engine.convert(model)
    engine = openvino_engine.engine_of(graph, model.contract, 5, "f32", [2])
    wanted = run_clip(openvino_engine.engine_of(graph, model.contract, 1, "f32"), frames[:4]).scores["gesture"]

    def step(t: int) -> np.ndarray:
        return engine.step(np.stack([frames[t]] * len(slots)), slots).scores["gesture"]

    step(0), step(1)
    request = openvino_engine._Request
    begun: list[Any] = []
    start = request.start

    def start_failing(self: Any, *how: Any) -> None:
        begun.append(self)
        start(self, *how)

    monkeypatch.setattr(request, "start", start_failing)
    runs = len(list(engine._batches(len(slots))))
    real_wait = request.wait

    def wait(self: Any) -> None:
        real_wait(self)
        if self is begun[failing]:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(request, "wait", wait)
        with pytest.raises(EngineError, match="out of memory"):
            step(2)
    assert len(begun) == runs
    for t in (2, 3):
        np.testing.assert_allclose(step(t), np.stack([wanted[t]] * len(slots)), atol=1e-4)
