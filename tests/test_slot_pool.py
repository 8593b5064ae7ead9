"""Compiled pools: which batches there are, when graphs are captured, what takes which way between host and GPU.
torch.cuda is a stand-in that does at once, on the processor, what a GPU does when it comes to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import make_model
from torch import Tensor, nn

import engines
import engines.runtime.nvidia as nvidia
from engines.errors import UsageError
from engines.model.file import Model
from engines.runtime.backend import has_gpu
from engines.runtime.cuda_graphs import SWITCH, WARM_UP, capture_all
from engines.runtime.inductor import compile_alone, compile_step
from engines.runtime.lowering import PixelStep
from engines.runtime.parity import compare, run_clip
from engines.runtime.slot_pool import CompiledPool, batch_sizes, split_runs


class FakeCuda:
    """log: what was asked of it, in order; captured: size -> how."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.log: list[str] = []
        self.captured: list[dict[str, Any]] = []
        self.fail_at = fail_at

    def Stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: self.log.append("wait"))

    def Event(self) -> SimpleNamespace:
        return SimpleNamespace(record=lambda: None, synchronize=lambda: self.log.append("synchronize"))

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.log.append("on stream")
        yield

    @contextmanager
    def graph(self, graph: object, **how: Any) -> Iterator[None]:
        self.captured.append(how)
        if self.fail_at == len(self.captured):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("Stream", "Event", "CUDAGraph", "stream", "graph"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "current_stream", self.Stream)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


