"""Laws of engines: every engine equals eager; slots do not know each other; a reset camera is a new one."""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import LABELS, SIZE_HW, make_model

import engines
import engines.runtime.backend as backend_module
import engines.runtime.inductor as inductor_engine
import engines.runtime.openvino as openvino_engine
from engines.errors import EngineError, GatestreamError, UsageError
from engines.model.file import Model
from engines.runtime import lowering
from engines.runtime.eager import EagerEngine
from engines.runtime.engine import Engine
from engines.runtime.inductor import compile_step
from engines.runtime.lowering import StepNetwork
from engines.runtime.parity import Parity, probability_difference, probe_clip, run_clip

ENGINES = ("eager", "openvino")


@pytest.fixture(scope="module")
def bidirectional_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), causal=False, segments=6, hop=2)


@pytest.fixture(scope="module")
def onnx_file(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the packages of gatestream[onnx]")
    return engines.export(model, "onnx", tmp_path_factory.mktemp("onnx") / "step.onnx")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Inductor engine without its compiler: all of its bookkeeping, none of the minutes."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)


@pytest.fixture(params=[*ENGINES, "onnx", "inductor", "tensorrt", "window"])
def make_engine(request: pytest.FixtureRequest, model: Model, bidirectional_model: Model) -> Callable[..., Engine]:
    if request.param == "window":
        return lambda slots=1: engines.compile(bidirectional_model, slots=slots)
    if request.param == "inductor":
        request.getfixturevalue("uncompiled")
        return lambda slots=1: compile_step(model, slots, "f32", "cpu", sizes=[1, 2])
    if request.param == "tensorrt":
        request.getfixturevalue("fake_tensorrt")
    if request.param == "onnx":
        file = request.getfixturevalue("onnx_file")
        return lambda slots=1: engines.compile(model, file, slots=slots)
    return lambda slots=1: engines.compile(model, request.param, slots=slots, precision="f32")


@pytest.mark.parametrize("matrix_most", [lowering.FUSE_MATRIX_MOST, 4])
@pytest.mark.parametrize(("architecture", "options"), [
    ("gsf-mobilenetv2", {"gate_ratio": 100, "sites": ["features_3", "features_16"]}),
    ("gsf-mobilenetv2", {"gate_ratio": 100, "sites": ["features_13"], "past_shift": 1}),
    ("gsf-mobilenetv2", {"past_shift": 0}),
    ("gsf-resnet18", {"gate_ratio": 100, "sites": ["layer4_0"]}),
])
def test_both_forms_of_the_fuse_step_are_the_same_function(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, options: dict[str, Any],
        matrix_most: int) -> None:
    monkeypatch.setattr(lowering, "FUSE_MATRIX_MOST", matrix_most)
    model = make_model(tmp_path, architecture, **options)
    assert all(step.banded == (step.gated > matrix_most) for step in StepNetwork(model.network).temporal.values())
    assert_lowered_step_equals(model)


@pytest.mark.parametrize("per_channel_most", [0, 1e12])
@pytest.mark.parametrize("architecture", ["gsm-mobilenetv2", "gsf-mobilenetv2"])
@pytest.mark.parametrize("past_shift", [0, 1, 2])
def test_both_forms_of_the_gate_step_are_the_same_function(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, past_shift: int,
        per_channel_most: float) -> None:
    monkeypatch.setattr(lowering, "PER_CHANNEL_MOST", per_channel_most)
    model = make_model(tmp_path, architecture, past_shift=past_shift)
    assert all(step.by_planes == (per_channel_most == 0) for step in StepNetwork(model.network).temporal.values())
    assert_lowered_step_equals(model)


@pytest.mark.parametrize(("architecture", "options"), [
    ("gsf-mobilenetv2", {"readout_width": 16}),
    ("gsf-mobilenetv2", {"gate_ratio": 100, "sites": ["features_3", "features_16"]}),
    ("gsm-mobilenetv2", {}),
    ("gsm-mobilenetv2", {"sites": ["features_5", "features_8"]}),
    ("tsn-mobilenetv2", {"readout_width": 16}),
    ("gsf-mobilenetv2", {"past_shift": 1}),
    ("gsf-mobilenetv2", {"past_shift": 0}),
    ("gsm-mobilenetv2", {"past_shift": 1}),
    ("gsm-mobilenetv2", {"past_shift": 0}),
    ("tsm-mobilenetv2", {"readout_width": 16}),
    ("tsm-mobilenetv2", {"past_shift": 2}),
    ("stsm-mobilenetv2", {}),
    ("stsm-mobilenetv2", {"shift": "HW"}),
    ("stsm-mobilenetv2", {"shift": "THW-diagonal", "past_shift": 2}),
])
def test_lowered_step_is_the_same_function(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    assert_lowered_step_equals(make_model(tmp_path, architecture, **options))


def assert_lowered_step_equals(model: Model) -> None:
    network = model.network.double()
    step = StepNetwork(network)
    clip = torch.randn(1, 9, 3, *SIZE_HW, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, _ = network(clip, network.fresh_state(1))
        logits = network.scores(wanted)
        state: list[torch.Tensor] = step.fresh_state()
        for t in range(clip.shape[1]):
            features, gesture, hand, *state = step(clip[:, t], *state)
            assert torch.allclose(features, wanted[:, t], atol=1e-10, rtol=1e-10)
            assert torch.allclose(gesture, logits["gesture"][:, t], atol=1e-9, rtol=1e-10)
            assert torch.allclose(hand, logits["hand"][:, t], atol=1e-9, rtol=1e-10)


def test_eager_step_equals_the_clip(model: Model, frames: np.ndarray) -> None:
    from engines.model.preprocess import normalise
    network = model.network
    with torch.no_grad():
        clip = torch.from_numpy(normalise(frames, model.contract))[None]
        wanted = network.scores(network(clip, network.fresh_state(1))[0])["gesture"][0].numpy()
    assert np.allclose(run_clip(engines.compile(model, "eager"), frames).scores["gesture"], wanted, atol=1e-3)


def test_cameras_in_any_order_and_company_are_as_alone(make_engine: Callable[..., Engine], frames: np.ndarray) -> None:
    clips = {0: frames[:6], 3: frames[6:12], 7: frames[12:18]}
    alone = {slot: run_clip(make_engine(), clip).scores["gesture"] for slot, clip in clips.items()}
    engine, seen = make_engine(slots=8), dict.fromkeys(clips, 0)
    for company in ([0, 3, 7], [7, 0], [3], [7, 3, 0], [0], [3, 7], [0, 7, 3], [3, 0], [7, 0, 3], []):
        company = [slot for slot in company if seen[slot] < 6]
        batch = np.stack([clips[slot][seen[slot]] for slot in company]) if company else np.zeros((0, *SIZE_HW, 3), "u1")
        result = engine.step(batch, company)
        for row, slot in enumerate(company):
            assert np.allclose(result.scores["gesture"][row], alone[slot][seen[slot]], atol=1e-3)
            seen[slot] += 1
    assert min(seen.values()) >= 5


def test_a_reset_camera_is_a_new_one(make_engine: Callable[..., Engine], frames: np.ndarray) -> None:
    engine = make_engine(slots=3)
    first = run_clip(engine, frames[:5], slot=1).scores["gesture"]
    other = [engine.step(frame[None], [2]).scores["gesture"][0] for frame in frames[:3]]
    engine.reset([1])
    again = [engine.step(frame[None], [1]).scores["gesture"][0] for frame in frames[:5]]
    assert np.array_equal(first, np.stack(again))
    untouched = engine.step(frames[3:4], [2]).scores["gesture"][0]  # resetting 1 left 2 where it was
    assert np.array_equal(np.stack([*other, untouched]), first[:4])
    carried = engine.step(frames[:1], [1]).scores["gesture"][0]
    assert not np.allclose(carried, first[0], atol=1e-3)  # without a reset the past counts


def test_outputs_are_the_callers_to_keep(make_engine: Callable[..., Engine], frames: np.ndarray) -> None:
    engine = make_engine()
    result = engine.step(frames[:1], [0])
    kept = result.features.copy(), result.scores["gesture"].copy()
    engine.step(frames[9:10], [0])
    assert np.array_equal(result.features, kept[0])
    assert np.array_equal(result.scores["gesture"], kept[1])
    assert (result.features.dtype, result.scores["gesture"].shape, result.scores["hand"].shape) \
        == (np.float32, (1, 4), (1, 2))
    assert engine.state_bytes > 0


@pytest.mark.parametrize(("shape", "dtype", "slots", "named"), [
    ((1, 40, 57, 3), "u1", [0], r"\(1, 40, 57, 3\)"),
    ((1, 40, 56, 3), "f4", [0], "float32"),
    ((2, 40, 56, 3), "u1", [0], r"\(2, 40, 56, 3\)"),
    ((1, 40, 56, 3), "u1", [2], "slot 2"),
    ((1, 40, 56, 3), "u1", [-1], "slot -1"),
    ((2, 40, 56, 3), "u1", [1, 1], r"slots \[1, 1\]"),
    ((1, 40, 56, 3), "u1", [0.5], "slot 0.5"),
    ((1, 40, 56, 3), "u1", ["0"], "slot '0'"),
    ((1, 40, 56), "u1", [0], r"\(1, 40, 56\)"),
])
def test_a_wrong_step_is_refused(make_engine: Callable[..., Engine], shape: tuple[int, ...], dtype: str,
                                 slots: list[int], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        make_engine(slots=2).step(np.zeros(shape, dtype), slots)


def test_slots_that_are_no_slots_cannot_be_reset_and_lists_are_no_frames(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(slots=2)
    for slots, named in (([2], "slot 2"), ([-1], "slot -1"), ([0, 0], r"slots \[0, 0\]")):
        with pytest.raises(EngineError, match=named):
            engine.reset(slots)
    with pytest.raises(EngineError, match="type list"):
        engine.step([[[[0, 0, 0]]]], [0])  # type: ignore[arg-type]


def test_a_step_of_nobody_changes_nobody(make_engine: Callable[..., Engine], frames: np.ndarray) -> None:
    engine = make_engine(slots=2)
    wanted = run_clip(engine, frames[:3]).scores["gesture"]
    engine.reset([0])
    for frame, scores in zip(frames[:3], wanted, strict=True):
        nobody = engine.step(frames[:0], [])
        assert (len(nobody.features), nobody.scores["gesture"].shape) == (0, (0, len(LABELS)))
        np.testing.assert_allclose(engine.step(frame[None], [np.int64(0)]).scores["gesture"][0], scores, atol=1e-6)


def test_a_closed_engine_says_so(model: Model, frames: np.ndarray) -> None:
    engine = engines.compile(model, "openvino", precision="f32")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.step(frames[:1], [0])


@pytest.mark.parametrize(("name", "precision", "slots", "error", "named"), [
    ("trt", None, 1, UsageError, "tensorrt, inductor, openvino, eager"),
    ("inductor", "bf16", 1, EngineError, "'bf16'"),
    ("onnx", None, 1, UsageError, "'onnx'"),
    ("openvino", "int4", 1, EngineError, "'int4'"),
    ("eager", "bf16", 1, EngineError, "'bf16'"),
    ("auto", None, 0, UsageError, "0 slots"),
])
def test_what_cannot_be_built_is_refused_by_name(model: Model, name: str, precision: str | None, slots: int,
                                                 error: type[GatestreamError], named: str) -> None:
    with pytest.raises(error, match=named):
        engines.compile(model, name, slots=slots, precision=precision)


def test_compiled_engines_refuse_a_bidirectional_network(tmp_path: Path, model: Model,
                                                         bidirectional_model: Model) -> None:
    file = engines.export(model, "openvino", tmp_path / "causal.engine")
    for name in ("openvino", file):
        with pytest.raises(EngineError, match=r"bidirectional.*--engine eager"):
            engines.compile(bidirectional_model, name)
    with pytest.raises(EngineError, match="bidirectional"):
        engines.export(bidirectional_model, "openvino", tmp_path / "other.engine")
    with pytest.raises(EngineError, match="bidirectional"):
        EagerEngine(bidirectional_model.network, bidirectional_model.contract, 1)


def test_auto_takes_openvino_and_falls_back_to_eager_with_a_message(
        model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert engines.compile(model).name == "openvino"

    def refuse(*_: object) -> Engine:
        raise EngineError("no such device", "a device", "buy one")
    monkeypatch.setattr(openvino_engine, "BACKEND", replace(openvino_engine.BACKEND, open=refuse))
    with caplog.at_level(logging.WARNING):
        assert engines.compile(model).name == "eager"
    assert "no such device" in caplog.text


def test_auto_takes_a_gpu_where_there_is_one_that_works(
        model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uncompiled: None) -> None:
    monkeypatch.setattr(inductor_engine, "has_gpu", lambda: True)
    monkeypatch.setattr(backend_module, "probe_clip", lambda contract: probe_clip(contract, 3))
    assert engines.compile(model, precision="f32").name == "inductor"
    monkeypatch.setattr(backend_module, "compare", lambda *_: Parity(0.5, 0, 0))
    with caplog.at_level(logging.WARNING):
        assert engines.compile(model, precision="f32").name == "openvino"
    assert "off by" in caplog.text
    with pytest.raises(EngineError, match="off by"):
        engines.compile(model, "inductor")


def test_a_compiled_step_that_fails_moves_no_camera(model: Model, frames: np.ndarray, uncompiled: None,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compile_step(model, 3, "f32", "cpu", sizes=[1, 2])
    wanted = run_clip(engines.compile(model, "eager"), frames[:3]).scores["gesture"]
    engine.step(frames[[0, 0, 0]], [0, 1, 2])
    steps, runs = engine._steps, []

    def fail_at_the_second(*inputs: torch.Tensor) -> Any:
        runs.append(len(inputs))
        if len(runs) == 2:
            raise RuntimeError("out of memory")
        return steps[len(inputs[0])](*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_steps", dict.fromkeys(steps, fail_at_the_second))
        with pytest.raises(EngineError, match="out of memory"):
            engine.step(frames[[1, 1, 1]], [0, 1, 2])
    for t in (1, 2):
        scores = engine.step(frames[[t, t, t]], [0, 1, 2]).scores["gesture"]
        assert np.allclose(scores, np.stack([wanted[t]] * 3), atol=1e-3)


def test_torch_traces_the_whole_inductor_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tracer but without the code generator, which takes minutes on a processor."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **how: real(step, backend="aot_eager", **how))
    monkeypatch.setattr(backend_module, "probe_clip", lambda contract: probe_clip(contract, 3))
    for seed in (0, 3):  # two models of one architecture in one process: code may be shared, weights not
        model = make_model(tmp_path, "gsf-resnet18", seed=seed, sites=["layer4_0"])
        engine = engines.compile(model, "inductor", slots=2)
        frames = probe_clip(model.contract, 12)
        wanted = run_clip(engines.compile(model, "eager"), frames)
        assert engine.name == "inductor"
        assert np.abs(wanted.scores["gesture"] - wanted.scores["gesture"][0]).max() > 0.1
        got = run_clip(engine, frames, slot=1)
        assert probability_difference(model.contract, wanted.scores, got.scores) <= 1e-3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_and_waits_for_nothing(make_engine: Callable[..., Engine], frames: np.ndarray) -> None:
    engine = make_engine()
    engine.step(frames[:1], [0])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for use in (lambda: engine.step(frames[:1], [0]), lambda: engine.reset([0])):
                try:
                    use()
                except EngineError as error:
                    os.write(writing, f"{error}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], 20)[0], "the child hangs"
        with os.fdopen(reading, "rb") as said:
            lines = said.read().decode().splitlines()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(lines) == 2
    assert all(f"process {child} using an engine of process {os.getpid()}" in line for line in lines)
    engine.step(frames[1:2], [0])
