"""Compiled engines on a GPU: equal to eager, and slots that do not know each other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import make_model

import engines
import engines.runtime.slot_pool as slot_pool
from engines.model.file import Model
from engines.runtime.cuda_graphs import SWITCH
from engines.runtime.parity import compare, probe_clip, run_clip
from engines.runtime.slot_pool import CompiledPool


@pytest.mark.parametrize(("architecture", "size_hw", "options"), [
    ("tsn-mobilenetv2", (40, 56), {"readout_width": 16}),
    ("tsm-resnet18", (40, 56), {}),
    ("gsm-bninception", (64, 64), {}),
    ("gsf-mobilenetv2", (96, 96), {"past_shift": 0}),
    ("gsf-resnet50", (64, 96), {"gate_ratio": 100}),
    ("gsf-inceptionv3", (75, 107), {}),
    ("stsm-mobilenetv2", (40, 56), {"shift": "THW-diagonal"}),
])
def test_every_network_equals_eager(tmp_path: Path, name: str, architecture: str, size_hw: tuple[int, int],
                                    options: dict[str, Any]) -> None:
    model = make_model(tmp_path, architecture, size_hw=size_hw, **options)
    frames = probe_clip(model.contract, 16)
    wanted = run_clip(engines.compile(model, "eager"), frames)
    moved = wanted.scores["gesture"] - wanted.scores["gesture"][0]
    assert np.abs(moved).max() > 0.1  # the clip moves the scores
    got = run_clip(engines.compile(model, name, precision="f32"), frames)
    assert compare(model.contract, wanted, got).holds


def test_the_bundled_model_equals_eager_in_what_is_chosen_for_it(name: str) -> None:
    model = engines.load("gesture")
    frames = probe_clip(model.contract, 200)
    engine = engines.compile(model, name, slots=2)
    assert engine.precision in ("f16", "f32")
    wanted = run_clip(engines.compile(model, "eager"), frames)
    assert compare(model.contract, wanted, run_clip(engine, frames, slot=1)).holds


def test_a_stream_equals_the_clip_in_any_split(engine: CompiledPool, model: Model, frames: np.ndarray) -> None:
    wanted = run_clip(engines.compile(model, "eager"), frames)
    once = run_clip(engine, frames, slot=2)
    assert compare(model.contract, wanted, once).holds
    engine.reset([2])
    parts = []
    for piece in np.split(frames, [1, 3, 10]):
        parts += [engine.step(frame[None], [2]).scores["gesture"][0] for frame in piece]
        engine.step(frames[:1], [0])  # what others do between the pieces changes nothing
    assert np.array_equal(np.stack(parts), once.scores["gesture"])


def test_a_camera_is_the_same_in_any_order_and_company_of_a_batch(engine: CompiledPool, frames: np.ndarray) -> None:
    """To the bit: each of these steps has three or four cameras, and so the largest batch."""
    clips = {slot: frames[4 * slot:4 * slot + 8] for slot in range(4)}

    def run(companies: list[list[int]]) -> dict[int, list[np.ndarray]]:
        engine.reset(range(engine.slots))
        scores: dict[int, list[np.ndarray]] = {slot: [] for slot in clips}
        for company in companies:
            result = engine.step(np.stack([clips[slot][len(scores[slot])] for slot in company]), company)
            for row, slot in enumerate(company):
                scores[slot].append(result.scores["gesture"][row])
        return scores

    mixed = run([[0, 1, 3], [3, 2, 0], [2, 3, 1], [3, 1, 2, 0], [0, 1, 2], [1, 3, 0], [2, 0, 1, 3]])
    for slot, scores in run([[0, 1, 2, 3]] * 6).items():
        together = min(len(scores), len(mixed[slot]))
        assert together >= 5
        assert np.array_equal(np.stack(scores[:together]), np.stack(mixed[slot][:together]))


def test_every_batch_is_the_same_camera_in_any_row(engine: CompiledPool, model: Model, frames: np.ndarray) -> None:
    """Within the tolerance of engines: kernels of another batch add up in another order."""
    wanted = run_clip(engines.compile(model, "eager"), frames)
    for size in (*engine.batch_sizes, 3):
        assert compare(model.contract, wanted, run_clip(engine, frames, 0, range(1, size))).holds


def test_a_reset_camera_is_a_new_one_and_others_stay(engine: CompiledPool, frames: np.ndarray) -> None:
    first = run_clip(engine, frames[:5], slot=1).scores["gesture"]
    other = [engine.step(frame[None], [2]).scores["gesture"][0] for frame in frames[:3]]
    engine.reset([1])
    again = [engine.step(frame[None], [1]).scores["gesture"][0] for frame in frames[:5]]
    assert np.array_equal(first, np.stack(again))
    untouched = engine.step(frames[3:4], [2]).scores["gesture"][0]
    assert np.array_equal(np.stack([*other, untouched]), first[:4])
    assert not np.allclose(engine.step(frames[:1], [1]).scores["gesture"][0], first[0], atol=1e-3)


def test_state_stays_on_the_gpu_in_graphs_with_a_scratch_slot(engine: CompiledPool, frames: np.ndarray) -> None:
    assert sorted(engine._graphs) == engine.batch_sizes == [1, 2, 4]
    assert all(leaf.is_cuda and len(leaf) == engine.slots + 1 for leaf in engine._pool)
    memory = [leaf.data_ptr() for leaf in engine._pool]
    engine.step(frames[:1], [0])
    assert [leaf.data_ptr() for leaf in engine._pool] == memory
    moved = [bool(row.any()) for row in engine._pool[0]]
    assert moved == [True, *[False] * (engine.slots - 1), True]  # the camera's, and what filled up the batch


def test_outputs_are_the_callers_to_keep(engine: CompiledPool, frames: np.ndarray) -> None:
    result = engine.step(frames[:1], [0])
    kept = result.features.copy(), result.scores["gesture"].copy()
    engine.step(frames[9:10], [0])
    assert np.array_equal(result.features, kept[0])
    assert np.array_equal(result.scores["gesture"], kept[1])


def test_graphs_change_nothing_and_can_be_switched_off(name: str, engine: CompiledPool, model: Model,
                                                       frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    plain = engines.compile(model, name, slots=engine.slots, precision=engine.precision)
    assert isinstance(plain, CompiledPool)
    assert not plain._graphs
    for company in ((), (1, 2)):
        wanted, got = (run_clip(each, frames[:8], 0, company) for each in (plain, engine))
        assert compare(model.contract, wanted, got).holds


def test_an_engine_opens_while_another_thread_works(name: str, engine: CompiledPool, model: Model) -> None:
    ended, worked = threading.Event(), []

    def work() -> None:
        while not ended.is_set():
            product = torch.randn(512, 512).pin_memory().cuda(non_blocking=True) @ torch.randn(512, 512, device="cuda")
            worked.append(product.sum().item())

    other = threading.Thread(target=work)
    other.start()
    try:
        opened = engines.compile(model, name, slots=engine.slots, precision=engine.precision)
    finally:
        ended.set()
        other.join()
    assert isinstance(opened, CompiledPool)
    assert worked
    assert sorted(opened._graphs) == opened.batch_sizes


def test_many_cameras_take_several_runs(name: str, engine: CompiledPool, model: Model, frames: np.ndarray,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of one run beside the step of another: each camera is what it is in a run of its own."""
    monkeypatch.setattr(slot_pool, "RUN_MOST", 4)
    many = engines.compile(model, name, slots=18, precision=engine.precision)
    assert many.batch_sizes == [1, 2, 4]
    wanted = run_clip(many, frames[:8], 3, (0, 1, 2)).scores["gesture"]
    many.reset(range(18))
    clips = np.stack([np.roll(frames[:8], slot, 0) for slot in range(18)])
    clips[15] = frames[:8]
    got = [many.step(clips[:, t], range(18)).scores["gesture"][15] for t in range(8)]
    assert np.array_equal(np.stack(got), wanted)