@pytest.mark.parametrize(("slots", "sizes"), [
    (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (32, [1, 2, 4, 8, 16, 32]),
    (1024, [1, 2, 4, 8, 16, 32, 64, 128, 256])])
def test_batches_double_up_to_all_slots(slots: int, sizes: list[int]) -> None:
    assert batch_sizes(slots) == sizes


@pytest.mark.parametrize(("cameras", "runs"), [
    (0, []), (1, [(0, 1)]), (3, [(0, 4)]), (8, [(0, 8)]), (9, [(0, 8), (8, 1)]), (22, [(0, 8), (8, 8), (16, 8)]),
    (19, [(0, 8), (8, 8), (16, 4)])])
def test_a_run_takes_the_smallest_batch_that_holds_its_cameras(cameras: int, runs: list[tuple[int, int]]) -> None:
    assert [*split_runs(cameras, [1, 2, 4, 8])] == runs


def test_graphs_are_captured_from_large_to_small_in_one_pool_beside_other_threads(cuda: FakeCuda) -> None:
    ran: list[int] = []

    def run(size: int) -> Tensor:
        ran.append(size)
        return torch.zeros(size)

    graphs = capture_all(run, [1, 2, 4])
    assert ran == [size for size in (4, 2, 1) for _ in range(WARM_UP + 1)]
    assert {size: len(graph.results) for size, graph in graphs.items()} == {4: 4, 2: 2, 1: 1}
    assert {(how["pool"], how["capture_error_mode"]) for how in cuda.captured} == {("pool", "thread_local")}
    assert len({id(how["stream"]) for how in cuda.captured}) == 1  # or they would not share the pool's memory


def test_without_a_graph_steps_run_and_one_line_says_so(cuda: FakeCuda, caplog: pytest.LogCaptureFixture,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.fail_at = 2
    with caplog.at_level(logging.WARNING):
        assert capture_all(torch.zeros, [1, 2, 4]) == {}
    (line,) = caplog.messages
    assert "step of 2 cameras (operation not permitted when stream is capturing)" in line
    assert "\n" not in line
    monkeypatch.setenv(SWITCH, "off")
    assert capture_all(torch.zeros, [1, 2, 4]) == {}
    assert len(cuda.captured) == 2
    monkeypatch.setenv(SWITCH, "perhaps")
    with pytest.raises(UsageError, match=f"{SWITCH}=perhaps; wanted on or off"):
        capture_all(torch.zeros, [1])


MakePool = Callable[[int, list[int]], CompiledPool]


@pytest.fixture
def make_pool(model: Model, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> MakePool:
    """A pool of a processor, and what passes for one of a GPU: its frames take the lanes."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)

    def make(slots: int, sizes: list[int]) -> CompiledPool:
        pool = compile_step(model, slots, "f32", "cpu", sizes)
        assert isinstance(pool, CompiledPool)
        return pool

    return make


@pytest.mark.parametrize("company", [[0], [1, 0], [4, 2, 0], [0, 1, 2, 3, 4], [3, 0, 4, 1, 2, 5, 6]])
def test_frames_over_lanes_give_what_they_give_without(make_pool: MakePool, frames: np.ndarray, company: list[int],
                                                       cuda: FakeCuda) -> None:
    plain, lanes = make_pool(7, [1, 2]), make_pool(7, [1, 2])
    lanes._use_lanes()
    for t in range(4):
        images = frames[[(t + 3 * slot) % len(frames) for slot in company]]
        wanted, got = (engine.step(images, company) for engine in (plain, lanes))
        assert np.array_equal(wanted.features, got.features)
        assert np.array_equal(wanted.scores["gesture"], got.scores["gesture"])
    assert cuda.log.count("wait") == cuda.log.count("synchronize") == 4 * -(-len(company) // 2)


def test_a_batch_filled_up_is_each_camera_alone(make_pool: MakePool, model: Model, frames: np.ndarray) -> None:
    wanted = run_clip(engines.compile(model, "eager"), frames[:6])
    for slots, sizes in ((3, [4]), (5, [1, 2, 4, 5])):
        pool = make_pool(slots, sizes)
        for company in range(slots):
            assert compare(model.contract, wanted, run_clip(pool, frames[:6], 0, range(1, 1 + company))).holds


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What torch traces, one after the other; no code is made of it."""
    graphs: list[object] = []

    def backend(graph: Any, inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **how: real(step, backend=backend, **how))
    return graphs


def test_more_than_eight_engines_live(traced: list[object]) -> None:
    """torch's own limit is eight pieces of code for a function."""
    for count in range(1, 11):
        layer = nn.Linear(3, 2)
        run = compile_alone(layer)
        for size in (8, 4, 2, 1):
            x = torch.randn(size, 3)
            assert torch.equal(torch.as_tensor(run(x)), layer(x))
        assert len(traced) == 2 * count  # for one camera, and for any other number of them


@pytest.mark.parametrize(("architecture", "options"), [
    ("gsf-mobilenetv2", {"sites": ["features_16"], "gate_ratio": 100, "readout_width": 8}), ("stsm-resnet18", {})])
def test_all_batches_of_a_network_are_one_piece_of_code(tmp_path: Path, traced: list[object], architecture: str,
                                                        options: dict[str, Any]) -> None:
    model = make_model(tmp_path, architecture, **options)
    step = PixelStep(model.network, model.contract)
    run = compile_alone(step)
    with torch.no_grad():
        for size in (4, 2):
            image = torch.randint(0, 255, (size, *model.contract.input_size_hw, 3), dtype=torch.uint8)
            state = [leaf.expand(size, *leaf.shape[1:]).clone() for leaf in step.fresh_state()]
            for got, wanted in zip(run(image, *state), step(image, *state), strict=True):
                assert torch.allclose(got, wanted, atol=1e-5)
    assert len(traced) == 1


def _driver(version: int, release: bytes | None) -> Callable[[str], Any]:
    """Libraries of a driver that brings CUDA of this version; release None: one without NVML."""
    def get_cuda(number: Any) -> int:
        number._obj.value = version
        return 0

    def get_release(text: Any, size: int) -> int:
        text.value = release
        return 0

    libraries = {nvidia._CUDA: SimpleNamespace(cuDriverGetVersion=get_cuda)}
    if release is not None:
        libraries[nvidia._NVML] = SimpleNamespace(
            nvmlInit_v2=lambda: 0, nvmlShutdown=lambda: 0, nvmlSystemGetDriverVersion=get_release)
    return libraries.get


@pytest.mark.parametrize(("libraries", "said"), [
    (_driver(13000, b"580.95.05"), "580.95.05, CUDA 13.0"), (_driver(12060, None), "CUDA 12.6"),
    (_driver(12060, b"N/A"), "CUDA 12.6"), (lambda name: None, None)])
def test_the_driver_is_asked_without_its_program(libraries: Callable[[str], Any], said: str | None,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_library", libraries)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", "")
    assert nvidia.driver_version() == said
    assert has_gpu() == (said is not None)

