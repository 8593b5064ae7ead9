"""Laws of the ONNX file: in a runtime that knows nothing of this library, it equals eager, its state in the open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import SIZE_HW, make_model

import engines
from engines.errors import EngineError, SinkError
from engines.model.contract import Contract
from engines.model.file import Model
from engines.runtime.parity import TOLERANCE, compare, probe_clip, run_clip

NEEDED = "needs the packages of gatestream[onnx]"
onnx = pytest.importorskip("onnx", reason=NEEDED)
pytest.importorskip("onnxscript", reason=NEEDED)
onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDED)
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
    wanted = run_clip(eager, frames)
    assert np.abs(wanted["gesture"] - wanted["gesture"][0]).max() > 0.1  # the clip moves the scores
    got = run_named(session, frames)
    assert compare(model.contract, wanted, got) <= 1e-3
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
    assert float(metadata[onnx_engine.AGREEMENT]) <= TOLERANCE


def test_the_file_opens_as_an_engine_of_its_model_only(exported: tuple[Model, Path], tmp_path: Path) -> None:
    model, file = exported
    engine = engines.compile(model, file, slots=2)
    frames = probe_clip(model.contract, 6)
    assert (engine.name, engine.precision, engine.slots) == ("onnx", "f32", 2)
    eager = engines.compile(model, "eager")
    assert compare(model.contract, run_clip(eager, frames), run_clip(engine, frames, slot=1)) <= 1e-3
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
    monkeypatch.setattr(onnx_engine, "compare", lambda *_: 0.5)
    with pytest.raises(EngineError, match="off by"):
        engines.export(small, "onnx", tmp_path / "off.onnx")
    assert not [path for path in tmp_path.iterdir() if "off.onnx" in path.name]


@pytest.mark.parametrize(("network", "engine_out", "error", "named"), [
    ({}, "missing/step.onnx", SinkError, "missing"),
    ({"causal": False}, "step.onnx", EngineError, "bidirectional"),
])
def test_what_cannot_be_exported_is_refused(tmp_path: Path, network: dict[str, Any], engine_out: str,
                                            error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        engines.export(make_model(tmp_path, "gsm-mobilenetv2", sites=["features_5"], **network), "onnx",
                       tmp_path / engine_out)


def test_a_missing_package_is_named_with_its_cure(small: Model, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match=r"onnxscript.*gatestream\[onnx\]"):
        engines.export(small, "onnx", tmp_path / "step.onnx")
