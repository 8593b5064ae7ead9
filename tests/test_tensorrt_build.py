"""Without a GPU: torch-tensorrt and NVIDIA's compiler build every network whole, by the engine's own code.

    pip install torch==2.14.0 torch-tensorrt-rtx==2.14.0 '.[dev]'
    pytest tests/test_tensorrt_build.py -n 0

TensorRT for RTX compiles ahead of time for a named kind of card. What asks a GPU gets stand-ins here, and what comes
out is not opened, which needs a card; all in between is what runs there. Writes runs/tensorrt_build.md. Needs 3 GB of
packages, so it skips where they are missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import engines
import engines.runtime.tensorrt as tensorrt_engine
from engines.bench.overhead import random_model
from engines.networks.network import BACKBONES, MODULES
from engines.runtime.backend import Spec

TABLE = Path(__file__).resolve().parents[1] / "runs" / "tensorrt_build.md"
BUNDLED = ("gesture", "base")
NETWORKS = (*BUNDLED, *(f"{module}-{backbone}" for module in MODULES for backbone in BACKBONES))
CARD = "SM89"
Table = list[tuple[str, str, int, float]]
pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None or find_spec("torch_tensorrt") is None,
                                reason="needs torch-tensorrt-rtx, which brings 3 GB")


@pytest.fixture(scope="module")
def compiler() -> Iterator[None]:
    """torch-tensorrt on a machine that passes for one with a card of CARD's kind."""
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in {"get_device_capability": (int(CARD[2]), int(CARD[3])), "current_device": 0,
                             "get_device_name": "no GPU", "mem_get_info": (8 << 30, 8 << 30),
                             "synchronize": None}.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        patch.setattr(tensorrt_engine, "DEVICE", "cpu")
        library = tensorrt_engine.load_library()
        import tensorrt
        from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter
        from torch_tensorrt.dynamo.runtime import TorchTensorRTModule

        configure = TRTInterpreter._populate_trt_builder_config

        def for_card(self: Any, *args: Any, **options: Any) -> Any:
            config = configure(self, *args, **options)
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(tensorrt.ComputeCapability, CARD), 0)
            return config

        unopened = SimpleNamespace(deserialize_cuda_engine=lambda engine: SimpleNamespace(
            serialize=lambda: engine, get_aliased_input_tensor=lambda _: None))
        patch.setattr(TRTInterpreter, "_populate_trt_builder_config", for_card)
        patch.setattr(sys.modules[TRTInterpreter.__module__].trt, "Runtime", lambda _: unopened)
        patch.setattr(TorchTensorRTModule, "setup_engine", lambda self: None)
        patch.setattr(library, "save", _write_engine)
        yield


def _write_engine(built: Any, path: str, arg_inputs: object) -> None:
    """The serialized engine, where torch-tensorrt writes it with an opened one around it."""
    (part,) = (part for _, part in built.named_children())
    Path(path).write_bytes(part.serialized_engine)


@pytest.fixture(scope="module")
def table() -> Table:
    """(network, precision, bytes, seconds of processor time) of what was built."""
    return []


def _write_table(table: Table) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torch-tensorrt-rtx", "tensorrt-rtx"))
    cells = [f"| {name} | {precision} | {size / 1e6:.1f} | {seconds:.1f} |" for name, precision, size, seconds in table]
    TABLE.parent.mkdir(exist_ok=True)
    heading = [f"{versions}, for {CARD}, one camera", "", "| network | precision | MB | s of one core |",
               "| --- | --- | --- | --- |"]
    TABLE.write_text("\n".join([*heading, *cells, ""]))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_whole(compiler: None, table: Table, tmp_path: Path, name: str, precision: str) -> None:
    model = engines.load(name) if name in BUNDLED else random_model(name)
    began = time.process_time()
    tensorrt_engine.build(Spec(model), precision, tmp_path)
    seconds = time.process_time() - began
    (program,) = tmp_path.iterdir()
    table.append((name, precision, program.stat().st_size, seconds))
    _write_table(table)
    weights = sum(value.numel() for value in model.network.parameters()) * (4 if precision == "f32" else 2)
    assert program.stat().st_size > 0.9 * weights


def test_several_cameras_have_an_engine_for_each_batch(compiler: None, tmp_path: Path) -> None:
    facts = tensorrt_engine.build(Spec(engines.load("gesture"), slots=5), "f16", tmp_path)
    assert facts["batches"] == [1, 2, 4, 5]
    assert len([*tmp_path.iterdir()]) == 4
