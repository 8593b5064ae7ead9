"""Laws of the ONNX file: in a runtime that knows nothing of this library, it equals eager, its state in the open."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SIZE_HW, make_model

import engines
from engines.errors import EngineError, SinkError, UsageError
from engines.model.contract import Contract
from engines.model.file import Model
from engines.model.preprocess import normalise
from engines.networks.config import FusionRule, tensor_shapes
from engines.runtime.backend import Spec
from engines.runtime.parity import TOLERANCE, Parity, probability_difference, probe_clip, run_clip

NEEDED = "needs the packages of gatestream[onnx]"
onnx = pytest.importorskip("onnx", reason=NEEDED)
pytest.importorskip("onnxscript", reason=NEEDED)
onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDED)
import engines.runtime.backend as backend_module  # noqa: E402
import engines.runtime.onnx as onnx_engine  # noqa: E402 - only where its packages are

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("gsf-mobilenetv2", "RGB", {"readout_width": 16, "gate_ratio": 100}),
    ("stsm-mobilenetv2", "BGR", {"sites": ["features_9_input", "features_13_input"]}),
]


@pytest.fixture(scope="module", params=CASES, ids=[case[0] for case in CASES])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    architecture, colour, options = request.param
    folder = tmp_path_factory.mktemp("onnx")
    model = make_model(folder, architecture, colour=colour, **options)
    return model, engines.export(model, "onnx", folder / "step.onnx")


@pytest.mark.parametrize(("batch", "precision", "cameras"), [(3, "f16", 2), (2, "f32", 5)])
def test_a_batch_and_half_precision_change_nothing_for_a_caller(tmp_path: Path, batch: int, precision: str,
                                                                cameras: int) -> None:
    """Cameras fill a batch up or take several; one has frames that the others do not."""
    model = make_model(tmp_path, "gsf-resnet18", sites=["layer4_0"], readout_width=8, size_hw=(32, 32))
    file = engines.export(model, "onnx", tmp_path / "step.onnx", precision=precision, batch=batch)
    engine, frames = engines.compile(model, file, slots=cameras), probe_clip(model.contract, 5)
    assert engine.precision == precision
    types = {port.type for port in onnxruntime.InferenceSession(file).get_inputs()}
    assert types == {"tensor(uint8)", "tensor(float)"}
    weights = {one.data_type for one in onnx.load(file).graph.initializer if one.dims}
    assert (onnx.TensorProto.FLOAT16 in weights) == (precision == "f16")
    wanted = run_clip(engines.compile(model, "eager"), frames).scores
    rows = [engine.step(np.stack([frame, *[frame[::-1]] * (cameras - 1)]), range(cameras)) for frame in frames]
    got = {head: np.stack([row.scores[head][0] for row in rows]) for head in wanted}
    assert probability_difference(model.contract, wanted, got) <= (1e-3 if precision == "f32" else TOLERANCE)


@pytest.mark.parametrize("architecture", ["gsf-resnet18", "gsm-mobilenetv2"])
def test_whole_clips_of_a_bidirectional_model_equal_clip_scores(tmp_path: Path, architecture: str) -> None:
    model = make_model(tmp_path, architecture, causal=False, segments=4, size_hw=(64, 64))
    file = engines.export(model, "onnx", tmp_path / "clip.onnx", batch=2)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (port,), clips_u8 = session.get_inputs(), probe_clip(model.contract, 8).reshape(2, 4, 64, 64, 3)
    assert (port.name, port.shape, port.type) == ("frames", [2, 4, 64, 64, 3], "tensor(uint8)")
    got = dict(zip([out.name for out in session.get_outputs()], session.run(None, {"frames": clips_u8}), strict=True))
    frames = torch.from_numpy(np.stack([normalise(clip, model.contract) for clip in clips_u8]))
    with torch.no_grad():
        wanted = engines.clip_scores(model.network, frames)
    for head, logits in wanted.items():
        assert np.allclose(got[f"scores.{head}"], logits.numpy(), atol=1e-3 * float(logits.abs().max()))
    with pytest.raises(EngineError, match="bidirectional"):
        engines.compile(model, file)


@pytest.mark.parametrize("rule", [{}, {"relate": "bigru"}, {"relate": "none", "keep": 1}])
def test_a_clip_fusion_equals_the_live_one(tmp_path: Path, rule: dict[str, Any]) -> None:
    plain = make_model(tmp_path, "tsn-mobilenetv2")
    width, rng = plain.network.width, np.random.default_rng(0)
    fused = Model(plain.contract.model_copy(update={"fusion": FusionRule(**rule)}), plain.tensors | {
        name: rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        for name, shape in tensor_shapes(FusionRule(**rule), width).items()}, plain.digest, plain.path)
    file = engines.export(fused, "onnx", tmp_path / "fusion.onnx", fusion=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    C = fused.contract.window_clips
    clips_CD, counts_C = rng.normal(0, 1, (C, width)).astype(np.float32), np.arange(8, 8 - C, -1)
    got = dict(zip([out.name for out in session.get_outputs()], session.run(
        None, {"clips": clips_CD[None], "counts": counts_C[None].astype(np.float32)}), strict=True))
    assert fused.clip_fusion is not None
    descriptor_D, gates_C = fused.clip_fusion.fuse(clips_CD, counts_C)
    assert np.allclose(got["features"][0], descriptor_D, atol=1e-5)
    assert np.allclose(got["gates"][0], gates_C, atol=1e-5)
    for head, logits_K in fused.head_logits(descriptor_D).items():
        assert np.allclose(got[f"scores.{head}"][0], logits_K, atol=1e-4)


def test_a_file_that_was_changed_is_refused_by_name(exported: tuple[Model, Path], tmp_path: Path) -> None:
    model, file = exported
    written, edited = onnx.load(file), tmp_path / "edited.onnx"
    onnx.save(written, edited)
    engines.compile(model, edited)  # written again as it was
    next(one for one in written.graph.initializer if len(one.dims) == 4).raw_data = b"\0" * 4 * int(np.prod(next(
        one for one in written.graph.initializer if len(one.dims) == 4).dims))
    onnx.save(written, edited)
    with pytest.raises(EngineError, match=r"edited\.onnx \(changed after it was written.*export it again"):
        engines.compile(model, edited)


def run_named(session: Any, frames: np.ndarray) -> dict[str, np.ndarray]:
    """What an outsider does: zeros first, then each `.out` into its `.in`."""
    state = {port.name: np.zeros(port.shape, np.float32) for port in session.get_inputs() if port.name != "image"}
    names = [port.name for port in session.get_outputs()]
    rows = []
    for frame in frames:
        out = dict(zip(names, session.run(None, {"image": frame[None], **state}), strict=True))
        state = {name: out[name.replace(".in", ".out")] for name in state}
        rows.append(out)
    return {head: np.concatenate([row[f"scores.{head}"] for row in rows]) for head in ("gesture", "hand")}


def test_a_runtime_that_knows_names_only_equals_eager(exported: tuple[Model, Path]) -> None:
    model, file = exported
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    frames = probe_clip(model.contract, 16)
    eager = engines.compile(model, "eager")
    wanted = run_clip(eager, frames).scores
    assert np.abs(wanted["gesture"] - wanted["gesture"][0]).max() > 0.1  # the clip moves the scores
    got = run_named(session, frames)
    assert probability_difference(model.contract, wanted, got) <= 1e-3
    assert np.array_equal(run_named(session, frames)["gesture"], got["gesture"])  # zeros are a new camera
    memoryless = np.concatenate([run_named(session, frame[None])["gesture"] for frame in frames])
    assert not np.allclose(memoryless, wanted["gesture"], atol=1e-2)  # the state is what makes them equal


def test_ports_and_metadata_say_all_a_caller_needs(exported: tuple[Model, Path]) -> None:
    model, file = exported
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = {port.name: (port.shape, port.type) for port in session.get_inputs()}
    outputs = {port.name: (port.shape, port.type) for port in session.get_outputs()}
    assert inputs.pop("image") == ([1, *SIZE_HW, 3], "tensor(uint8)")
    width = model.network.width
    assert [outputs.pop(name) for name in ("features", "scores.gesture", "scores.hand")] \
        == [([1, size], "tensor(float)") for size in (width, 4, 2)]
    assert {name.removesuffix(".in"): port for name, port in inputs.items()} \
        == {name.removesuffix(".out"): port for name, port in outputs.items()}
    assert {name.split(".")[1] for name in inputs} \
        == {*model.network.temporal, *(["memory"] if model.network.memory else [])}
    metadata = session.get_modelmeta().custom_metadata_map
    assert Contract.model_validate_json(metadata[onnx_engine.CONTRACT]) == model.contract
    assert metadata[onnx_engine.MODEL] == model.digest
    assert float(metadata[onnx_engine.PARITY]) <= TOLERANCE


def test_the_file_opens_as_an_engine_of_its_model_only(exported: tuple[Model, Path], tmp_path: Path) -> None:
    model, file = exported
    engine = engines.compile(model, file, slots=2)
    frames = probe_clip(model.contract, 6)
    assert (engine.name, engine.precision, engine.slots) == ("onnx", "f32", 2)
    eager = engines.compile(model, "eager")
    assert probability_difference(model.contract, run_clip(eager, frames).scores,
                                  run_clip(engine, frames, slot=1).scores) <= 1e-3
    with pytest.raises(EngineError, match="made for model"):
        engines.compile(make_model(tmp_path, seed=5), file)
    with pytest.raises(EngineError, match="'bf16'"):
        engines.compile(model, file, precision="bf16")
    program = (f"import sys, engines; engines.compile(engines.load({str(model.path)!r}), {str(file)!r}); "
               "assert not {'torch', 'onnx', 'onnxscript'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=Path(__file__).parents[1])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EngineError, match=r"damaged\.onnx"):
        engines.compile(model, damaged)


@pytest.fixture
def small(tmp_path: Path) -> Model:
    return make_model(tmp_path, "tsn-mobilenetv2")


def test_a_file_that_does_not_agree_is_never_written(small: Model, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "compare", lambda *_: Parity(0.5, 0, 0))
    with pytest.raises(EngineError, match="off by"):
        engines.export(small, "onnx", tmp_path / "off.onnx")
    assert not [path for path in tmp_path.iterdir() if "off.onnx" in path.name]


@pytest.mark.parametrize(("how", "engine_out", "error", "named"), [
    ({}, "missing/step.onnx", SinkError, "missing"),
    ({"precision": "bf16"}, "step.onnx", EngineError, "'bf16'"),
    ({"batch": 0}, "step.onnx", UsageError, "batch of 0"),
    ({"fusion": True}, "step.onnx", UsageError, "clip fusion of test, which has none.*--fusion"),
])
def test_what_cannot_be_exported_is_refused(small: Model, tmp_path: Path, how: dict[str, Any], engine_out: str,
                                            error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        engines.export(small, "onnx", tmp_path / engine_out, **how)


@pytest.mark.parametrize("how", [{"batch": 2}, {"fusion": True}])
def test_only_onnx_has_batches_and_clip_fusions(small: Model, tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--engine onnx"):
        engines.export(small, "openvino", tmp_path / "step.engine", **how)


def test_a_missing_package_is_named_with_its_cure(small: Model, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match=r"onnxscript.*gatestream\[onnx\]"):
        engines.export(small, "onnx", tmp_path / "step.onnx")


def foreign_file(file: Path, **changes: Any) -> Path:
    """A file that our own export never writes: its ports are those of `changes`, and it gives constants."""
    ports = {"image": [1, *SIZE_HW, 3], "features": [1, 8], "scores.gesture": [1, 4], "scores.hand": [1, 2], **changes}
    floats, helper = onnx.TensorProto.FLOAT, onnx.helper
    inputs = [helper.make_tensor_value_info(name, floats, shape) for name, shape in ports.items()
              if name == "image" or name.endswith(".in")]
    outputs = [helper.make_tensor_value_info(name, floats, shape) for name, shape in ports.items()
               if shape is not None and name != "image" and not name.endswith(".in")]
    nodes = [helper.make_node("Identity", ["state.a.in"], [port.name]) if port.name == "state.a.out" else
             helper.make_node("Constant", [], [port.name], value=onnx.numpy_helper.from_array(
                 np.zeros(ports[port.name], np.float32))) for port in outputs]
    model = helper.make_model(helper.make_graph(nodes, "foreign", inputs, outputs), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(("changes", "named"), [
    ({"image": ["batch", "height", "width", 3], "features": None, "scores.gesture": None}, "without features"),
    ({"state.a.in": ["batch", 8], "state.a.out": ["batch", 8]}, r"state\.a\.in has the shape \['batch', 8\]"),
    ({"features": [8]}, r"features has the shape \[8\]"),
    ({"state.a.in": [1, 8]}, r"without state\.a\.out"),
    ({}, "made for model None"),
])
def test_a_foreign_file_is_refused_by_what_is_foreign_in_it(small: Model, tmp_path: Path, changes: dict[str, Any],
                                                            named: str) -> None:
    with pytest.raises(EngineError, match=rf"foreign\.onnx.*{named}"):
        engines.compile(small, foreign_file(tmp_path / "foreign.onnx", **changes))


def test_a_step_that_fails_moves_no_camera(exported: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = exported
    engine, frames = engines.compile(model, file, slots=2), probe_clip(model.contract, 3)
    wanted = run_clip(engines.compile(model, file), frames).scores["gesture"]
    engine.step(frames[[0, 0]], [0, 1])
    run, runs = engine._run, []

    def fail_at_the_second(*how: Any) -> Any:
        runs.append(how)
        if len(runs) == 2:
            raise EngineError("a fault", "none", "try again")
        return run(*how)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", fail_at_the_second)
        with pytest.raises(EngineError, match="a fault"):
            engine.step(frames[[1, 1]], [0, 1])
    for t in (1, 2):
        assert np.array_equal(engine.step(frames[[t, t]], [0, 1]).scores["gesture"], np.stack([wanted[t]] * 2))


def test_an_export_leaves_torch_its_logger(small: Model, tmp_path: Path) -> None:
    logger = logging.getLogger("torch.onnx")
    logger.setLevel(logging.DEBUG)
    try:
        onnx_engine.build(Spec(small), "f32", tmp_path)
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(logging.NOTSET)


def test_onnx_runtime_reports_to_nobody(exported: tuple[Model, Path], tmp_path: Path) -> None:
    model, file = exported
    program = (f"import engines, os; engines.compile(engines.load({str(model.path)!r}), {str(file)!r}); "
               "assert 'ORT_DISABLE_TELEMETRY' not in os.environ")
    own = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=Path(__file__).parents[1],
                   env={**own, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    assert not list(tmp_path.rglob("*onnxruntime*"))
