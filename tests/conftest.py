"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Test files run side by side, so each of them takes one thread. numpy reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import imagezmq
import numpy as np
import pytest
import zmq
from fakes import FakeTorchTensorRT

from engines.model.file import Model

# FFmpeg reads its log level once in a process, at the first video; whichever test opens it, the program's own holds.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# Tests that import ONNX Runtime themselves must not report either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


SCHEDULED = os.sched_getscheduler(0) if sys.platform == "linux" else None


@pytest.fixture(autouse=True)
def same_scheduling() -> Iterator[None]:
    """What a test leaves real-time starves all that run beside and after it."""
    yield
    assert SCHEDULED is None or os.sched_getscheduler(0) == SCHEDULED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference vectors and real clips, which lies beside the project on some machines only."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the reference data in ../shared, which is not beside this checkout")
    return SHARED


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def unused_ports() -> list[int]:
    """Four TCP ports of this machine that nobody uses."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(4)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture
def unused_port(unused_ports: list[int]) -> int:
    """One of them."""
    return unused_ports[0]


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Engines built by tests never mix with the user's own; one cache serves all processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    return str((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "engine-cache")


@pytest.fixture(autouse=True)
def _own_cache(engine_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATESTREAM_CACHE", engine_cache)
    monkeypatch.setattr("engines.runtime.cache.SUBSTITUTES", ())  # none outside a test's own folders


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small causal model with memory, of which engines are built."""
    from small_models import make_model

    return make_model(tmp_path_factory.mktemp("model"), readout_width=16)


@pytest.fixture(scope="module")
def frames(model: Model) -> np.ndarray:
    """A clip for it."""
    from engines.runtime.parity import probe_clip

    return probe_clip(model.contract, 24)


@pytest.fixture
def imagezmq_publisher() -> Iterator[tuple[imagezmq.ImageSender, str]]:
    """The real imagezmq as a publisher, and its address, host:port.

    It binds before it could be told not to wait for ever; only what is bound after that keeps to it."""
    with imagezmq.ImageSender("tcp://127.0.0.1:*", REQ_REP=False) as sender:
        sender.zmq_socket.linger = 0
        sender.zmq_socket.bind("tcp://127.0.0.1:*")
        yield sender, sender.zmq_socket.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")


@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> FakeTorchTensorRT:
    """A processor that passes for a GPU with torch-tensorrt; steps are not exported, and the probe clip is short."""
    import torch

    import engines.runtime.backend
    import engines.runtime.registry
    import engines.runtime.tensorrt
    from engines.runtime.parity import probe_clip

    library = FakeTorchTensorRT()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", library)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.0",
                                                                    __spec__=ModuleSpec("tensorrt", None)))
    monkeypatch.setattr(engines.runtime.registry, "unavailable_reason",
                        lambda name: None if name == "tensorrt" else "not tried")
    monkeypatch.setattr(engines.runtime.tensorrt, "DEVICE", "cpu")
    monkeypatch.setattr(engines.runtime.tensorrt, "_gpu", lambda: ("GPU", "1.0"))
    for module in (engines.runtime.backend, engines.runtime.tensorrt):
        monkeypatch.setattr(module, "probe_clip", lambda contract: probe_clip(contract, 3))
    monkeypatch.setattr(torch.export, "export", lambda step, inputs, strict: SimpleNamespace(module=lambda: step))
    return library


@pytest.fixture
def fake_modelopt(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for nvidia-modelopt that rounds nothing; gives what the first head said to each calibration frame."""
    seen: list[Any] = []

    def quantize(step: Any, config: object, forward_loop: Callable[[Any], None]) -> None:
        def watched(*inputs: Any) -> Any:
            out = step(*inputs)
            seen.append(out[1])
            return out
        forward_loop(watched)

    modules = {name: ModuleType(name) for name in ("modelopt", "modelopt.torch", "modelopt.torch.quantization",
                                                   "modelopt.torch.quantization.utils")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    vars(modules["modelopt.torch.quantization"]).update(quantize=quantize, INT8_DEFAULT_CFG={})
    vars(modules["modelopt.torch.quantization.utils"]).update(export_torch_mode=nullcontext)
    return seen
