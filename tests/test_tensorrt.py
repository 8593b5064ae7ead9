"""TensorRT without a GPU: all around the builder. What it builds is held by `test_tensorrt_rtx.py`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeTorchTensorRT
from small_models import make_model
from torch import Tensor

import engines
import engines.runtime.backend as backend_module
import engines.runtime.tensorrt as tensorrt_engine
from engines.errors import EngineError, GatestreamError, UsageError
from engines.model.file import Model
from engines.runtime import cache
from engines.runtime.backend import Spec
from engines.runtime.parity import Parity, compare, probe_clip, run_clip

EXPORT = torch.export.export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One that half precision suits: small random MobileNets lose a tenth of what they compute."""
    return make_model(tmp_path_factory.mktemp("model"), "gsf-resnet18", sites=["layer4_0"], readout_width=8)


@pytest.fixture
def library(fake_tensorrt: FakeTorchTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTorchTensorRT:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path / "cache"))
    return fake_tensorrt


def test_it_is_built_once_for_its_batch_and_loaded_ever_after(library: FakeTorchTensorRT, model: Model,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", EXPORT)
    frames = probe_clip(model.contract, 6)
    wanted = run_clip(engines.compile(model, "eager"), frames)
    for _ in range(2):
        engine = engines.compile(model, "tensorrt", slots=3)
        assert (engine.name, engine.precision) == ("tensorrt", "f16")
        assert compare(model.contract, wanted, run_clip(engine, frames, slot=1)).holds
    (settings,) = library.builds
    assert settings["require_full_compilation"]
    assert settings["use_explicit_typing"]
    assert {(len(tensor), tensor.dtype) for tensor in settings["arg_inputs"]} == {(3, torch.float16)}
    (entry,) = cache.entries()
    assert Parity(**entry.facts["parity"]["f16"]).holds


@pytest.mark.parametrize("change", ["slots", "precision", "gpu", "driver", "library", "code"])
def test_whatever_it_depends_on_is_in_its_key(library: FakeTorchTensorRT, model: Model, change: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    before = tensorrt_engine.BACKEND.cache_key(Spec(model, 1, "f32"))
    monkeypatch.setattr(tensorrt_engine, "_gpu", lambda: ("other GPU" if change == "gpu" else "GPU",
                                                          "2.0" if change == "driver" else "1.0"))
    monkeypatch.setattr(library, "__version__", "9.9" if change == "library" else library.__version__)
    if change == "code":
        monkeypatch.setattr(backend_module, "source_hash", lambda *_: "new")
    after = tensorrt_engine.BACKEND.cache_key(Spec(model, 2 if change == "slots" else 1,
                                                 "f16" if change == "precision" else "f32"))
    assert sum(before[part] != after[part] for part in before) == 1


def test_another_key_builds_again(library: FakeTorchTensorRT, model: Model) -> None:
    for slots in (1, 2, 1, 2):
        engines.compile(model, "tensorrt", slots=slots, precision="f32")
    assert len(library.builds) == len(cache.entries()) == 2


def test_a_damaged_entry_is_built_again_and_never_loaded(library: FakeTorchTensorRT, model: Model,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    engines.compile(model, "tensorrt", precision="f32")
    (entry,) = cache.entries()
    with (entry.folder / tensorrt_engine.PROGRAM).open("ab") as file:
        file.write(b"x")
    loads = library.loads
    with caplog.at_level(logging.WARNING):
        engines.compile(model, "tensorrt", precision="f32")
    assert "damaged" in caplog.text
    assert len(library.builds) == 2
    assert library.loads == loads + 2  # what was just built, to measure it, and the entry


@pytest.mark.parametrize("folder", ["cache", "entry"])
def test_what_others_can_write_is_not_loaded(library: FakeTorchTensorRT, model: Model, folder: str) -> None:
    engines.compile(model, "tensorrt", precision="f32")
    (entry,) = cache.entries()
    (cache.cache_dir() if folder == "cache" else entry.folder).chmod(0o777)
    loads = library.loads
    with pytest.raises(EngineError, match=r"other users.*chmod go-w"):
        engines.compile(model, "tensorrt", precision="f32")
    assert library.loads == loads


def test_the_fastest_precision_that_agrees_is_taken(library: FakeTorchTensorRT, model: Model,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0.5, 0.001])
    monkeypatch.setattr(backend_module, "compare", lambda *_: Parity(next(answers), 0, 0))
    assert engines.compile(model, "tensorrt").precision == "f32"
    monkeypatch.setattr(backend_module, "compare", lambda *_: Parity(0.5, 0, 0))
    with pytest.raises(EngineError, match="TensorRT scores that are off by"):
        engines.compile(model, "tensorrt", slots=2)


@pytest.mark.parametrize(("fault", "named"), [
    ({"left": ["_run_on_gpu_1"]}, r"only a part of gsf-resnet18 \(left: _run_on_gpu_1\)"),
    ({"left": None}, r"only a part of gsf-resnet18 \(left: all\)"),
    ({"error": AssertionError("model is not fully supported")}, "failing to build.*not fully supported"),
    ({"unreadable": True}, "refusing a built engine"),
])
def test_what_cannot_be_built_whole_is_refused(library: FakeTorchTensorRT, model: Model, fault: dict[str, Any],
                                               named: str) -> None:
    vars(library).update(fault)
    with pytest.raises(EngineError, match=named):
        engines.compile(model, "tensorrt", precision="f32")
    assert not cache.entries()


@pytest.mark.parametrize(("precision", "frames", "error", "named"), [
    ("bf16", None, EngineError, "'bf16' for TensorRT"),
    ("f16", np.zeros((2, 40, 56, 3), np.uint8), UsageError, "int8 with them"),
    ("int8", np.zeros((2, 40, 57, 3), np.uint8), UsageError, r"\(2, 40, 57, 3\)"),
    ("int8", np.zeros((2, 40, 56, 3), np.float32), UsageError, "float32"),
    ("int8", np.zeros((0, 40, 56, 3), np.uint8), UsageError, r"\(0, 40, 56, 3\)"),
])
def test_precisions_and_calibration_are_checked(library: FakeTorchTensorRT, model: Model, precision: str,
                                                frames: np.ndarray | None, error: type[GatestreamError],
                                                named: str) -> None:
    with pytest.raises(error, match=named):
        engines.compile(model, "tensorrt", precision=precision, calibration_u8=frames)
    assert not library.builds


def test_int8_says_what_calibrates_it(library: FakeTorchTensorRT, model: Model,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    with pytest.raises(EngineError, match=r"nvidia-modelopt.*gatestream\[int8\]"):
        engines.compile(model, "tensorrt", precision="int8")


def test_int8_is_calibrated_with_state_on_the_frames_given(library: FakeTorchTensorRT, model: Model,
                                                           fake_modelopt: list[Tensor]) -> None:
    frames = probe_clip(model.contract, 4)
    engine = engines.compile(model, "tensorrt", precision="int8", calibration_u8=frames)
    wanted = run_clip(engines.compile(model, "eager"), frames).scores["gesture"]
    assert np.allclose(torch.cat(fake_modelopt).float().numpy(), wanted, atol=0.1)  # f16, and logits of ten
    assert engine.precision == "int8"
    for other in (frames[::-1], None):
        engines.compile(model, "tensorrt", precision="int8", calibration_u8=other)
    assert len(library.builds) == 3


def test_a_machine_without_it_is_told_what_to_install(model: Model, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: None if "tensorrt" in name else object())
    monkeypatch.setattr(tensorrt_engine, "has_gpu", lambda: False)
    with pytest.raises(EngineError, match=r"no torch_tensorrt, no tensorrt, no NVIDIA GPU.*gatestream\[tensorrt\]"):
        engines.compile(model, "tensorrt")
    with pytest.raises(EngineError, match=r"could carry code.*--engine tensorrt"):
        engines.export(model, "tensorrt", tmp_path / "step.engine")


def test_auto_takes_tensorrt_first(library: FakeTorchTensorRT, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    assert engines.compile(model).name == "tensorrt"
    library.error = RuntimeError("no kernel image")
    with caplog.at_level(logging.WARNING):
        assert engines.compile(model, slots=2).name == "eager"
    assert "no kernel image" in caplog.text


def test_what_is_there_but_does_not_work_is_said(model: Model, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(EngineError, match=r"torch-tensorrt that cannot be loaded.*gatestream\[tensorrt\]"):
        tensorrt_engine.open_engine(Spec(model), "f16", tmp_path, {})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError, match=r"no answer from the GPU.*nvidia-smi must work"):
        tensorrt_engine._gpu()
