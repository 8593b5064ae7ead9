"""TensorRT without a GPU or a compiler: all around the builder. What it builds: test_tensorrt_build.py, tests/gpu."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeTorchTensorRT
from small_models import make_model
from torch import Tensor

import engines
import engines.runtime.backend as backend_module
import engines.runtime.registry as registry
import engines.runtime.tensorrt as tensorrt_engine
from engines.bench import doctor as doctor_module
from engines.errors import EngineError, GatestreamError, UsageError
from engines.model.file import Model
from engines.runtime import cache
from engines.runtime.backend import Spec
from engines.runtime.parity import Parity, compare, probe_clip, run_clip

EXPORT = torch.export.export
UNAVAILABLE_REASON = registry.unavailable_reason


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One that half precision suits: small random MobileNets lose a tenth of what they compute."""
    return make_model(tmp_path_factory.mktemp("model"), "gsf-resnet18", sites=["layer4_0"], readout_width=8)


@pytest.fixture
def library(fake_tensorrt: FakeTorchTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTorchTensorRT:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path / "cache"))
    return fake_tensorrt


def test_it_is_built_once_for_each_batch_and_loaded_ever_after(library: FakeTorchTensorRT, model: Model,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", EXPORT)
    frames = probe_clip(model.contract, 6)
    wanted = run_clip(engines.compile(model, "eager"), frames)
    for _ in range(2):
        engine = engines.compile(model, "tensorrt", slots=3)
        assert (engine.name, engine.precision) == ("tensorrt", "f16")
        assert compare(model.contract, wanted, run_clip(engine, frames, slot=1)).holds
    assert len(library.builds) == 3
    for batch, settings in zip((1, 2, 3), library.builds, strict=True):
        assert settings["require_full_compilation"]
        assert settings["use_explicit_typing"]
        assert {(len(tensor), tensor.dtype) for tensor in settings["arg_inputs"]} == {(batch, torch.float16)}
    (entry,) = cache.entries()
    assert Parity(**entry.facts["parity"]["f16"]).holds


def test_each_batch_is_compared_with_eager(library: FakeTorchTensorRT, model: Model,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def note(engine: Any, frames: np.ndarray, slot: int = 0, company: Any = ()) -> Any:
        if engine.name != "eager":
            compared.append(1 + len(company))
        return run_clip(engine, frames, slot, company)

    monkeypatch.setattr(backend_module, "run_clip", note)
    answers = iter([Parity(0, 0, 0), Parity(0, 0, 0), Parity(0, 0.2, 0)])  # one size is off, and so the precision
    monkeypatch.setattr(backend_module, "compare", lambda *_: next(answers, Parity(0, 0, 0)))
    engine = engines.compile(model, "tensorrt", slots=3)
    assert compared == [1, 2, 3, 1, 2, 3]
    assert engine.precision == "f32"


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


@pytest.mark.parametrize("first", [None, "f16"])
def test_what_parity_chose_and_the_same_by_name_are_one_entry(library: FakeTorchTensorRT, model: Model,
                                                             first: str | None) -> None:
    for precision in (first, "f16", None):
        assert engines.compile(model, "tensorrt", precision=precision).precision == "f16"
    assert len(library.builds) == len(cache.entries()) == 1
    engines.compile(model, "tensorrt", precision="f32")
    assert len(library.builds) == len(cache.entries()) == 2


@pytest.mark.parametrize("changed", ["device GPU and not other", "driver 1.0 and not other", "torch-tensorrt 2.13.0"])
def test_an_engine_of_another_card_driver_or_library_is_built_again_and_that_is_said(
        library: FakeTorchTensorRT, model: Model, changed: str, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    engines.compile(model, "tensorrt", precision="f32")
    monkeypatch.setattr(library, "__version__", "9.9" if "2.13" in changed else library.__version__)
    monkeypatch.setattr(tensorrt_engine, "_gpu", lambda: ("other" if "device" in changed else "GPU",
                                                          "other" if "driver" in changed else "1.0"))
    with caplog.at_level(logging.WARNING):
        engines.compile(model, "tensorrt", precision="f32")
    assert len(library.builds) == len(cache.entries()) == 2
    assert changed in caplog.text
    assert "it is left alone" in caplog.text


def test_another_key_builds_again(library: FakeTorchTensorRT, model: Model) -> None:
    for slots in (1, 2, 1, 2):
        engines.compile(model, "tensorrt", slots=slots, precision="f32")
    assert len(cache.entries()) == 2
    assert len(library.builds) == 1 + 2


def test_a_damaged_entry_is_built_again_and_never_loaded(library: FakeTorchTensorRT, model: Model,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    engines.compile(model, "tensorrt", precision="f32")
    (entry,) = cache.entries()
    with (entry.folder / tensorrt_engine.program(1)).open("ab") as file:
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
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: None)
    monkeypatch.setattr(tensorrt_engine, "has_gpu", lambda: False)
    with pytest.raises(EngineError, match=r"neither torch-tensorrt nor torch-tensorrt-rtx, no NVIDIA GPU.*"
                                          r"gatestream\[tensorrt\].*gatestream\[tensorrt-rtx\]"):
        engines.compile(model, "tensorrt")
    with pytest.raises(EngineError, match=r"could carry code.*--engine tensorrt"):
        engines.export(model, "tensorrt", tmp_path / "step.engine")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and a module torch_tensorrt of some kind."""
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt_engine, "has_gpu", lambda: True)


@pytest.mark.parametrize(("installed", "module"), tensorrt_engine.LIBRARIES.items())
def test_whichever_library_is_there_is_named(library: FakeTorchTensorRT, model: Model, on_a_gpu: None, installed: str,
                                             module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engine, "_distribution", lambda: installed)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(__version__="1.6.1"))
    named = f"{installed} 2.13.0, {module} 1.6.1, torch {torch.__version__}"
    assert tensorrt_engine.BACKEND.cache_key(Spec(model))["library"] == named
    assert doctor_module._tensorrt() == (True, named)


@pytest.mark.parametrize(("missing", "installed", "extra"), [
    ("torch_tensorrt", "torch-tensorrt", "tensorrt"),          # of another torch or CUDA: its libraries do not load
    ("tensorrt", "torch-tensorrt", "tensorrt"),                # half installed
    ("tensorrt_rtx", "torch-tensorrt-rtx", "tensorrt-rtx"),
])
def test_what_is_there_and_does_not_work_is_said_and_passed_over(
        library: FakeTorchTensorRT, model: Model, on_a_gpu: None, missing: str, installed: str, extra: str,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(tensorrt_engine, "_distribution", lambda: installed)
    monkeypatch.setattr(registry, "unavailable_reason",
                        lambda name: UNAVAILABLE_REASON(name) if name == "tensorrt" else "not tried")
    said = rf"{installed} that cannot be loaded \(.*{missing}"
    with pytest.raises(EngineError, match=said):
        engines.compile(model, "tensorrt")
    with caplog.at_level(logging.WARNING):
        assert engines.compile(model).name == "eager"
    assert "trying the next best" in caplog.text
    assert caplog.text.count(installed + " that cannot") == 1
    with pytest.raises(EngineError, match=rf"{said}.*for torch {torch.__version__.split('+')[0]}.*\[{extra}\]"):
        doctor_module._tensorrt()


def test_auto_takes_tensorrt_first(library: FakeTorchTensorRT, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    assert engines.compile(model).name == "tensorrt"
    library.error = RuntimeError("no kernel image")
    with caplog.at_level(logging.WARNING):
        assert engines.compile(model, slots=2).name == "eager"
    assert "no kernel image" in caplog.text
