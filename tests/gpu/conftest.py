"""The GPU proof: `pytest tests/gpu`. Each test says why it is skipped where there is no GPU, or no torch-tensorrt.
proof.py runs it, and measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import engines
from engines.model.file import Model
from engines.runtime.registry import unavailable_reason
from engines.runtime.slot_pool import CompiledPool

SLOTS = 4


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU that torch can use")


@pytest.fixture(scope="module", params=["inductor", "tensorrt"])
def name(request: pytest.FixtureRequest) -> str:
    reason = unavailable_reason(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return str(request.param)


@pytest.fixture(scope="module")
def opened() -> dict[str, CompiledPool]:
    """Engines stay open for the tests of a module, since opening them takes long."""
    return {}


@pytest.fixture(params=["f16", "f32"])
def engine(request: pytest.FixtureRequest, name: str, model: Model, opened: dict[str, CompiledPool]) -> CompiledPool:
    """An engine in which every slot is fresh."""
    key = f"{name} {request.param}"
    if key not in opened:
        built = engines.compile(model, name, slots=SLOTS, precision=request.param)
        assert isinstance(built, CompiledPool)
        opened[key] = built
    opened[key].reset(range(SLOTS))
    return opened[key]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATESTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
