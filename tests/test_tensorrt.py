"""TensorRT without a GPU: every network's step holds only what torch-tensorrt converts, and all around the builder.

The operators come from torch-tensorrt's source (tests/torch_tensorrt_operators.py). What it does to a graph before it
looks for converters is repeated here as far as torch alone can: the operators it has torch decompose are decomposed,
those it replaces and that occur here are replaced, assertions are dropped, and a max-pool whose indices nobody reads
is a plain one. Some converters look at a node's arguments too; those conditions are left to the GPU tests.
"""

from __future__ import annotations

import functools
import json
import logging
import operator
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeTorchTensorRT
from small_models import make_model
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._export.utils import _collect_all_valid_cia_ops_for_aten_namespace, _get_decomp_for_cia
from torch._ops import OpOverload

import engines
import engines.runtime.backend as backend_module
import engines.runtime.tensorrt as tensorrt_engine
from engines.errors import EngineError, GatestreamError, UsageError
from engines.model.file import Model
from engines.runtime import cache
from engines.runtime.backend import Spec
from engines.runtime.lowering import PixelStep
from engines.runtime.parity import Parity, compare, probe_clip, run_clip

CONVERTED = json.loads((Path(__file__).parent / "data" / "torch_tensorrt_converters.json").read_text())
SIZES_HW = {"mobilenetv2": (40, 56), "resnet18": (40, 56), "resnet50": (40, 56), "bninception": (64, 64),
            "inceptionv3": (75, 75)}
aten = torch.ops.aten
EXPORT = torch.export.export
REPLACED: dict[OpOverload, Callable[..., Tensor]] = {
    aten.alias.default: lambda x: x,
    aten.view.default: lambda x, size: aten._reshape_copy.default(x, size),
    aten._unsafe_view.default: lambda x, size: aten._reshape_copy.default(x, size),
}
DROPPED = {"aten._assert_tensor_metadata.default", "aten._assert_scalar.default"}


@functools.cache
def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    def named(name: str) -> Any:
        return functools.reduce(getattr, name.split("."), torch.ops)

    kept = {named(name) for name in CONVERTED["kept"]}
    table = dict(get_decompositions([named(name) for name in CONVERTED["decomposed"]]))
    table |= {op: _get_decomp_for_cia(op) for op in _collect_all_valid_cia_ops_for_aten_namespace() if op not in kept}
    return table | REPLACED


def operators(module: nn.Module, inputs: tuple[Tensor, ...]) -> set[str]:
    """Names of the operators that torch-tensorrt would look for converters of."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter uses what its own torch calls deprecated
        program = torch.export.export(module, inputs).run_decompositions(decompositions())
    found = set()
    for node in program.graph.nodes:
        if node.op == "call_function":
            name = str(node.target) if isinstance(node.target, OpOverload) else f"operator.{node.target.__name__}"
            if name == "aten.max_pool2d_with_indices.default" and all(
                    user.target is operator.getitem and user.args[1] == 0 for user in node.users):
                name = "aten.max_pool2d.default"
            found.add(name)
    return found - DROPPED


def foreign(module: nn.Module, inputs: tuple[Tensor, ...]) -> set[str]:
    """Those without a converter; a converter may be registered for all overloads at once."""
    listed = set(CONVERTED["operators"])
    return {name for name in operators(module, inputs) if not {name, name.rpartition(".")[0]} & listed}


def step_and_inputs(model: Model, batch: int = 2) -> tuple[PixelStep, tuple[Tensor, ...]]:
    step = PixelStep(model.network, model.contract)
    image = torch.zeros(1, *model.contract.input_size_hw, 3)
    return step, tuple(one.expand(batch, *one.shape[1:]).contiguous() for one in (image, *step.fresh_state()))


class Apart(nn.Module):
    """The temporal modules of a step without the backbone between them: site -> (frame, state) in."""

    def __init__(self, step: PixelStep) -> None:
        super().__init__()
        self.temporal = step.temporal

    def forward(self, seen: dict[str, tuple[Tensor, list[Tensor]]]) -> dict[str, Any]:
        return {site: self.temporal[site](*inputs) for site, inputs in seen.items()}


@pytest.mark.parametrize("backbone", SIZES_HW)
def test_every_operator_of_a_backbone_has_a_converter(tmp_path: Path, backbone: str) -> None:
    model = make_model(tmp_path, f"tsn-{backbone}", size_hw=SIZES_HW[backbone], readout_width=8)
    assert foreign(*step_and_inputs(model)) == set()


@pytest.mark.parametrize("backbone", SIZES_HW)
@pytest.mark.parametrize("temporal", ["tsm", "gsm", "gsf", "stsm"])
def test_every_operator_of_the_modules_has_a_converter(tmp_path: Path, temporal: str, backbone: str) -> None:
    """At each site of the backbone: how a module is written out goes by the size of its maps."""
    step, inputs = step_and_inputs(make_model(tmp_path, f"{temporal}-{backbone}", size_hw=SIZES_HW[backbone]))
    seen: dict[str, tuple[Tensor, list[Tensor]]] = {}
    hooks = [module.register_forward_pre_hook(lambda _, given, site=site: seen.update({site: given}))
             for site, module in step.temporal.items()]
    with torch.no_grad():
        step(*inputs)
    for hook in hooks:
        hook.remove()
    assert list(seen) == list(step.temporal)
    assert foreign(Apart(step), (seen,)) == set()


@pytest.mark.parametrize("options", [{"gate_ratio": 100}, {"past_shift": 0}, {"past_shift": 1}])
def test_every_form_of_the_gate_shift_step_has_converters(tmp_path: Path, options: dict[str, Any]) -> None:
    model = make_model(tmp_path, "gsf-mobilenetv2", **options)
    assert foreign(*step_and_inputs(model)) == set()


def test_the_bundled_model_has_converters() -> None:
    assert foreign(*step_and_inputs(engines.load("gesture"))) == set()


class Pool(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, where = nn.functional.max_pool2d(x, 2, return_indices=True)
        return y, where


class Determinant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x)


@pytest.mark.parametrize(("module", "inputs", "named"), [
    (Determinant(), (torch.eye(3)[None],), "aten._linalg_det.default"),
    (Pool(), (torch.zeros(1, 1, 4, 4),), "aten.max_pool2d_with_indices.default"),
    (nn.GRUCell(4, 4), (torch.zeros(1, 4), torch.zeros(1, 4)), "aten.unsafe_split.Tensor"),
])
def test_a_foreign_operator_is_found(module: nn.Module, inputs: tuple[Tensor, ...], named: str) -> None:
    assert foreign(module, inputs) == {named}


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
